"""The same bytes from a cluster's workers, of which one is killed. Real Ray, on this machine."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import ray

from exporters import cluster
from exporters.cluster import Recipe, describe_jobs, use_cluster
from exporters.draft import Draft
from exporters.quantize.plan import Precision
from lfm2_deploy import api
from lfm2_deploy.bundle import CARD
from lfm2_deploy.errors import ExportError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds workers in /proc")
MODEL = "synthetic:tiny-moe"


@pytest.fixture(scope="module")
def started() -> Iterator[None]:
    """Workers are slow to start, so these tests share one cluster."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.fixture
def shared(started: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "init", lambda **settings: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)


def read_all(folder: Path) -> dict[str, bytes]:
    """All but the card, which names the folder."""
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert folder.name in files.pop(CARD).decode()
    return files


def find_workers() -> list[int]:
    """Processes that are encoding; Ray names them after what they run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (folder / "cmdline").read_bytes().startswith(b"ray::encode_unit"):
                found.append(int(folder.name))
    return found


@functools.cache
def lower(precision: Precision) -> Draft:
    return make_recipe(precision).build()[1]


def make_recipe(precision: Precision = "int4") -> Recipe:
    return Recipe(MODEL, None, None, "cpu", precision, None)


def test_cluster_gives_the_same_bytes_though_a_worker_is_killed(
    shared: None, tmp_path: Path
) -> None:
    here = api.export(MODEL, tmp_path / "here", precision="int4")
    killed: list[int] = []

    def kill_a_worker(what: str, done: int, total: int) -> None:
        if what == "writing weights" and done > total / 4 and not killed:
            killed.extend(find_workers()[:1])
            for process in killed:
                os.kill(process, signal.SIGKILL)

    there = api.export(
        MODEL, tmp_path / "there", precision="int4", cluster="local", progress=kill_a_worker
    )
    assert killed
    assert read_all(there.path) == read_all(here.path)


def test_worker_that_lowers_another_graph_is_refused(shared: None) -> None:
    encode = use_cluster("local", make_recipe("int4"))(lower("int8").book)
    with pytest.raises(ExportError, match="install the same versions"):
        list(encode([0]))


def test_what_a_worker_cannot_read_is_told_as_here(shared: None) -> None:
    recipe = Recipe("synthetic:unheard-of", None, None, "cpu", "int4", None)
    with pytest.raises(Exception, match="no synthetic model 'unheard-of'") as caught:
        list(use_cluster("local", recipe)(lower("int4").book)([0]))
    assert "\n" not in str(caught.value)


def test_unit_whose_workers_always_die_is_given_up_in_one_line(
    shared: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(cluster, "encode_unit", die)
    monkeypatch.setattr(cluster, "_RETRIES", 0)
    with pytest.raises(ExportError, match="lost a unit of work") as caught:
        list(use_cluster("local", make_recipe())(lower("int4").book)([0]))
    assert "\n" not in str(caught.value)


def test_jobs_are_told_apart_by_what_they_write() -> None:
    digests = {describe_jobs(lower(p).book) for p in ("int8", "int4")}
    assert len(digests) == 2


def test_cluster_that_does_not_answer_is_told_in_one_line() -> None:
    with pytest.raises(ExportError, match="no Ray cluster answers at 'auto'") as caught:
        list(use_cluster("auto", make_recipe())(lower("int4").book)([0]))
    assert "\n" not in str(caught.value)
