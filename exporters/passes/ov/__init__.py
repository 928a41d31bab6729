"""Lowerings for OpenVINO: standard ONNX operators in the forms that its importer and plugins fuse.

Weights stay constants: signed integers through DequantizeLinear, which OpenVINO keeps
compressed. `static_frame.py` makes graphs of fixed shape for the NPU, `stateful_frame.py`
the one of any length for CPU and GPU; the rest serves both.
"""
