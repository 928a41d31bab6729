"""Passes for GPUs behind ONNX Runtime: WebGPU and DirectML.

`frame` gives a graph the inputs of `lfm2_deploy/gpu_graphs.py`; each of the others lowers one
primitive, by operators that either both providers have, or one of them.
"""
