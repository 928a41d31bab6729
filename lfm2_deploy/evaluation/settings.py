"""How tasks are run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """How to run tasks.

    Args:
        limit: at most so many questions of each task; all when None.
        few_shot: examples in front of each question; as each task says when None.
        batch_size: rows that generate together.
        chat: lay prompts out by the model's chat template.
    """

    limit: int | None = None
    few_shot: int | None = None
    batch_size: int = 1
    chat: bool = False
