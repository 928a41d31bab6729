"""Read a JSON object that somebody else wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lfm2_deploy.errors import Lfm2DeployError

# Far above any config or tokenizer setting, far below what would hurt to read.
_LARGEST_BYTES = 64 * 2**20


def read_json_object(file: Path, error: type[Lfm2DeployError], advice: str) -> dict[str, Any]:
    """The object in a file.

    Args:
        file: must exist.
        error: what to raise.
        advice: what the user should do next; ends the message.

    Raises:
        Lfm2DeployError: of the type `error`, where the file is absent, too large, not
            JSON, nested too deeply, or holds something else than an object.
    """
    try:
        size = file.stat().st_size
        if size > _LARGEST_BYTES:
            raise error(f"{file} has {size:,} bytes, too many for what it should hold; {advice}")
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as cause:
        raise error(f"{file} is not readable JSON ({cause}); {advice}") from cause
    if not isinstance(value, dict):
        raise error(f"{file} holds a {type(value).__name__}, expected a JSON object; {advice}")
    return value
