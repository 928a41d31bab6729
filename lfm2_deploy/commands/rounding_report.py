"""How a bundle's weights were rounded -> tables by layer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias

from rich.text import Text

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.charts.numbers import format_number
from lfm2_deploy.commands.console import (
    format_bytes,
    output,
    print_facts,
    print_remark,
    print_table,
    print_title,
    printable,
)
from lfm2_deploy.quantization_record import (
    FEW_TOKENS,
    OF_PRODUCTS,
    OF_WEIGHTS,
    LayerError,
    QuantizationRecord,
    SizeChoice,
    TensorError,
    UnitChoice,
    WeightError,
)

_Error: TypeAlias = TensorError | WeightError

_LAYER = re.compile(r"\.layers\.(\d{1,6})\.(feed_forward\.)?")
_METHODS = {
    "rtn": "every number to the nearest level",
    "search": "scales searched, weight by weight",
    "awq": "channels scaled by their inputs (AWQ)",
    "gptq": "columns make up for what others lost (GPTQ)",
    "awq+gptq": "AWQ's scales, then GPTQ",
}
_HEADS = ("mixer", ">bits", ">group", ">error", "block", ">bits", ">group", ">error")
_EXPERT_HEADS = (">layer", "experts", ">fewest", ">median", ">rare")
_CHOICE_HEADS = (
    ">layer", "part", ">bits", ">group", ">size", ">adds", ">least", ">group", ">would add",
)  # fmt: skip
_MIXERS = {"conv": "conv", "full_attention": "attn"}
# More than two are told by the first and the last: a terminal has 80 columns.
_MOST_TOLD = 2
_AFTER = (
    "'error' is what rounding changes of the products; 'after' is that of the hidden state after "
    "the layer, against the exact model's. "
)
_EXPERTS = "Tokens that a layer's experts saw; 'rare' are the experts that few chose."
_COSTS = (
    "'adds' is the KL divergence in nats that the part alone adds as it is stored; 'least' is its "
    "smallest form, and what that would add"
)


def print_rounding(bundle: Bundle) -> None:
    """Write how weights were rounded, what each layer lost by it, and what a size was spent on."""
    record = bundle.manifest.rounding
    if record is None:
        return
    output().print()
    print_title("Rounding", printable(record.method))
    print_facts(_list_facts(record))
    layers = _list_layers(record)
    if layers:
        output().print()
        heads = (">layer", *_HEADS, *((">after",) if record.layers else ()))
        print_table(heads, [_make_row(bundle, record, layer) for layer in layers])
        print_remark(_explain(record))
    _print_experts(bundle, record.layers)
    if record.choice is not None and record.choice.units:
        _print_choice(record.choice)


def _explain(record: QuantizationRecord) -> str:
    """What kind of error is shown."""
    if not record.is_of_products:
        return f"{OF_WEIGHTS[0].upper()}{OF_WEIGHTS[1:]}"
    return f"{_AFTER}{OF_PRODUCTS[0].upper()}{OF_PRODUCTS[1:]}"


def _list_facts(record: QuantizationRecord) -> dict[str, str | Text]:
    facts: dict[str, str | Text] = {"how": _METHODS.get(record.method, printable(record.method))}
    if record.tokens:
        digest = f", sha256 {record.text_sha256[:12]}" if record.text_sha256 else ""
        facts["on"] = f"{printable(record.text)}, {record.tokens:,} tokens{printable(digest)}"
    if record.has_few_tokens:
        warning = f"fewer than {FEW_TOKENS:,} tokens: errors look too small"
        facts["warning"] = Text(warning, style="yellow")
    if record.rare_below:
        facts["rare experts"] = (
            f"those that fewer than {record.rare_below} tokens chose also saw the tokens that "
            "came closest"
        )
    if record.max_size_bytes:
        facts["bits"] = (
            f"chosen by measured sensitivity to stay within {format_bytes(record.max_size_bytes)}"
        )
    for line in record.weights:
        if not _LAYER.search(line.name):
            facts[_name_table(line.name)] = (
                f"{line.bits} bits in groups of {line.group}, its weights off by {line.error:.1%}"
            )
    return facts


def _name_table(name: str) -> str:
    return printable(name.removeprefix("model.").removesuffix(".weight"))


def _list_layers(record: QuantizationRecord) -> list[int]:
    found = {entry.layer for entry in record.layers}
    for line in record.errors:
        match = _LAYER.search(line.name)
        if match is not None:
            found.add(int(match[1]))
    return sorted(found)


def _make_row(bundle: Bundle, record: QuantizationRecord, layer: int) -> tuple[str, ...]:
    config, own = bundle.config, _find(record.errors, layer)
    kind = config.layer_types[layer] if layer < config.num_hidden_layers else "?"
    experts = _count_experts(bundle, layer)
    after = [f"{entry.error:.1%}" for entry in record.layers if entry.layer == layer]
    return (
        str(layer),
        _MIXERS.get(kind, kind),
        *_summarize(own[False]),
        f"{experts} experts" if experts else "dense",
        *_summarize(own[True]),
        *((after or [""])[:1] if record.layers else ()),
    )


def _count_experts(bundle: Bundle, layer: int) -> int:
    config = bundle.config
    return config.moe.num_experts if config.moe and config.is_moe_layer(layer) else 0


def _find(tensors: Sequence[_Error], layer: int) -> dict[bool, list[_Error]]:
    """A layer's tensors: those of its mixer, and of its feed-forward block."""
    found: dict[bool, list[_Error]] = {False: [], True: []}
    for tensor in tensors:
        match = _LAYER.search(tensor.name)
        if match is not None and int(match[1]) == layer:
            found[match[2] is not None].append(tensor)
    return found


def _summarize(tensors: Sequence[_Error]) -> tuple[str, str, str]:
    """Bits and groups of some tensors, and their root mean square error."""
    if not tensors:
        return "float", "", ""
    mean = sum(tensor.error**2 for tensor in tensors) / len(tensors)
    bits, groups = ({getattr(t, name) for t in tensors} for name in ("bits", "group"))
    return _join(bits), _join(groups), f"{mean**0.5:.1%}"


def _join(numbers: set[int]) -> str:
    found = sorted(numbers)
    if len(found) > _MOST_TOLD:
        return f"{found[0]}-{found[-1]}"
    return "/".join(map(str, found))


def _print_experts(bundle: Bundle, layers: Sequence[LayerError]) -> None:
    rows = [
        (
            str(line.layer),
            str(experts),
            f"{line.fewest_tokens:,}",
            f"{line.median_tokens:,}",
            f"{line.rare_experts:,}",
        )
        for line in layers
        if (experts := _count_experts(bundle, line.layer)) and line.median_tokens
    ]
    if rows:
        output().print()
        print_table(_EXPERT_HEADS, rows)
        print_remark(_EXPERTS)


def _print_choice(choice: SizeChoice) -> None:
    output().print()
    print_title("Size", "what each part got, and what fewer bits would cost")
    print_facts(
        {
            "parts": f"{format_bytes(choice.size_bytes)} of {format_bytes(choice.budget_bytes)}",
            "foreseen": f"{format_number(choice.cost, 3)} nats, the sum of what parts add",
            "measured on": f"{printable(choice.text)}, {choice.tokens:,} tokens",
        }
    )
    output().print()
    print_table(_CHOICE_HEADS, [_tell_unit(unit) for unit in choice.units])
    print_remark(_COSTS)


def _tell_unit(unit: UnitChoice) -> tuple[str, ...]:
    cells = (
        "" if unit.layer is None else str(unit.layer),
        unit.kind.replace("feed_forward", "block"),
        unit.bits,
        unit.group,
        format_bytes(unit.size_bytes),
        format_number(unit.cost, 2),
        unit.least_bits,
        unit.least_group,
        format_number(unit.least_cost, 2),
    )
    return tuple(map(printable, cells))
