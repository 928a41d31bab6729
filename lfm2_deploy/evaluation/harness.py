"""Runs tasks of lm-evaluation-harness; the only module here, with `adapter`, that imports it.

Enters: a loaded model and names of tasks. Leaves: an `Evaluation`. The harness builds the
prompts and judges the answers; nothing of its own output reaches the user.
"""

from __future__ import annotations

import io
import logging
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import asdict
from fnmatch import fnmatchcase
from functools import partialmethod
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.evaluator import evaluate as run_harness
from lm_eval.tasks import TaskManager
from tqdm import tqdm

from lfm2_deploy.contracts import Progress, ignore_progress
from lfm2_deploy.errors import EvaluationError
from lfm2_deploy.evaluation.adapter import HarnessModel
from lfm2_deploy.evaluation.catalog import choose_names, list_local_tasks
from lfm2_deploy.evaluation.local_data import TASK_FOLDER
from lfm2_deploy.evaluation.result import Evaluation, read_results
from lfm2_deploy.evaluation.settings import Settings
from lfm2_deploy.generate import LanguageModel

# The harness's own defaults, so that few-shot examples are the ones others get.
_SEEDS = {"random_seed": 0, "numpy_seed": 1234, "fewshot_seed": 1234}
# Draws for standard errors that have no formula. The harness draws 100,000, which takes a
# minute for a figure whose second digit nobody reads; 1,000 give it to 2 %.
_BOOTSTRAP_DRAWS = 1000
# Words in errors of `datasets`, `huggingface_hub` and what they call, where there is no network.
_OFFLINE = ("connect", "offline", "resolve", "timeout", "proxy", "couldn't reach", "localentry")
_UNSAFE = (
    "{} runs code that the model writes, which is not offered here: use lm-evaluation-harness "
    "itself, in a sandbox"
)
_QUIET_LOGGERS = ("lm_eval", "datasets", "evaluate", "huggingface_hub", "httpx", "urllib3")


def load_tasks(
    tasks: Sequence[str], folder: Path | None = None, progress: Progress = ignore_progress
) -> Mapping[str, Any]:
    """Tasks with their data, as the harness's `TaskDict`; no model is needed for it.

    Args:
        tasks: names of tasks, groups or tags; `*` and `?` stand for any characters.
        folder: where to look for tasks besides this package and the harness.
        progress: told that it takes a while.

    Raises:
        EvaluationError: a task is unknown, cannot be loaded, or asks for what is not offered.
    """
    with quiet():
        progress("reading tasks", 0, 0)
        return _load(tasks, folder)


def evaluate(
    model: LanguageModel,
    name: str,
    tasks: Mapping[str, Any],
    settings: Settings,
    progress: Progress = ignore_progress,
) -> Evaluation:
    """Run tasks on a model.

    Args:
        model: the loaded bundle.
        name: the bundle's, for the harness's records.
        tasks: what `load_tasks` gave.
        settings: how to run them.
        progress: told of each request.

    Raises:
        EvaluationError: a task asks for what is not offered, or for more context than there is.
        GenerationError, TemplateError: the model cannot do what a task asks.
    """
    started = time.perf_counter()
    with quiet():
        _set_up(tasks["tasks"], settings)
        adapter = HarnessModel(model, name, settings.batch_size, progress, _SEEDS["random_seed"])
        raw = _run(adapter, tasks, settings)
    return Evaluation(
        tasks=read_results(raw),
        notes=tuple(adapter.notes),
        seconds=time.perf_counter() - started,
        tokens_asked=adapter.effort.asked,
        tokens_read=adapter.effort.read,
        settings={**asdict(settings), **_SEEDS, "bootstrap_draws": _BOOTSTRAP_DRAWS},
        versions={package: version(package) for package in ("lm-eval", "datasets")},
    )


def list_names(task_folder: Path | None = None) -> list[str]:
    """Every task, group and tag, those of folders included; takes ten seconds."""
    with quiet():
        names: list[str] = _index(task_folder, everything=True).all_tasks
    return names


@contextmanager
def quiet() -> Iterator[None]:
    """Keep bars, logs and prints of the harness and its libraries from the user's screen."""
    with ExitStack() as stack:
        for name in _QUIET_LOGGERS:
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL)
        # The harness makes its bars without asking anybody.
        begin = tqdm.__init__
        stack.callback(setattr, tqdm, "__init__", begin)
        tqdm.__init__ = partialmethod(begin, disable=True)
        # Otherwise drawing for standard errors starts a process for every core.
        before = os.environ.get("DISABLE_MULTIPROC")
        os.environ["DISABLE_MULTIPROC"] = "1"
        stack.callback(_restore, "DISABLE_MULTIPROC", before)
        # Where results go, and where the harness prints what it draws.
        stack.enter_context(redirect_stdout(io.StringIO()))
        yield


def _restore(variable: str, before: str | None) -> None:
    if before is None:
        del os.environ[variable]
    else:
        os.environ[variable] = before


def _index(folder: Path | None, everything: bool) -> TaskManager:
    folders = [TASK_FOLDER, *([] if folder is None else [folder])]
    return TaskManager(include_path=folders, include_defaults=everything)


def _load(asked: Sequence[str], folder: Path | None) -> Mapping[str, Any]:
    here = [task.name for task in list_local_tasks()]
    here += [] if folder is None else [task.name for task in list_local_tasks(folder)]
    only_here = all(any(fnmatchcase(name, task) for name in here) for task in asked)
    manager = _index(folder, everything=not only_here)
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in choose_names(asked, manager.all_tasks):
        part = _load_one(manager, name)
        twice = sorted(loaded["tasks"].keys() & part["tasks"].keys())
        if twice:
            raise EvaluationError(f"{name} holds {twice[0]}, which is asked for already: name one")
        for kind, entries in loaded.items():
            entries.update(part[kind])
    return loaded


def _load_one(manager: TaskManager, name: str) -> Mapping[str, Any]:
    if (manager.task_index[name].cfg or {}).get("unsafe_code"):
        raise EvaluationError(_UNSAFE.format(name))
    try:
        loaded: Mapping[str, Any] = manager.load([name])
    except Exception as error:  # its YAML, its code, its data and the network can all fail
        raise EvaluationError(_explain(name, error)) from error
    for task in loaded["tasks"].values():  # of a group
        if getattr(task, "UNSAFE_CODE", False):
            raise EvaluationError(_UNSAFE.format(task.task_name))
    return loaded


def _explain(name: str, error: BaseException) -> str:
    """Why a task cannot be loaded, in one line."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    what = f"{type(error).__name__}: {' '.join(str(error).split())}"
    words = " ".join(f"{type(link).__name__} {link}" for link in chain).lower()
    for link in chain:
        if isinstance(link, ImportError) and link.name:
            return f"task {name} needs {link.name}, which is not installed ({what}): install it"
    if any(word in words for word in _OFFLINE):
        return (
            f"task {name} downloads its data, and the Hub cannot be reached ({what}): go online, "
            "or choose tasks that need no download (lfm2-deploy eval --list)"
        )
    return f"task {name} cannot be loaded ({what}): see what its makers say of it"


def _set_up(tasks: Mapping[str, Any], settings: Settings) -> None:
    """Few-shot examples and random numbers, as the harness's `simple_evaluate` sets them."""
    random.seed(_SEEDS["random_seed"])
    np.random.seed(_SEEDS["numpy_seed"])
    for task in tasks.values():
        own = task.get_config("num_fewshot")
        if settings.few_shot is not None and own != 0:  # 0 in a task's file is meant so
            task.set_config(key="num_fewshot", value=settings.few_shot)
        elif own is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=_SEEDS["fewshot_seed"])


def _run(adapter: HarnessModel, tasks: Mapping[str, Any], settings: Settings) -> Mapping[str, Any]:
    # Not `simple_evaluate`: it also asks pip for every installed package, which takes seconds.
    try:
        raw: Mapping[str, Any] = run_harness(
            lm=adapter,
            task_dict=tasks,
            limit=settings.limit,
            bootstrap_iters=_BOOTSTRAP_DRAWS,
            log_samples=False,
            apply_chat_template=settings.chat,
            fewshot_as_multiturn=settings.chat,
        )
    except (ValueError, ImportError) as error:  # what a task says of its own demands
        what = " ".join(str(error).split())
        raise EvaluationError(f"cannot run {', '.join(tasks['tasks'])}: {what}") from error
    return raw
