"""How ONNX Runtime is set up, everywhere alike."""

from __future__ import annotations

import onnxruntime as ort

PROVIDER = "CPUExecutionProvider"


def make_options(threads: int | None) -> ort.SessionOptions:
    """Session options.

    Args:
        threads: threads of one operator; None for one on each physical core.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    # The arena keeps the largest prompt's activations, doubled: 84 MB of LFM2-350M's 615 MB,
    # and no speed that could be measured (onnxruntime 1.32.0, 350M and 8B-A1B, int4).
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    # Threads wait by spinning while a call runs, which decodes 12 % faster; between calls, when
    # an application waits for its user, they sleep.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options
