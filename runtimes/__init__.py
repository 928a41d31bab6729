"""Runtime adapters: a bundle's graph, run behind `contracts.Runtime`."""

from __future__ import annotations

import os

from lfm2_deploy.telemetry import switch_off_openvino

# onnxruntime's wheels of 1.32 keep a device's number and a queue of events for Microsoft in the
# user's cache, on Linux, too. Read when onnxruntime is imported, so it is set before; who wants
# telemetry sets ORT_DISABLE_TELEMETRY=0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
switch_off_openvino()
