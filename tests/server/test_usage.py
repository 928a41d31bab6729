"""What is told of tokens and time."""

from __future__ import annotations

from lfm2_deploy.answers.events import Answer, Usage
from lfm2_deploy.server.usage import describe_usage

from .fake_engine import read_demo


def test_speed_of_a_prompt_is_told_only_where_some_of_it_was_computed() -> None:
    tokenizer, _ = read_demo()
    for reused, expected in ((10, None), (6, 2.0)):
        usage = Usage(10, 3, reused_tokens=reused, prefill_seconds=2.0)
        told = describe_usage([Answer("a", "", (), "stop", usage)], tokenizer)
        assert told["x_lfm2"]["prompt_tokens_per_second"] == expected
