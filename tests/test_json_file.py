"""JSON that somebody else wrote is read with one clear error."""

from __future__ import annotations

from pathlib import Path

import pytest

from lfm2_deploy import json_file
from lfm2_deploy.errors import BundleError
from lfm2_deploy.json_file import read_json_object


def test_object_is_returned(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_json_object(tmp_path / "a.json", BundleError, "mend it") == {"a": 1}


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", "null", "[" * 200_000, '{"a": ' + "9" * 5000 + "}"]
)
def test_anything_else_is_one_line_with_advice(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(BundleError, match="mend it") as caught:
        read_json_object(tmp_path / "a.json", BundleError, "mend it")
    assert len(str(caught.value).splitlines()) == 1


def test_huge_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_file, "_LARGEST_BYTES", 10)
    (tmp_path / "a.json").write_text('{"a": "longer than ten"}')
    with pytest.raises(BundleError, match="too many for what it should hold"):
        read_json_object(tmp_path / "a.json", BundleError, "mend it")
