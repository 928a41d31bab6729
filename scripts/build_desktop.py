"""Build samples/desktop and the command into a folder that needs no Python, and try it.

    python scripts/build_desktop.py BUNDLE [--out build/desktop]

Makes an environment that has what running needs and nothing else, runs PyInstaller in it on
installers/pyinstaller/lfm2_desktop.spec, and starts what came out with no Python on its path:
`lfm2-deploy generate` must print text, and the window must load the bundle (without a screen, and
on Linux only). Exits with 1 where it does not. Takes 2 to 3 minutes on 2 cores, of which half is
downloading; 320 MB on disk.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
SPEC = ROOT / "installers" / "pyinstaller" / "lfm2_desktop.spec"
# 6.12.0 loses references to None on Python 3.11, until Python aborts.
PACKAGES = ["PySide6-Essentials>=6.8,<6.12", "pyinstaller>=6.11"]
SECONDS = 60


def make_environment(folder: Path) -> Path:
    """An environment with the package, Qt and PyInstaller; its folder of programs."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    python = programs / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", f"{ROOT}[serve]", *PACKAGES], check=True)
    return programs


def build(programs: Path, bundle: Path, out: Path) -> Path:
    """Run PyInstaller; the folder it made."""
    places = ["--distpath", out, "--workpath", out / "work"]
    command = [programs / "pyinstaller", "-y", "--log-level", "WARN", *places, SPEC]
    subprocess.run([*command, "--", "--bundle", bundle], check=True, cwd=out)
    return out / "lfm2-desktop"


def bare_environment() -> dict[str, str]:
    """Variables without which a program cannot start; no path that leads to a Python."""
    kept = ("SYSTEMROOT", "TEMP", "HOME", "USERPROFILE", "LOCALAPPDATA")
    return {
        **{name: os.environ[name] for name in kept if name in os.environ},
        "PATH": os.devnull,
        "LANG": "C.UTF-8",
        "QT_QPA_PLATFORM": "offscreen",
    }


def try_command(folder: Path, bundle: Path) -> None:
    """Let the command answer."""
    words = ["generate", bundle, "It was", "--max-new-tokens", "20"]
    start = time.perf_counter()
    done = subprocess.run(
        [folder / "lfm2-deploy", *words],
        env=bare_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    print(f"command: {time.perf_counter() - start:.2f} s: {done.stdout.strip()!r}")
    if done.returncode or len(done.stdout.split()) < 5:
        sys.exit(f"the command failed: {done.stderr}")


def try_window(folder: Path) -> None:
    """Open the window, wait until the model's weights are mapped, and look at what else is."""
    start = time.perf_counter()
    with subprocess.Popen([folder / "lfm2-desktop"], env=bare_environment()) as program:
        maps = Path(f"/proc/{program.pid}/maps")
        while "onnxruntime_pybind11_state" not in (found := maps.read_text()):
            if program.poll() is not None or time.perf_counter() > start + SECONDS:
                program.kill()
                sys.exit(f"the window did not load its bundle (code {program.returncode})")
            time.sleep(0.05)
        print(f"window: ONNX Runtime is loaded after {time.perf_counter() - start:.2f} s")
        time.sleep(2)
        alive = program.poll() is None
        program.kill()
    files = {line.split()[-1] for line in found.splitlines() if "/" in line}
    foreign = [file for file in files if "python" in file and str(folder) not in file]
    if foreign or not alive:
        sys.exit(f"the window ended, or uses a Python from elsewhere: {foreign}")


def main() -> None:
    """Build and try."""
    parser = argparse.ArgumentParser(description="Build the desktop program and try it.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "desktop")
    arguments = parser.parse_args()
    out, bundle = arguments.out.resolve(), arguments.bundle.resolve()
    out.mkdir(parents=True, exist_ok=True)
    folder = build(make_environment(out / "environment"), bundle, out)
    size = sum(
        file.stat().st_size
        for file in folder.rglob("*")
        if file.is_file() and not file.is_symlink()
    )
    print(f"{folder}: {size / 1e6:.0f} MB")
    try_command(folder, bundle)
    if sys.platform == "linux":
        try_window(folder)


if __name__ == "__main__":
    main()
