"""config.json -> `Lfm2Config`.

Enters: the JSON object of a Hugging Face config, in any dialect the LFM2 family
has used. Leaves: one frozen description with every derived width settled.
Knows nothing of tensors, graphs or files other than config.json.

Source: transformers 5.24, `models/lfm2` and `models/lfm2_moe`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lfm2_deploy.config_keys import WIDEST, ConfigKeys
from lfm2_deploy.errors import ConfigError, UnsupportedModelError
from lfm2_deploy.json_file import read_json_object
from lfm2_deploy.model_parts import (
    explain_whole,
    find_whole,
    list_architectures,
    refuse_encoder,
    take_text_part,
)

LayerType = Literal["conv", "full_attention"]

DENSE, MOE = "lfm2", "lfm2_moe"
_SUPPORTED = f"'{DENSE}' or '{MOE}'"
_ARCHITECTURES = {DENSE: "Lfm2ForCausalLM", MOE: "Lfm2MoeForCausalLM"}
# Of all layers together: each is a handful of objects, before any weight is read.
_MOST_EXPERTS = 2**16
# Added to the sum of the chosen experts' probabilities before dividing by it. It is in no
# config.json. Source: transformers 5.24, models/lfm2_moe/modeling_lfm2_moe.py.
NORM_EPS = 1e-6
_ROPE_KEYS = {"rope_theta", "rope_type", "type"}


@dataclass(frozen=True, slots=True)
class MoeConfig:
    """The mixture-of-experts half of a config; field names are Hugging Face's."""

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    num_dense_layers: int
    use_expert_bias: bool
    norm_topk_prob: bool
    routed_scaling_factor: float


@dataclass(frozen=True, slots=True)
class Lfm2Config:
    """An LFM2 model's shape; field names are Hugging Face's.

    `intermediate_size` is the width really used by the dense feed-forward, after
    the family's adjustment rule. `assumptions` lists, for the user to see, every
    value the file left to the architecture's definition.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    layer_types: tuple[LayerType, ...]
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    conv_L_cache: int  # noqa: N815  Hugging Face's name
    norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    moe: MoeConfig | None
    assumptions: tuple[str, ...] = ()

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Layer numbers that hold a KV cache."""
        return tuple(i for i, kind in enumerate(self.layer_types) if kind == "full_attention")

    @property
    def conv_layers(self) -> tuple[int, ...]:
        """Layer numbers that hold a convolution state."""
        return tuple(i for i, kind in enumerate(self.layer_types) if kind == "conv")

    @property
    def conv_state_width(self) -> int:
        """Columns of `B*x` a conv layer must remember: L-1."""
        return self.conv_L_cache - 1

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Layer numbers that have a mixture of experts."""
        return tuple(i for i in range(self.num_hidden_layers) if self.is_moe_layer(i))

    def is_moe_layer(self, layer: int) -> bool:
        """Whether layer number `layer` has a mixture of experts."""
        return self.moe is not None and layer >= self.moe.num_dense_layers


def read_config(path: Path) -> Lfm2Config:
    """Read a config.json.

    Args:
        path: the file, or the folder that holds it.

    Raises:
        ConfigError: the file is absent, is not JSON, or is not a usable LFM2 config.
    """
    file = path / "config.json" if path.is_dir() else path
    if not file.exists():
        raise ConfigError(
            f"no config.json in {path}: expected a Hugging Face checkpoint folder; "
            "pass the folder that holds config.json and *.safetensors"
        )
    return parse_config(read_json_object(file, ConfigError, "download it again"))


def parse_config(raw: Mapping[str, Any]) -> Lfm2Config:
    """Parse the JSON object of a Hugging Face config.

    Args:
        raw: the object, of a text model.

    Raises:
        UnsupportedModelError: it is of another family, or a vision, audio or embedding model.
        ConfigError: a key is missing, of the wrong type, or contradicts another.
    """
    _check_model_type(raw)
    whole = find_whole(raw)
    if whole is not None:
        raise UnsupportedModelError(explain_whole(whole))
    refuse_encoder(raw)
    _refuse_others(raw, "")
    return _parse_text(raw)


def parse_text_part(raw: Mapping[str, Any]) -> tuple[dict[str, Any], Lfm2Config]:
    """The text part of a vision or audio model.

    Args:
        raw: the whole model's config.

    Returns:
        The part's config as a text model would have it, and the same parsed; its assumptions tell
        what was taken from the whole model's.

    Raises:
        UnsupportedModelError: the text part is no LFM2.
        ConfigError: the model has no parts, or its text part cannot be used.
    """
    _check_model_type(raw)
    whole = find_whole(raw)
    if whole is None:
        parse_config(raw)  # what is no LFM2 at all is told first
        raise ConfigError(
            f"model_type {raw.get('model_type')!r} is a text model and has no parts: leave --part "
            "out"
        )
    text, notes = take_text_part(raw, whole)
    _refuse_others(text, f" (the text part of '{whole.name}')")
    config = _parse_text(text)
    text["architectures"] = [_ARCHITECTURES[config.model_type]]
    return text, replace(config, assumptions=(*notes, *config.assumptions))


def _check_model_type(raw: Mapping[str, Any]) -> None:
    model_type = raw.get("model_type")
    if model_type is not None and not isinstance(model_type, str):
        raise ConfigError(f"config.json: model_type is {model_type!r}, expected {_SUPPORTED}")


def _is_lfm3(raw: Mapping[str, Any]) -> bool:
    names = [str(raw.get("model_type")), *list_architectures(raw)]
    return any(name.lower().startswith("lfm3") for name in names)


def _refuse_others(raw: Mapping[str, Any], whose: str) -> None:
    """Raise UnsupportedModelError for what is no LFM2; `whose` says of what it is a part."""
    model_type = raw.get("model_type")
    if model_type not in (DENSE, MOE) or _is_lfm3(raw):
        what, remark = f"model_type {model_type!r}", ""
        if _is_lfm3(raw):
            remark = "; LFM3 differs in its layers and is not loaded as LFM2"
            if model_type in (DENSE, MOE):
                what = f"{what} of architectures {list_architectures(raw)}"
        raise UnsupportedModelError(
            f"{what}{whose} is not supported: expected {_SUPPORTED}{remark}"
        )


def _parse_text(raw: Mapping[str, Any]) -> Lfm2Config:
    keys, model_type = ConfigKeys(raw), raw.get("model_type")
    keys.refuse_changed_arithmetic()
    layers = keys.integer("num_hidden_layers")
    hidden = keys.agreeing_integer("hidden_size", "block_dim", "conv_dim", "conv_dim_out")
    heads = keys.agreeing_integer("num_attention_heads", "num_heads")
    kv_heads = keys.integer("num_key_value_heads")
    moe = _parse_moe(keys, layers) if model_type == MOE else None
    config = Lfm2Config(
        model_type=str(model_type),
        vocab_size=keys.integer("vocab_size"),
        hidden_size=hidden,
        num_hidden_layers=layers,
        layer_types=_layer_types(keys, layers),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=_head_dim(keys, hidden, heads, kv_heads),
        intermediate_size=keys.integer("intermediate_size") if moe else _dense_width(keys),
        conv_L_cache=keys.integer("conv_L_cache", minimum=2),
        norm_eps=keys.agreeing_number("norm_eps", "block_norm_eps"),
        rope_theta=_rope_theta(keys),
        max_position_embeddings=keys.integer("max_position_embeddings"),
        tie_word_embeddings=_tied(keys),
        bos_token_id=keys.optional_token("bos_token_id"),
        eos_token_ids=_eos(keys),
        pad_token_id=keys.optional_token("pad_token_id"),
        moe=moe,
    )
    # Assumptions are gathered while parsing, so they are attached last.
    return replace(config, assumptions=tuple(keys.assumptions))


def _head_dim(keys: ConfigKeys, hidden: int, heads: int, kv_heads: int) -> int:
    head_dim = keys.optional_integer("head_dim")
    if head_dim is None:
        if hidden % heads:
            raise ConfigError(
                f"config.json: hidden_size {hidden} is not a multiple of "
                f"num_attention_heads {heads}, and head_dim is not given"
            )
        head_dim = hidden // heads
    if head_dim % 2:
        raise ConfigError(f"config.json: head_dim is {head_dim}, expected an even number")
    if heads % kv_heads:
        raise ConfigError(
            f"config.json: num_attention_heads {heads} is not a multiple of "
            f"num_key_value_heads {kv_heads}"
        )
    return head_dim


def _layer_types(keys: ConfigKeys, layers: int) -> tuple[LayerType, ...]:
    listed, indices = keys.optional_list("layer_types"), keys.optional_list("full_attn_idxs")
    if listed is None and indices is None:
        raise ConfigError("config.json has neither 'layer_types' nor 'full_attn_idxs'; add one")
    if indices is not None:
        bad = [i for i in indices if not isinstance(i, int) or not 0 <= i < layers]
        if bad:
            raise ConfigError(
                f"config.json: full_attn_idxs names layer {bad[0]!r}, "
                f"expected integers from 0 to {layers - 1}"
            )
    attention = frozenset(indices or ())
    from_indices = ["full_attention" if i in attention else "conv" for i in range(layers)]
    kinds = from_indices if listed is None else listed
    unknown = sorted({str(kind) for kind in kinds} - {"conv", "full_attention"})
    if unknown:
        raise UnsupportedModelError(
            f"config.json: layer_types holds {unknown[0]!r}, expected 'conv' or 'full_attention'"
        )
    if len(kinds) != layers:
        raise ConfigError(
            f"config.json: layer_types lists {len(kinds)} layers, num_hidden_layers says {layers}"
        )
    if listed is not None and indices is not None and listed != from_indices:
        raise ConfigError("config.json: layer_types and full_attn_idxs contradict each other")
    return tuple(kinds)


def _dense_width(keys: ConfigKeys) -> int:
    # transformers reads block_ff_dim first and lets it override intermediate_size.
    width = keys.integer("block_ff_dim" if "block_ff_dim" in keys.raw else "intermediate_size")
    if not keys.boolean("block_auto_adjust_ff_dim"):
        return width
    multiple = keys.integer("block_multiple_of")
    scaled = keys.number("block_ffn_dim_multiplier") * int(2 * width / 3)
    if not 1 <= scaled <= WIDEST:
        raise ConfigError(
            f"config.json: block_ffn_dim_multiplier makes the feed-forward {scaled:g} wide, "
            f"expected 1 to {WIDEST:,}"
        )
    return multiple * ((int(scaled) + multiple - 1) // multiple)


def _rope_theta(keys: ConfigKeys) -> float:
    parameters = keys.raw.get("rope_parameters")
    if parameters is None:
        return keys.number("rope_theta")
    if not isinstance(parameters, dict) or "rope_theta" not in parameters:
        raise ConfigError("config.json: rope_parameters has no 'rope_theta'")
    other = sorted(k for k, v in parameters.items() if k not in _ROPE_KEYS and v is not None)
    if other:
        raise UnsupportedModelError(
            f"config.json: rope_parameters has {other[0]!r}, which no LFM2 model uses"
        )
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind != "default":
        raise UnsupportedModelError(
            f"config.json: rope_type {kind!r} is not supported: expected 'default'"
        )
    theta = ConfigKeys(parameters).number("rope_theta")
    if keys.raw.get("rope_theta", theta) != theta:
        raise ConfigError(
            f"config.json: rope_theta {keys.raw['rope_theta']} contradicts "
            f"rope_parameters.rope_theta {theta}"
        )
    return theta


def _tied(keys: ConfigKeys) -> bool:
    names = [k for k in ("tie_embedding", "tie_word_embeddings") if k in keys.raw]
    if not names:
        keys.assumptions.append("tie_word_embeddings = true (Lfm2Config's definition; key absent)")
        return True
    given = [keys.boolean(name) for name in names]
    if len(set(given)) > 1:
        raise ConfigError("config.json: tie_embedding contradicts tie_word_embeddings")
    return given[0]


def _eos(keys: ConfigKeys) -> tuple[int, ...]:
    value = keys.present("eos_token_id")
    ids = value if isinstance(value, list) else [value]
    if not ids:
        raise ConfigError("config.json: eos_token_id is [], expected a token or a list of them")
    return tuple(keys.token("eos_token_id", i) for i in ids)


def _parse_moe(keys: ConfigKeys, layers: int) -> MoeConfig:
    moe = MoeConfig(
        num_experts=keys.integer("num_experts"),
        num_experts_per_tok=keys.integer("num_experts_per_tok"),
        moe_intermediate_size=keys.integer("moe_intermediate_size"),
        num_dense_layers=keys.integer("num_dense_layers", minimum=0),
        use_expert_bias=keys.boolean("use_expert_bias"),
        norm_topk_prob=keys.boolean("norm_topk_prob"),
        routed_scaling_factor=keys.number("routed_scaling_factor"),
    )
    if moe.num_experts_per_tok > moe.num_experts:
        raise ConfigError(
            f"config.json: num_experts_per_tok {moe.num_experts_per_tok} exceeds "
            f"num_experts {moe.num_experts}"
        )
    if moe.num_dense_layers > layers:
        raise ConfigError(
            f"config.json: num_dense_layers {moe.num_dense_layers} exceeds "
            f"num_hidden_layers {layers}"
        )
    if (layers - moe.num_dense_layers) * moe.num_experts > _MOST_EXPERTS:
        raise ConfigError(
            f"config.json: num_experts {moe.num_experts} in each of num_hidden_layers {layers} "
            f"makes more than {_MOST_EXPERTS:,} experts, which no LFM2 model has"
        )
    return moe
