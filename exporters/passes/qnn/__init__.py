"""Lowerings for Qualcomm's HTP: operators that onnxruntime-qnn takes, at fixed shapes.

First a float graph, the same for calibration and for every precision but for how weights are
stored; then, where activations are quantized too, `activations.py` puts QuantizeLinear and
DequantizeLinear around every value. Frame, attention and cuts are those of `passes/ov`.
"""
