"""Lowerings for OpenVINO: standard ONNX operators in the forms that its importer and plugins fuse.

Weights stay constants: signed integers through DequantizeLinear, which OpenVINO keeps
compressed (`weights.py`). `static_frame.py` makes graphs of fixed shape for NPUs,
`stateful_frame.py` the one of any length for CPU and GPU; attention and convolution have a
lowering for each, the rest serves both. `cut_experts.py` takes a mixture of experts apart.
"""
