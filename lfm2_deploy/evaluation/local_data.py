"""The data of the tasks in `tasks/`, which names these functions in its YAML files.

lm-evaluation-harness calls them; they need its package `datasets`, and no network. Read
directly, and not by `datasets.load_dataset`, they leave nothing in the user's cache.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TASK_FOLDER = Path(__file__).parent / "tasks"


def load_last_words(**_: Any) -> Any:
    """Passages without their last word: "context" and "word"."""
    return _load("last_word")


def load_endings(**_: Any) -> Any:
    """Passages without their last clause: "context", four "choices" and the "answer"'s place."""
    return _load("ending")


def load_passages(**_: Any) -> Any:
    """Whole passages: "text"."""
    return _load("passage")


def _load(name: str) -> Any:
    from datasets import Dataset, DatasetDict

    lines = (TASK_FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return DatasetDict({"test": Dataset.from_list([json.loads(line) for line in lines])})
