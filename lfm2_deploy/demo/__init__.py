"""The demo model, shipped inside the package: a checkpoint folder like any other."""

from __future__ import annotations

from pathlib import Path

DEMO_MODEL = Path(__file__).parent / "lfm2-demo-9m"
