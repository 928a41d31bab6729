"""A record of rounding with made-up numbers, as a manifest holds it."""

from __future__ import annotations

from lfm2_deploy.quantization_record import LayerError, QuantizationRecord, TensorError

_MIXERS = {
    "conv": ("conv.in_proj", "conv.out_proj"),
    "attention": tuple(f"self_attn.{n}" for n in ("q_proj", "k_proj", "v_proj", "out_proj")),
}
ATTENTION = (2, 5, 8, 10, 12, 14)


def make_record(layers: int = 16, dense: int = 2) -> QuantizationRecord:
    """A mixture of experts with `dense` layers before; its third layer has 8 bits."""
    tensors = [TensorError("model.embed_tokens.weight", 8, 256, 0.0041, 0.0041)]
    for layer in range(layers):
        mixer = _MIXERS["attention" if layer in ATTENTION else "conv"]
        forward = "feed_forward" if layer < dense else "feed_forward.experts.*"
        for rank, unit in enumerate((*mixer, *(f"{forward}.{w}" for w in ("w1", "w3", "w2")))):
            bits = 8 if layer == 2 or unit.endswith("v_proj") else 4
            error = (0.006 if bits == 8 else 0.07) * (1 + 0.13 * ((layer * 7 + rank * 3) % 5))
            largest = 1.8 * error if "*" in unit else error
            name = f"model.layers.{layer}.{unit}.weight"
            tensors.append(TensorError(name, bits, 32, error, largest))
    outputs = tuple(
        LayerError(i, 0.02 + 0.006 * i, *((31, 540, 2) if i >= dense else ()))
        for i in range(layers)
    )
    return QuantizationRecord("gptq", "austen.txt", "00", 16_384, 64, 0, tuple(tensors), outputs)
