"""The model inside the package is a small, trained LFM2 of the mixture-of-experts kind."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Lfm2MoeForCausalLM

import lfm2_deploy
from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.compare.metrics import negative_log_likelihood
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import Checkpoint
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.model.moe import Router
from lfm2_deploy.tokenizer import Tokenizer
from runtimes.reference import ReferenceRuntime, load

PACKAGE = Path(next(iter(lfm2_deploy.__path__)))

# Jane Austen, Pride and Prejudice, 1813.
PASSAGE = (
    "It is a truth universally acknowledged, that a single man in possession of a good "
    "fortune, must be in want of a wife. However little known the feelings or views of such "
    "a man may be on his first entering a neighbourhood, this truth is so well fixed in the "
    "minds of the surrounding families, that he is considered as the rightful property of "
    "some one or other of their daughters."
)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint(str(DEMO_MODEL))


@pytest.fixture(scope="module")
def config(checkpoint: Checkpoint) -> Lfm2Config:
    return checkpoint.config


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoint) -> ReferenceRuntime:
    return load(checkpoint)


@pytest.fixture(scope="module")
def passage() -> list[int]:
    return Tokenizer.from_folder(DEMO_MODEL).encode(PASSAGE, add_special_tokens=True)


def test_structure_is_that_of_the_large_models(config: Lfm2Config) -> None:
    assert config.moe is not None
    assert set(config.layer_types) == {"conv", "full_attention"}
    assert config.moe.num_dense_layers == 2
    assert [config.is_moe_layer(layer) for layer in range(3)] == [False, False, True]
    moe_layers = config.layer_types[config.moe.num_dense_layers :]
    assert set(moe_layers) == {"conv", "full_attention"}
    assert config.moe.num_experts_per_tok == 4
    assert config.moe.num_experts >= 8
    assert config.moe.use_expert_bias
    assert config.tie_word_embeddings
    assert (config.conv_L_cache, config.head_dim) == (3, 64)
    assert config.num_attention_heads > config.num_key_value_heads


def test_every_width_is_a_multiple_of_64(config: Lfm2Config) -> None:
    assert config.moe is not None
    widths = [
        config.hidden_size,
        config.intermediate_size,
        config.moe.moe_intermediate_size,
        config.vocab_size,
        config.num_attention_heads * config.head_dim,
        config.num_key_value_heads * config.head_dim,
    ]
    assert [width % 64 for width in widths] == [0] * len(widths)


def test_every_router_has_a_bias_that_matters(checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    layers = [i for i in range(config.num_hidden_layers) if config.is_moe_layer(i)]
    assert len(layers) == config.num_hidden_layers - 2
    for layer in layers:
        bias = checkpoint.read(f"model.layers.{layer}.feed_forward.expert_bias")
        assert np.count_nonzero(bias) == len(bias)
        # The same bias for every expert would select nothing.
        assert np.ptp(bias) > 0


def list_shipped(folder: Path) -> list[bytes]:
    """Content of every file that goes into the wheel."""
    shipped = [f for f in folder.rglob("*") if f.is_file() and f.suffix != ".pyc"]
    assert shipped
    return [file.read_bytes() for file in shipped]


def test_demo_model_is_small_enough_to_ship() -> None:
    assert sum(map(len, list_shipped(DEMO_MODEL))) < 18e6


def test_package_is_small_enough_to_download() -> None:
    # A wheel compresses each file by itself, as zlib does.
    assert sum(len(zlib.compress(content)) for content in list_shipped(PACKAGE)) < 18e6


def test_special_tokens_have_lfm2s_ids(config: Lfm2Config) -> None:
    tokenizer = Tokenizer.from_folder(DEMO_MODEL)
    names = ["<|pad|>", "<|startoftext|>", "<|im_start|>", "<|im_end|>"]
    assert [tokenizer.token_id(name) for name in names] == [0, 1, 6, 7]
    assert tokenizer.encode("", add_special_tokens=True) == [1]
    assert tokenizer.vocab_size <= config.vocab_size
    raw = json.loads((DEMO_MODEL / "config.json").read_text())
    roles = {role: raw[f"{role}_token_id"] for role in ("pad", "bos", "eos")}
    assert roles == {"pad": 0, "bos": 1, "eos": 7}
    for role, token_id in roles.items():
        assert tokenizer.token_id(tokenizer.special_tokens[f"{role}_token"]) == token_id


def test_transformers_loads_it_and_computes_the_same(
    reference: ReferenceRuntime, passage: list[int]
) -> None:
    assert AutoTokenizer.from_pretrained(DEMO_MODEL)(PASSAGE)["input_ids"] == passage
    loaded: Any = Lfm2MoeForCausalLM.from_pretrained(
        DEMO_MODEL, dtype=torch.float32, output_loading_info=True
    )
    model, report = loaded
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        theirs = model(torch.tensor([passage])).logits[0].numpy()
    ours = reference.open().score([passage])[0]
    # The same float32 sums in other orders: a few last places (2e-6) of logits up to 20.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def perplexity(reference: ReferenceRuntime, ids: list[int]) -> float:
    logits = reference.open().score([ids])[0]
    losses = negative_log_likelihood(logits[:-1], np.array(ids[1:], np.int64))
    return float(np.exp(losses.mean()))


def test_weights_are_trained(reference: ReferenceRuntime, passage: list[int]) -> None:
    # Untrained weights score the vocabulary's size, 4096, and the passage without its
    # context 1100; these weights score 31.
    assert perplexity(reference, passage) < 150
    # What a trained model knows is mostly the order of words: shuffled, they score 6500.
    shuffled = np.random.default_rng(0).permutation(passage[1:]).tolist()
    assert perplexity(reference, [passage[0], *shuffled]) > 1500


def test_routing_uses_every_expert_and_heeds_the_bias(
    reference: ReferenceRuntime, passage: list[int]
) -> None:
    moe = reference.config.moe
    assert moe is not None
    routed: list[tuple[torch.Tensor, torch.Tensor]] = []
    routers = [m for m in reference.model.modules() if isinstance(m, Router)]
    hooks = [r.register_forward_hook(lambda *call: routed.append(call[2])) for r in routers]
    reference.open().score([passage])
    for hook in hooks:
        hook.remove()
    assert len(routed) == reference.config.num_hidden_layers - moe.num_dense_layers
    for scores, probabilities in routed:
        chosen, unbiased = (
            t.topk(moe.num_experts_per_tok).indices.sort().values for t in (scores, probabilities)
        )
        assert {*chosen.flatten().tolist()} == {*range(moe.num_experts)}
        assert not torch.equal(chosen, unbiased)
