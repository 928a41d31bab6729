from __future__ import annotations

import numpy as np
import pytest
import torch

from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.checkpoint.shapes import SHAPES, make_config
from lfm2_deploy.checkpoint.synthetic import open_synthetic
from lfm2_deploy.config import parse_config
from lfm2_deploy.contracts import Origin
from lfm2_deploy.errors import CheckpointError, SourceError
from lfm2_deploy.model.decoder import Decoder, checkpoint_name, empty_states
from lfm2_deploy.weights import list_weights

Q_PROJ = "model.layers.2.self_attn.q_proj.weight"
# Parameter counts that the published configs come to.
SIZES = {
    "LFM2-350M": 354_483_968,
    "LFM2-700M": 742_489_344,
    "LFM2-1.2B": 1_170_340_608,
    "LFM2-2.6B": 2_569_272_320,
    "LFM2-8B-A1B": 8_339_930_560,
    "LFM2-24B-A2B": 23_843_661_440,
    "LFM2.5-230M": 229_693_184,
    "LFM2.5-350M": 354_483_968,
    "LFM2.5-1.2B": 1_170_340_608,
    "LFM2.5-2.6B": 2_697_198_592,
    "LFM2.5-8B-A1B": 8_467_856_832,
}


@pytest.mark.parametrize("name", SHAPES)
def test_each_shape_has_its_published_size(name: str) -> None:
    config = parse_config(make_config(SHAPES[name]))
    size = sum(spec.num_elements for spec in list_weights(config))
    assert size == SIZES.get(name, size)
    assert config.head_dim == 64
    assert not config.assumptions


def test_24b_has_attention_in_every_fourth_layer() -> None:
    config = open_synthetic("LFM2-24B-A2B").config
    assert config.attention_layers == tuple(range(2, 40, 4))
    assert config.moe is not None
    assert config.moe.num_experts == 64


@pytest.mark.parametrize("name", ["tiny-dense", "tiny-moe"])
def test_tiny_shapes_have_both_kinds_of_layer(name: str) -> None:
    config = open_synthetic(name).config
    assert config.attention_layers
    assert config.conv_layers
    assert config.vocab_size == 512


def test_reads_do_not_depend_on_order() -> None:
    one, other = open_checkpoint("synthetic:tiny-moe"), open_checkpoint("synthetic:tiny-moe")
    names = [spec.name for spec in list_weights(one.config)]
    forward = {name: one.read(name) for name in names}
    backward = {name: other.read(name) for name in reversed(names)}
    assert all(np.array_equal(forward[name], backward[name]) for name in names)


def test_numbers_are_pinned() -> None:
    first = open_synthetic("tiny-dense").read(Q_PROJ)[0, :3]
    np.testing.assert_allclose(first, [-0.021296144, 0.08164658, -0.07100253], rtol=1e-6)


def test_tensors_and_seeds_differ() -> None:
    zero, one = open_synthetic("tiny-dense"), open_synthetic("tiny-dense@1")
    assert zero.origin == Origin(kind="synthetic", name="tiny-dense", revision="0")
    assert one.origin.revision == "1"
    query, other = zero.read(Q_PROJ), one.read(Q_PROJ)
    output = zero.read(Q_PROJ.replace("q_proj", "out_proj"))
    for pair in ((query, other), (query, output)):
        assert abs(np.corrcoef(pair[0].ravel(), pair[1].ravel())[0, 1]) < 0.05


def test_each_role_has_its_scale() -> None:
    checkpoint = open_synthetic("tiny-moe")
    for spec in list_weights(checkpoint.config):
        values = checkpoint.read(spec.name)
        assert values.shape == spec.shape
        assert values.dtype == np.float32
        assert values.flags.c_contiguous
        assert values.flags.writeable
        centre = 1.0 if spec.role == "norm" else 0.0
        assert abs(values.mean() - centre) < 0.2
        assert values.std() > 0.03
    assert np.count_nonzero(checkpoint.read("model.layers.1.feed_forward.expert_bias")) == 8


@pytest.mark.parametrize("name", ["tiny-dense", "tiny-moe"])
def test_decoder_gives_logits_of_sensible_size(name: str) -> None:
    checkpoint = open_synthetic(name)
    decoder = Decoder(checkpoint.config)
    for parameter, tensor in decoder.named_parameters():
        tensor.data.copy_(torch.from_numpy(checkpoint.read(checkpoint_name(parameter))))
    ids = torch.arange(24).reshape(1, 24)
    with torch.no_grad():
        logits, _ = decoder(
            ids, empty_states(checkpoint.config, 1, 24), torch.tensor([0]), torch.tensor([24])
        )
    assert torch.isfinite(logits).all()
    assert 0.3 < float(logits.std()) < 3


def test_no_side_files() -> None:
    assert not open_synthetic("tiny-moe").side_files


def test_unknown_tensor_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"tiny-moe has no tensor 'lm_head.weight'"):
        open_synthetic("tiny-moe").read("lm_head.weight")


def test_unknown_name_lists_the_choices() -> None:
    with pytest.raises(SourceError, match=r"no synthetic model 'LFM9': .*LFM2-24B-A2B.*tiny-moe"):
        open_checkpoint("synthetic:LFM9")


@pytest.mark.parametrize("seed", ["", "x", "-1", "1.5", "²"])
def test_bad_seed_is_refused(seed: str) -> None:
    with pytest.raises(SourceError, match="is not an integer of 0 or above"):
        open_checkpoint(f"synthetic:tiny-moe@{seed}")
