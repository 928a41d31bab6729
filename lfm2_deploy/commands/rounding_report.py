"""How a bundle's weights were rounded -> a table by layer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.commands.console import (
    format_bytes,
    output,
    print_facts,
    print_remark,
    print_table,
    print_title,
    printable,
)
from lfm2_deploy.quantization_record import LayerError, QuantizationRecord, TensorError

_LAYER = re.compile(r"\.layers\.(\d+)\.(feed_forward\.)?")
_METHODS = {
    "rtn": "every number to the nearest level",
    "search": "scales searched, weight by weight",
    "awq": "channels scaled by their inputs (AWQ)",
    "gptq": "columns make up for what others lost (GPTQ)",
    "awq+gptq": "AWQ's scales, then GPTQ",
}
# With experts, a row of these is 80 columns wide.
_HEADS = (">layer", "mixer", ">bits", ">error", "block", ">bits", ">error", ">after")
_EXPERT_HEADS = (">min/median", ">rare")
_MIXERS = {"conv": "conv", "full_attention": "attn"}
_LEGEND = (
    "'error' is what rounding changes of the products, relative; 'after' is that of the hidden "
    "state after the layer, against the exact model's"
)
_EXPERT_LEGEND = (
    "; 'min/median' are the tokens that a layer's experts saw, 'rare' the experts that few chose"
)


def print_rounding(bundle: Bundle) -> None:
    """Write how weights were rounded, and what each layer lost by it."""
    record = bundle.manifest.rounding
    if record is None:
        return
    output().print()
    print_title("Rounding", printable(record.method))
    print_facts(_list_facts(record))
    if not record.layers:
        return
    output().print()
    has_experts = any(line.median_tokens for line in record.layers)
    heads = (*_HEADS, *(_EXPERT_HEADS if has_experts else ()))
    print_table(heads, [_make_row(bundle, record, line, has_experts) for line in record.layers])
    print_remark(_LEGEND + (_EXPERT_LEGEND if has_experts else ""))


def _list_facts(record: QuantizationRecord) -> dict[str, str]:
    facts = {"how": _METHODS.get(record.method, printable(record.method))}
    if record.tokens:
        digest = f", sha256 {record.text_sha256[:12]}" if record.text_sha256 else ""
        facts["on"] = f"{printable(record.text)}, {record.tokens:,} tokens{printable(digest)}"
    if record.rare_below:
        facts["rare experts"] = (
            f"those that fewer than {record.rare_below} tokens chose also saw the tokens that "
            "came closest"
        )
    if record.max_size_bytes:
        facts["bits"] = (
            f"chosen by measured sensitivity to stay within {format_bytes(record.max_size_bytes)}"
        )
    return facts


def _make_row(
    bundle: Bundle, record: QuantizationRecord, line: LayerError, has_experts: bool
) -> tuple[str, ...]:
    config, own = bundle.config, _find(record.tensors, line.layer)
    is_known = line.layer < config.num_hidden_layers
    kind = config.layer_types[line.layer] if is_known else "?"
    experts = config.moe.num_experts if config.moe and config.is_moe_layer(line.layer) else 0
    counts: tuple[str, ...] = ()
    if has_experts:
        counts = (f"{line.fewest_tokens}/{line.median_tokens}", str(line.rare_experts))
        counts = counts if experts else ("", "")
    return (
        str(line.layer),
        _MIXERS.get(kind, kind),
        *_summarize(own[False]),
        f"{experts} experts" if experts else "dense",
        *_summarize(own[True]),
        f"{line.error:.1%}",
        *counts,
    )


def _find(tensors: Sequence[TensorError], layer: int) -> dict[bool, list[TensorError]]:
    """A layer's tensors: those of its mixer, and of its feed-forward block."""
    found: dict[bool, list[TensorError]] = {False: [], True: []}
    for tensor in tensors:
        match = _LAYER.search(tensor.name)
        if match is not None and int(match[1]) == layer:
            found[match[2] is not None].append(tensor)
    return found


def _summarize(tensors: Sequence[TensorError]) -> tuple[str, str]:
    """Bits of some tensors, and their root mean square error."""
    if not tensors:
        return "float", ""
    bits = "/".join(map(str, sorted({tensor.bits for tensor in tensors})))
    mean = sum(tensor.error**2 for tensor in tensors) / len(tensors)
    return bits, f"{mean**0.5:.1%}"
