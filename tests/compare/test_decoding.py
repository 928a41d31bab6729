"""Faults that only single tokens show, which no window read as a prompt does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfm2_deploy.api import compare_models
from lfm2_deploy.commands.compare_report import print_report
from lfm2_deploy.compare.decoding import Piece, decode_windows, summarize_pieces
from lfm2_deploy.compare.metrics import PositionScores
from lfm2_deploy.compare.protocol import Windows
from lfm2_deploy.compare.report import render_page
from lfm2_deploy.compare.result import Verdict
from lfm2_deploy.compare.result_json import describe, read_report
from lfm2_deploy.compare.verdict import Limits
from lfm2_deploy.contracts import ignore_progress
from runtimes.fake import ALL_CAPABILITIES, FakeRuntime, hash_logits

from ..canary.faults import kv_row_stale, plant  # noqa: TID252
from .whole import Checkpoints, cache, settings

__all__ = ["cache"]  # a fixture


def piece(alone: Sequence[float], together: Sequence[float]) -> Piece:
    def scores(divergence: Sequence[float]) -> PositionScores:
        values, same = np.array(divergence), np.ones(len(divergence), bool)
        return PositionScores(values, same, values, values, values, values)

    return Piece(scores(alone), scores(together))


@pytest.mark.usefixtures("cache")
def test_fault_of_decoding_breaks_the_limit_that_prompts_keep(
    checkpoints: Checkpoints,
    bundle_of: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = bundle_of("dense", "fp32")
    faulty = plant(good, tmp_path / "faulty", kv_row_stale)
    report = compare_models(
        [faulty, good],
        reference=f"torch:{checkpoints['dense']}",
        settings=settings(limits=Limits(max_kld=0.01)),
        threads=1,
    )
    wrong, right = report.subjects
    assert wrong.decoding is not None
    assert right.decoding is not None
    assert wrong.scores is not None
    assert wrong.scores.divergence.mean.value < 0.01
    assert wrong.decoding.stands_out
    assert not right.decoding.stands_out
    assert right.decoding.divergence.value < 1e-9  # float32's last bits, squared
    assert report.verdict.failed == ("faulty",)
    assert "token by token" in report.verdict.reasons[0]
    assert read_report(describe(report)) == report
    # Told once: as the reason where it breaks a limit, and else as what must not be missed.
    notice = "decoding computes something else than prompts do"
    assert notice not in render_page(report)
    assert notice in render_page(replace(report, verdict=Verdict(True, "")))
    print_report(report)
    shown = " ".join(capsys.readouterr().out.split())
    assert "look at what is kept between calls" in shown


def test_rounding_makes_some_positions_better_and_some_worse() -> None:
    # Both ways round by chance: what is lost in one place is won in another.
    rng = np.random.default_rng(0)
    together = rng.lognormal(-4, 1, (8, 16))
    alone = together * rng.lognormal(0, 0.5, (8, 16))
    found = summarize_pieces(
        [piece(a, t) for a, t in zip(alone, together, strict=True)], float(together.max())
    )
    assert found.positions == 128
    assert found.excess == pytest.approx(alone.mean() - together.mean())
    assert not found.stands_out


def test_one_wrong_token_of_many_stands_out() -> None:
    alone = np.full((4, 16), 0.01)
    alone[2, 5] = 9.0
    pieces = [piece(row, [0.01] * 16) for row in alone]
    assert summarize_pieces(pieces, 0.05).stands_out
    assert not summarize_pieces(pieces, 3.0).stands_out


def test_no_number_stands_out() -> None:
    found = summarize_pieces([piece([math.nan] * 4, [0.1] * 4)], 0.1)
    assert found.stands_out


class _Truth:
    """A reference that says what the fake runtime does."""

    vocab_size, floor, resolution, states = 32, None, 0.0, {}

    def read(self, window: int) -> Any:
        tokens = WINDOWS.read_by(window)
        logits = hash_logits(32)
        return np.stack([logits(tokens[: n + 1]) for n in range(WINDOWS.first, len(tokens))])


WINDOWS = Windows(tuple(tuple(range(1 + n, 13 + n)) for n in range(3)), None, "numbers")


def test_single_tokens_are_held_against_their_own_positions() -> None:
    zeros = [piece([0.0] * WINDOWS.positions, [0.0] * WINDOWS.positions).together] * 3
    runtime = FakeRuntime(hash_logits(32), vocab_size=32)
    found = decode_windows(runtime, WINDOWS, zeros, _Truth(), ignore_progress, "decoding")
    assert found is not None
    assert found.positions == 3 * WINDOWS.positions
    assert found.divergence.value == 0


def test_where_windows_are_read_token_by_token_nothing_is_read_again() -> None:
    alone = replace(ALL_CAPABILITIES, scores_all=False)
    runtime = FakeRuntime(hash_logits(32), vocab_size=32, capabilities=alone)
    assert decode_windows(runtime, WINDOWS, [], _Truth(), ignore_progress, "decoding") is None
