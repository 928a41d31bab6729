"""Making bundles: a checkpoint's blocks, traced into graphs that a target's runtime can run."""

from __future__ import annotations

import os

# Ray reports a cluster that it starts unless told otherwise before it is imported (ray 2.50).
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
