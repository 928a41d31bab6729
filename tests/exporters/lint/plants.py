"""Where planted faults are entered, and the graphs that several of them share."""

from __future__ import annotations

from collections.abc import Callable

from .building import IrSketch, Sketch, op

Build = Callable[[bool], Sketch | IrSketch]
PLANTED: dict[str, Build] = {}


def plant(*rules: str) -> Callable[[Build], Build]:
    """Say of which rules this is the fault."""

    def enter(build: Build) -> Build:
        PLANTED.update(dict.fromkeys(rules, build))
        return build

    return enter


def matmul(
    inputs: str = "x w s z", bits: int = 4, k: int = 64, block: int = 32, **more: int
) -> Sketch:
    """One MatMulNBits of 64 inputs and 16 outputs."""
    blocks = -(-k // block)
    node = op("ms.MatMulNBits", inputs, K=k, N=16, bits=bits, block_size=block, **more)
    return Sketch(
        [node],
        {"x": ("float32", [1, "n", k])},
        {
            "w": ("uint8", [16, blocks, block * bits // 8]),
            "s": ("float32", [16, blocks]),
            "z": ("uint8", [16, -(-blocks * bits // 8)]),
            "f": ("float32", [16, blocks]),
            "g": ("int32", [k]),
        },
    )


def attention(
    inputs: str = "q k v pk pv len total",
    tokens: int | str = "n",
    computed: bool = False,
    cache: str = "float32",
    **more: float,
) -> Sketch:
    """One GroupQueryAttention of four heads over two, in buffers of 128 tokens."""
    node = op("ms.GroupQueryAttention", inputs, "y nk nv", num_heads=4, kv_num_heads=2, **more)
    total = [op("ReduceMax", "len", "total", keepdims=0)] if computed else []
    given = {
        "q": ("float32", [1, tokens, 64]),
        "k": ("float32", [1, tokens, 32]),
        "v": ("float32", [1, tokens, 32]),
        "pk": (cache, [1, 2, 128, 16]),
        "pv": (cache, [1, 2, 128, 16]),
        "len": ("int32", [1]),
    }
    given |= {} if computed else {"total": ("int32", [1])}
    norms = {"norm": ("float32", [16]), "rotation": ("float32", [128, 8])}
    return Sketch([*total, node], given, norms)


def experts(
    inputs: str = "x r w s - v t",
    name: str = "ms.QMoE",
    tokens: int | str = "n",
    **more: object,
) -> Sketch:
    """One QMoE of two experts, 64 wide."""
    attributes = {"k": 1, "expert_weight_bits": 4, "accuracy_level": 4, "swiglu_fusion": 1}
    attributes |= {"activation_type": "swiglu", "block_size": 32} | more
    kept = {key: value for key, value in attributes.items() if value is not None}
    return Sketch(
        [op(name, inputs, **kept)],
        {"x": ("float32", [tokens, 64]), "r": ("float32", [tokens, 2])},
        {
            "w": ("uint8", [2, 128, 32]),
            "s": ("float32", [2, 128, 2]),
            "v": ("uint8", [2, 64, 32]),
            "t": ("float32", [2, 64, 2]),
        },
    )


def conv(**attributes: object) -> Sketch:
    """One CausalConvWithState, 64 wide."""
    return Sketch(
        [op("ms.CausalConvWithState", "x w - p", "y state", **attributes)],
        {"x": ("float32", [1, 64, "n"]), "p": ("float32", [1, 64, 2])},
        {"w": ("float32", [64, 1, 3])},
    )


QK_NORM = "q k v pk pv len total rotation rotation - - - - - norm"
