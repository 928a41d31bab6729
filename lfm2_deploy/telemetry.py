"""Other packages' telemetry, switched off before they are imported; users can put it back.

Knows packages by name only. onnxruntime's and Ray's have variables of their own, which are set
where they are imported (`runtimes/__init__.py`, `exporters/__init__.py`).
"""

from __future__ import annotations

import os
import sys
from typing import Any

# With 1, OpenVINO gathers what it gathers.
SWITCH = "LFM2_DEPLOY_OPENVINO_TELEMETRY"
_PACKAGE = "openvino_telemetry"


def switch_off_openvino() -> None:
    """Keep `import openvino` from telling www.google-analytics.com of it.

    OpenVINO 2026.4 does so whenever it finds openvino_telemetry 2025.2, without asking, and keeps
    a number for the user in ~/intel. No variable forbids it but CI=true, which means much else, and
    the file that declines it is the user's own, for all programs. So its package is not to be
    found in this process, and OpenVINO takes the stub that it has for that. In a process that
    imported it before, nothing is changed.
    """
    if os.environ.get(SWITCH) != "1":
        # None makes Python refuse the import; typeshed knows modules only.
        nowhere: Any = None
        sys.modules.setdefault(_PACKAGE, nowhere)
