"""Tiny random checkpoints that transformers made, and bundles of them.

Hidden 128 in two heads of 64, six layers in which both operators come before and
after each other, weights wide enough that attention, routing and the experts' bias
all decide what comes out. Everything here is made once a session and is read-only.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# As `cli.main` sets it: otherwise torch's threads spin, and a busy machine takes minutes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A shell that starts a run in the background has it ignore Ctrl-C, and every program that a test
# starts and interrupts would ignore it, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Bundles are loaded hundreds of times, and not to check this machine: tests/canary does that.
os.environ.setdefault("LFM2_DEPLOY_CANARY", "off")
# What a test finds is not for the next one.
os.environ.setdefault("LFM2_DEPLOY_REMEMBER", "0")
# Nor are the models that whoever runs the tests has; this folder is never made.
os.environ["LFM2_DEPLOY_STORE"] = str(Path(__file__).parent / "no-store")

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import Lfm2Config, Lfm2ForCausalLM

from lfm2_deploy import export
from lfm2_deploy.bundle import Bundle
from lfm2_deploy.contracts import Runtime
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.registry import find_runtime
from lfm2_deploy.telemetry import switch_off_openvino

switch_off_openvino()

BundleOf = Callable[..., Bundle]
OpenOrt = Callable[[Bundle], Runtime]

SHAPE: Mapping[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 6,
    "layer_types": ["conv", "full_attention", "conv", "conv", "full_attention", "conv"],
    "intermediate_size": 192,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 7,
    "pad_token_id": 0,
}
EXPERTS: Mapping[str, Any] = {
    "num_experts": 8,
    "num_experts_per_tok": 4,
    "num_dense_layers": 2,
    "moe_intermediate_size": 96,
    "use_expert_bias": True,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
}


@pytest.fixture(scope="session")
def transformers_models() -> Mapping[str, torch.nn.Module]:
    """The models as transformers built them, by kind."""
    dense = Lfm2ForCausalLM(Lfm2Config(**SHAPE, block_auto_adjust_ff_dim=False))
    _randomize(dense.eval(), seed=0)
    try:
        from transformers import Lfm2MoeConfig, Lfm2MoeForCausalLM
    except ImportError:  # transformers 4.57, beside which optimum-onnx is tested
        return {"dense": dense}
    moe = Lfm2MoeForCausalLM(Lfm2MoeConfig(**SHAPE, **EXPERTS))
    _randomize(moe.eval(), seed=1)
    return {"dense": dense, "moe": moe, "moe_fused": moe}


def _randomize(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in weights:
        if not tensor.is_floating_point() or name.endswith("inv_freq"):
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("expert_bias"):
            value = 0.2 * noise
        elif name.endswith(("q_layernorm.weight", "k_layernorm.weight")):
            # Sharp attention: queries and keys twice as long as a norm makes them.
            value = 2 + 0.3 * noise
        elif name.endswith("norm.weight"):
            value = 1 + 0.3 * noise
        elif name.endswith("embed_tokens.weight"):
            value = noise
        else:
            value = 1.5 * noise / tensor.shape[-1] ** 0.5
        tensor.data.copy_(value)


@pytest.fixture(scope="session")
def checkpoints(
    transformers_models: Mapping[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Path]:
    """Checkpoint folders by kind: "dense", "moe" (a tensor for each expert), "moe_fused"."""
    root = tmp_path_factory.mktemp("checkpoints")
    for kind in sorted({"dense", "moe"} & transformers_models.keys()):
        transformers_models[kind].save_pretrained(root / kind)
    if "moe" in transformers_models:
        _fuse(root / "moe", root / "moe_fused")
    return {folder.name: folder for folder in root.iterdir()}


def _fuse(source: Path, target: Path) -> None:
    """Copy a checkpoint with the experts of each layer stacked, gate rows before up rows."""
    shutil.copytree(source, target)
    tensors = load_file(source / "model.safetensors")
    prefixes = {name.split(".experts.")[0] for name in tensors if ".experts." in name}
    for prefix in prefixes:
        w1, w2, w3 = (
            np.stack([tensors.pop(f"{prefix}.experts.{e}.{w}.weight") for e in range(8)])
            for w in ("w1", "w2", "w3")
        )
        tensors[f"{prefix}.experts.gate_up_proj"] = np.concatenate([w1, w3], axis=1)
        tensors[f"{prefix}.experts.down_proj"] = w2
    save_file(tensors, target / "model.safetensors")


@pytest.fixture(scope="session")
def vision_models() -> Mapping[str, Any]:
    """Vision-language models around those text models, of other weights."""
    from .vision import make_vision_model

    texts = {
        "dense": {"model_type": "lfm2", **SHAPE, "block_auto_adjust_ff_dim": False},
        "moe": {"model_type": "lfm2_moe", **SHAPE, **EXPERTS},
    }
    models = {kind: make_vision_model(text) for kind, text in texts.items()}
    for seed, model in enumerate(models.values()):
        _randomize(model, 10 + seed)
    return models


@pytest.fixture(scope="session")
def vision_checkpoints(
    vision_models: Mapping[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Path]:
    """The same, saved by transformers."""
    root = tmp_path_factory.mktemp("vision")
    for kind, model in vision_models.items():
        model.save_pretrained(root / kind)
    return {kind: root / kind for kind in vision_models}


@pytest.fixture(scope="session")
def bundle_of(
    checkpoints: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> BundleOf:
    """Export a checkpoint, given its kind and a precision; each is exported once."""
    root = tmp_path_factory.mktemp("bundles")

    @functools.cache
    def make(kind: str, precision: str, target: str) -> Bundle:
        place = root / f"{kind}-{target}-{precision}"
        # A chunk that rows of a few tokens fill several times, and not evenly.
        chunk = 7 if target == "npu" else None
        source = str(checkpoints[kind])
        return export(source, place, target=target, precision=precision, chunk=chunk)

    # Through a function, so that a target left out and "cpu" are one bundle.
    return lambda kind, precision, target="cpu": make(kind, precision, target)


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The demo model in int4 for the CPU, with its tokenizer and canary."""
    return export(str(DEMO_MODEL), tmp_path_factory.mktemp("demo") / "bundle")


@pytest.fixture(scope="session")
def open_ort() -> OpenOrt:
    """Load a bundle with ONNX Runtime, on one thread."""

    def load(bundle: Bundle) -> Runtime:
        runtime: Runtime = find_runtime("ort")(bundle, threads=1)
        return runtime

    return load
