from __future__ import annotations

from pathlib import Path

import pytest

from lfm2_deploy.canary.script import choose_tokens, write_script
from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.demo import DEMO_MODEL

IDS = list(range(640))


def test_rows_hold_every_kind_of_call() -> None:
    text, steps, single, long = write_script(IDS, 0, 1024)
    assert [len(call) for call in steps.calls] == [2, *[1] * 14]
    assert [len(call) for call in text.calls] == [12, 1, 1, 5, 1, 1]
    assert [len(call) for call in single.calls] == [1, 1, 3, 1, 1]
    assert [len(call) for call in long.calls] == [40, 1, 1, 1]
    assert text.ends == (12, 13, 14, 19, 20, 21)


@pytest.mark.parametrize(("chunk", "longest"), [(64, 71), (128, 135), (512, 519), (1024, 40)])
def test_prompt_goes_past_a_chunk_that_is_not_too_long(chunk: int, longest: int) -> None:
    assert len(write_script(IDS, chunk, 2048)[-1].calls[0]) == longest


@pytest.mark.parametrize("context", [1, 2, 3, 5, 8, 20, 21, 43])
def test_rows_fit_a_short_context(context: int) -> None:
    for row in write_script(IDS, 0, context):
        assert 1 <= len(row.tokens) <= context
        assert all(row.calls)


def test_rows_begin_alike_and_differ_from_then_on() -> None:
    rows = write_script(IDS, 0, 1024)
    assert {row.tokens[0] for row in rows} == {IDS[0]}
    assert len({row.tokens[1] for row in rows}) == 4


def test_tokens_are_of_a_text_where_there_is_a_tokenizer() -> None:
    ids = choose_tokens(open_checkpoint(str(DEMO_MODEL)))
    # Begins as the demo model's texts do, and each word but the start is a word of the page.
    assert len(ids) > 300
    assert len(set(ids)) > 100


def test_tokens_are_random_and_the_same_where_there_is_none(tmp_path: Path) -> None:
    checkpoint = open_checkpoint("synthetic:tiny-moe")
    ids = choose_tokens(checkpoint)
    assert ids == choose_tokens(checkpoint)
    assert all(0 <= token < checkpoint.config.vocab_size for token in ids)
