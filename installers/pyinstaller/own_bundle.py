"""Runs before a frozen program: a bundle that was put inside is used where none is given."""

import sys
from pathlib import Path

_bundle = Path(sys._MEIPASS) / "bundle"
if not sys.argv[1:] and _bundle.is_dir():
    sys.argv.append(str(_bundle))
