"""What killed processes left in the folder of references, and what others still use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from lfm2_deploy.compare import reference_cache
from lfm2_deploy.compare.reference_cache import keep_for_now, sweep

LEFT = (".once-1234", ".0123abcd.partial")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of references with one that is kept, and what two killed processes left."""
    for name in (*LEFT, "0123abcd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "logits.f32").write_bytes(b"x" * 100)
    (tmp_path / ".once-1234.lock").touch()
    (tmp_path / "0123abcd.lock").touch()
    monkeypatch.setattr(reference_cache, "find_folder", lambda: tmp_path)
    return tmp_path


def list_folders(root: Path) -> set[str]:
    return {entry.name for entry in root.iterdir() if entry.is_dir()}


def test_what_killed_processes_left_is_removed(cache: Path) -> None:
    sweep(cache)
    assert list_folders(cache) == {"0123abcd"}
    assert not (cache / ".once-1234.lock").exists()


@pytest.mark.parametrize(
    ("lock", "folder"), [(".once-1234.lock", LEFT[0]), ("0123abcd.lock", LEFT[1])]
)
def test_what_another_process_uses_stays(cache: Path, lock: str, folder: str) -> None:
    with FileLock(cache / lock):
        sweep(cache)
    assert list_folders(cache) == {"0123abcd", folder}


def test_making_a_reference_sweeps_and_is_swept_once_killed(cache: Path) -> None:
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from lfm2_deploy.compare import reference_cache\n"
        "root = Path(sys.argv[1])\n"
        "reference_cache.find_folder = lambda: root\n"
        "with reference_cache._make_folder_for_now() as folder:\n"
        "    (folder / 'logits.f32').write_bytes(b'x')\n"
        "    print(folder.name, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(cache)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        name = other.stdout.readline().strip()
        assert list_folders(cache) == {"0123abcd", name}
        sweep(cache)
        assert name in list_folders(cache)
        other.kill()
    sweep(cache)
    assert list_folders(cache) == {"0123abcd"}


def test_folder_for_now_goes_when_its_reference_fails(cache: Path) -> None:
    class Window:
        chunks = ((1, 2, 3, 4),)
        positions = 1

    def fail() -> object:
        raise MemoryError

    with pytest.raises(MemoryError), keep_for_now(Window(), 16, fail):  # type: ignore[arg-type]
        pass
    assert list_folders(cache) == {"0123abcd"}
    assert not list(cache.glob(".once-*"))
