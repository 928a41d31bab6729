"""`lfm2-deploy eval`: benchmarks of lm-evaluation-harness, run on a bundle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lfm2_deploy.commands import completers
from lfm2_deploy.commands.console import (
    note,
    print_facts,
    print_json,
    print_table,
    print_title,
    show_progress,
)
from lfm2_deploy.commands.options import AsJson, Device, Record, Threads, find_bundle, load_model

if TYPE_CHECKING:
    from lfm2_deploy.bundle import Bundle
    from lfm2_deploy.evaluation.result import Evaluation, Metric
    from lfm2_deploy.generate import LanguageModel

_ARROWS = {True: " ↑", False: " ↓", None: ""}


def evaluate(
    bundle: Annotated[
        Path | None,
        typer.Argument(
            metavar="BUNDLE",
            parser=find_bundle,
            help="The folder that `export` made, or the name of a model in the store.",
            autocompletion=completers.complete_bundles,
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A,B",
            help="Tasks, groups or tags to run; * stands for any letters.",
            autocompletion=completers.complete_tasks,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Ask only the first N questions of each task.",
            show_default="all",
        ),
    ] = None,
    few_shot: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Put N examples in front of each question.",
            show_default="as each task says",
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Generate N answers together.")
    ] = 1,
    chat_template: Annotated[
        bool,
        typer.Option("--chat-template", help="Ask as in a chat, by the model's own template."),
    ] = False,
    task_folder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also look for tasks (.yaml files) in DIR.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the JSON object to FILE.")
    ] = None,
    list_tasks: Annotated[
        bool,
        typer.Option(
            "--list", help="List tasks that need no download; with --tasks, any that fit."
        ),
    ] = False,
    record: Record = False,
    threads: Threads = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Run tasks of lm-evaluation-harness on a bundle.

    Prompts, splits into tokens and scores are those of the harness's own Hugging
    Face backend, so that figures compare. What questions have in common is read
    once. Tasks that this package brings need no download. The harness is an
    extra: pip install 'lfm2-deploy[eval]'.

    \b
    Examples:
      lfm2-deploy eval --list
      lfm2-deploy eval ./LFM2-350M-cpu-int4 --tasks 'lfm2_demo_*'
      lfm2-deploy eval ./LFM2-350M-cpu-int4 --tasks arc_easy,hellaswag --limit 200

    \b
    See also:
      lfm2-deploy compare BUNDLE      token by token against the original
    """
    asked = [name.strip() for words in tasks or () for name in words.split(",") if name.strip()]
    folder = None if task_folder is None else task_folder.expanduser()
    if list_tasks:
        _list(asked, folder, as_json)
        return
    if bundle is None or not asked:
        missing = "BUNDLE" if bundle is None else "--tasks"
        raise typer.BadParameter(f"{missing} is missing: see lfm2-deploy eval --list for tasks")
    if output is not None and not output.expanduser().absolute().parent.is_dir():
        raise typer.BadParameter(f"--output {output}: there is no such folder")
    _run(
        bundle.expanduser(),
        asked,
        folder,
        {"limit": limit, "few_shot": few_shot, "batch_size": batch_size, "chat": chat_template},
        threads,
        device,
        output,
        record,
        as_json,
    )


def _run(
    path: Path,
    asked: Sequence[str],
    folder: Path | None,
    settings: dict[str, Any],
    threads: int | None,
    device: str | None,
    output: Path | None,
    record: bool,
    as_json: bool,
) -> None:
    from lfm2_deploy.bundle import open_bundle
    from lfm2_deploy.registry import EVALUATOR, TASK_LOADER

    bundle = open_bundle(path)
    # What is wrong with the tasks is told before a model is loaded.
    with show_progress() as progress:
        load_tasks = TASK_LOADER.load()
        loaded = load_tasks(asked, folder, progress)
    model = load_model(path, threads, device)
    from lfm2_deploy.evaluation.settings import Settings

    with show_progress() as progress:
        found = EVALUATOR.load()(model, path.name, loaded, Settings(**settings), progress)
    told = _describe(bundle, model, found)
    if as_json:
        print_json(told)
    else:
        _print(bundle, model, found)
        for remark in found.notes:
            note(remark)
    if output is not None:  # last: where it cannot be written, the figures are told already
        output.expanduser().write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    if record:
        from lfm2_deploy.card.recording import of_evaluation
        from lfm2_deploy.commands.card import keep

        keep(bundle, of_evaluation(bundle, model.runtime.info, found))


def _list(asked: Sequence[str], folder: Path | None, as_json: bool) -> None:
    from lfm2_deploy.evaluation.catalog import choose_names, list_local_tasks
    from lfm2_deploy.registry import TASK_NAMES

    local = [*list_local_tasks(), *(list_local_tasks(folder) if folder else ())]
    described = {task.name: task.description for task in local}
    if asked:
        with show_progress() as progress:
            progress("reading tasks", 0, 0)
            names = choose_names(asked, TASK_NAMES.load()(folder))
        ordered = sorted(names, key=lambda name: (name not in described, name))
        described = {name: described.get(name, "") for name in ordered}
    if as_json:
        print_json({"tasks": described})
        return
    print_table(("task", "what it asks"), [[name, text] for name, text in described.items()])
    if not asked:
        note("lm-evaluation-harness has thousands more, most of them downloads:")
        note("  lfm2-deploy eval --list --tasks 'mmlu*,arc*'")


def _print(bundle: Bundle, model: LanguageModel, found: Evaluation) -> None:
    info = model.runtime.info
    print_title(str(bundle.path), f"{bundle.manifest.precision}, {info.runtime} on {info.device}")
    rows = []
    for task in found.tasks:
        for index, metric in enumerate(task.metrics):
            begin = [task.name, f"{task.samples:,}", str(task.few_shot)] if not index else [""] * 3
            rows.append([begin[0], _name(metric), *_format(metric), begin[1], begin[2]])
    print_table(("task", "metric", ">value", "stderr", ">questions", ">few-shot"), rows)
    asked = found.tokens_asked
    share = f", {found.tokens_read:,} of {asked:,} tokens read" if asked else ""
    print_facts({"took": f"{found.seconds:.1f} s{share}"})


def _name(metric: Metric) -> str:
    filtered = "" if metric.filter == "none" else f" ({metric.filter})"
    return f"{metric.name}{filtered}{_ARROWS[metric.higher_is_better]}"


def _format(metric: Metric) -> tuple[str, str]:
    error = "" if metric.stderr is None else f"± {_shorten(metric.stderr)}"
    return _shorten(metric.value), error


def _shorten(value: float) -> str:
    """Perplexities can be large, and then nobody needs their fractions."""
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.0f}"


def _describe(bundle: Bundle, model: LanguageModel, found: Evaluation) -> dict[str, Any]:
    """Everything that is needed to run it again, and what came out."""
    info, manifest = model.runtime.info, bundle.manifest
    return {
        "path": str(bundle.path),
        "target": manifest.target,
        "precision": manifest.precision,
        "origin": asdict(manifest.origin),
        "runtime": info.runtime,
        "device": info.device,
        "context_length": model.runtime.context_length,
        **asdict(found),
        "versions": {"lfm2-deploy": version("lfm2-deploy"), **found.versions},
        "made_with": dict(manifest.made_with),
    }
