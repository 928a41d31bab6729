"""A short run of `benchmarks/soak.py`: many clients of every sort against a server of its own."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from lfm2_deploy.api import export
from lfm2_deploy.demo import DEMO_MODEL

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SECONDS, CLIENTS = 8, 8


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("soaked") / "demo"
    return export(str(DEMO_MODEL), place, precision="fp32", canary=False).path


def load_module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module(name)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM")
@pytest.mark.parametrize("options", [("--exact-rows",), ()], ids=["exact", "joined"])
def test_mixed_load_breaks_no_promise(
    bundle: Path, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, so that an answer that differs from the one alone must be a near tie of 1e-4."""
    soak = load_module("soak", monkeypatch)
    found = soak.soak(
        str(bundle), clients=CLIENTS, seconds=SECONDS, seed=7, options=options, quiet=True
    )
    assert found["faults"] == []
    # It was a load, on a busy computer, too: clients were answered, and greedy answers compared.
    assert found["statuses"]["200"] >= CLIENTS
    assert found["kinds"].keys() >= {"known", "hostile"}
    assert found["answers_compared"] > 0
    # Near ties are rare in float32; many would be something else.
    assert found["answers_other_by_rounding"] <= 0.1 * found["answers_compared"]


def test_slope_follows_growth_and_no_single_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = load_module("soaking.watch", monkeypatch)
    growing = [(at, 100 + 0.5 * at) for at in range(60)]
    assert watch.slope(growing) == pytest.approx(0.5)
    peaked = [(at, 900 if 20 < at < 30 else 100) for at in range(60)]
    assert watch.slope(peaked) == 0
    # More points than are used.
    assert watch.slope([(at, 2 * at) for at in range(5000)]) == pytest.approx(2)


METRICS = """# HELP lfm2_requests_total Requests.
lfm2_requests_total{code="200",endpoint="/v1/completions"} 2.0
lfm2_requests_total{code="429",endpoint="/v1/completions"} 1.0
lfm2_prompt_tokens_total 30.0
lfm2_completion_tokens_total 1.2e+01
lfm2_answers_total{finish_reason="stop"} 2.0
"""


def make_outcome(monkeypatch: pytest.MonkeyPatch, status: int | None, **more: object) -> object:
    asks, client = (load_module(f"soaking.{name}", monkeypatch) for name in ("asks", "client"))
    return client.Outcome(asks.Ask("x", "/x", most_tokens=5), status, **more)


def test_counts_that_agree_have_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    books = load_module("soaking.books", monkeypatch)
    counted = books.Counts.read(METRICS)
    replies = [
        make_outcome(monkeypatch, 200, usage=(10, 5)),
        make_outcome(monkeypatch, 200, usage=(20, 7)),
        make_outcome(monkeypatch, 429),
    ]
    assert books.compare_counts(replies, counted) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"status": None}, "status 200"),
        ({"usage": (10, 9)}, "tokens came"),
        ({"usage": (40, 5)}, "tokens of prompts"),
    ],
)
def test_counts_that_disagree_are_told(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, object], words: str
) -> None:
    books = load_module("soaking.books", monkeypatch)
    first = {"status": 200, "usage": (10, 5), **change}
    replies = [
        make_outcome(monkeypatch, **first),
        make_outcome(monkeypatch, 200, usage=(20, 7)),
    ]
    replies.append(make_outcome(monkeypatch, 429))
    faults = books.compare_counts(replies, books.Counts.read(METRICS))
    assert any(words in fault for fault in faults)
