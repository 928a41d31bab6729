"""Checkpoint -> bundle: trace blocks, stitch them, lower them to a target, stream the weights."""

from __future__ import annotations

import os

# Ray reports a cluster that it starts unless told otherwise before it is imported (ray 2.50).
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
