"""`Lfm2Config` and `Origin` -> what a person or a program reads about a model."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.text import Text

from lfm2_deploy.commands.console import format_count, note, print_facts, print_title
from lfm2_deploy.config import Lfm2Config, MoeConfig
from lfm2_deploy.contracts import Origin
from lfm2_deploy.weights import list_weights


def describe_model(config: Lfm2Config, origin: Origin) -> dict[str, Any]:
    """The JSON object of a model."""
    return {
        "kind": "model",
        "model": origin.name,
        "origin": asdict(origin),
        "parameters": count_parameters(config),
        "active_parameters": count_active_parameters(config),
        "config": asdict(config),
    }


def print_model(config: Lfm2Config, origin: Origin) -> None:
    """Write what a model is, and on stderr what its config.json left open."""
    print_title(origin.name, describe_kind(config))
    print_facts({"from": describe_origin(origin), **list_model_facts(config)})
    for assumption in config.assumptions:
        note(f"assumed: {assumption}")


def list_model_facts(config: Lfm2Config) -> dict[str, str | Text]:
    """What a reader wants to know of an architecture, by label."""
    heads = f"{config.num_attention_heads} of {config.head_dim}"
    return {
        "parameters": _describe_parameters(config),
        "layers": draw_layers(config),
        "": f"{len(config.conv_layers)} short convolutions (c), "
        f"{len(config.attention_layers)} attentions (A)",
        **({} if config.moe is None else {"experts": _describe_experts(config.moe)}),
        "width": f"{config.hidden_size:,}, feed-forward {config.intermediate_size:,}",
        "attention": f"{heads}, {config.num_key_value_heads} for keys and values",
        "convolution": f"over {config.conv_L_cache} tokens",
        "vocabulary": f"{config.vocab_size:,}"
        + (", one matrix in and out" if config.tie_word_embeddings else ""),
        "positions": f"{config.max_position_embeddings:,}",
    }


def _describe_experts(moe: MoeConfig) -> str:
    return (
        f"{moe.num_experts} of width {moe.moe_intermediate_size:,}, {moe.num_experts_per_tok} "
        f"run for each token, from layer {moe.num_dense_layers} on"
    )


def describe_kind(config: Lfm2Config) -> str:
    """The architecture in words."""
    return "mixture of experts" if config.moe else "dense"


def describe_origin(origin: Origin) -> str:
    """Where a model came from, in words."""
    match origin.kind:
        case "hub":
            text = f"the Hub's {origin.name} at {origin.revision[:12]}"
        case "synthetic":
            text = f"random weights of seed {origin.revision}, in the shape of {origin.name}"
        case "file":
            text = f"a file named {origin.name}"
        case _:
            text = f"a folder named {origin.name}"
    part = f"the {origin.part} part of " if origin.part else ""
    return f"{part}{text}" + (f", with adapter {origin.adapter}" if origin.adapter else "")


def draw_layers(config: Lfm2Config) -> Text:
    """One letter a layer: c for a convolution, A for an attention."""
    letters = [
        ("A", "bold magenta") if kind == "full_attention" else ("c", "cyan")
        for kind in config.layer_types
    ]
    return Text(" ").join(Text(letter, style=style) for letter, style in letters)


def count_parameters(config: Lfm2Config) -> int:
    """Numbers in all tensors; a tied head counts once."""
    return sum(spec.num_elements for spec in list_weights(config))


def count_active_parameters(config: Lfm2Config) -> int:
    """Numbers that take part in one token: of the experts, those that are chosen."""
    experts = sum(s.num_elements for s in list_weights(config) if s.role == "expert")
    moe = config.moe
    idle = 0 if moe is None else experts * (moe.num_experts - moe.num_experts_per_tok)
    return count_parameters(config) - (idle // moe.num_experts if moe else 0)


def _describe_parameters(config: Lfm2Config) -> str:
    total = format_count(count_parameters(config))
    if config.moe is None:
        return total
    return f"{total}, {format_count(count_active_parameters(config))} active in each token"
