"""Checkpoint -> bundle: trace blocks, stitch them, lower them to a target, stream the weights."""

from __future__ import annotations

import os

from lfm2_deploy.telemetry import switch_off_openvino

# Ray reports a cluster that it starts unless told otherwise before it is imported (ray 2.50).
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
switch_off_openvino()
