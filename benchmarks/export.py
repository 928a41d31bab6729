"""Time, memory and cores of exporting models of different sizes, side by side.

    python benchmarks/export.py synthetic:LFM2-8B-A1B synthetic:LFM2-24B-A2B

Each is exported in a process of its own and removed again. Prints a Markdown table.
Unix only: it asks the system what its children took.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROGRAM = "from lfm2_deploy.cli import main; raise SystemExit(main())"


def measure(model: str, precision: str, folder: Path) -> tuple[float, float, float, int]:
    """Seconds, cores kept busy, most memory in bytes, and the bundle's size in bytes."""
    place = folder / "bundle"
    words = [sys.executable, "-c", PROGRAM, "export", model, str(place), "--precision", precision]
    started = time.monotonic()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    if status:
        raise SystemExit(f"exporting {model} failed: run it by hand to see why")
    size = sum(file.stat().st_size for file in place.iterdir())
    return seconds, (usage.ru_utime + usage.ru_stime) / seconds, usage.ru_maxrss * 1024.0, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--folder", type=Path, help="where there is room for one bundle")
    args = parser.parse_args()
    print("| model | time | cores busy | most memory | bundle |")
    print("|---|---|---|---|---|")
    for model in args.models:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            seconds, cores, memory, size = measure(model, args.precision, Path(folder))
        print(
            f"| {model} | {seconds:.0f} s | {cores:.2f} | {memory / 2**30:.2f} GiB "
            f"| {size / 1e9:.2f} GB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
