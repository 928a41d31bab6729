"""`lfm2-deploy plan`: what a model will take, before any of it is downloaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from lfm2_deploy.commands import completers
from lfm2_deploy.commands.console import (
    format_bytes,
    note,
    print_facts,
    print_json,
    print_table,
    print_title,
    show_progress,
)
from lfm2_deploy.commands.options import AsJson, Part, Precision
from lfm2_deploy.commands.sizes import parse_size
from lfm2_deploy.errors import ExportError, RuntimeUnavailableError

if TYPE_CHECKING:
    from lfm2_deploy.config import Lfm2Config
    from lfm2_deploy.footprint import Footprint

# What the system and other programs need of a machine's memory.
_KEPT_FREE = 2 * 10**9
# Below this, a precision is not recommended for being more exact.
_FLUENT = 20.0
_DEFAULT_CONTEXT = 32_768


@dataclass(frozen=True, slots=True)
class Choice:
    """One precision, and what it would take.

    Args:
        precision: its name.
        footprint: bytes.
        problem: why the model cannot be stored so; "" if it can.
    """

    precision: str
    footprint: Footprint | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Setting:
    """The machine and conversation that are planned for.

    Args:
        ram: bytes of memory.
        context: tokens of the conversation.
        bandwidth: bytes a second.
        measured: whether the bandwidth was measured here, and not given.
        positions: most tokens the model knows.
    """

    ram: int
    context: int
    bandwidth: float
    measured: bool
    positions: int

    def longest(self, footprint: Footprint) -> int:
        """The longest conversation that fits; 0 if none does."""
        return max(0, min(self.positions, footprint.longest_context(self.ram - _KEPT_FREE)))

    def fits(self, footprint: Footprint) -> bool:
        """Whether the model and the conversation leave room for the system."""
        return footprint.resident(self.context) + _KEPT_FREE <= self.ram

    def bound(self, footprint: Footprint) -> float:
        """Tokens a second that memory allows."""
        return self.bandwidth / footprint.read(self.context)


def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A checkpoint's folder, a Hub id, a GGUF file, or synthetic:NAME.",
            autocompletion=completers.complete_models,
        ),
    ],
    target: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What it will be exported for; `doctor` lists targets.",
            autocompletion=completers.complete_targets,
        ),
    ] = "cpu",
    precision: Annotated[
        Precision | None,
        typer.Option(
            metavar="NAME",
            help="Tell more of this one: fp32, fp16, int8 or int4.",
            show_default="the best",
        ),
    ] = None,
    ram: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory to plan for, as 32GB or 16GiB.",
            show_default="this computer's",
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Length of the conversation, in tokens.", show_default="32768"
        ),
    ] = None,
    bandwidth: Annotated[
        float | None,
        typer.Option(
            min=0.1, metavar="GB/S", help="Speed of memory.", show_default="measured here"
        ),
    ] = None,
    part: Part = None,
    revision: Annotated[
        str | None, typer.Option(metavar="REF", help="Branch, tag or commit of a Hub model.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a model will take here: disk, memory, and speed at best.

    One line for each precision, with the longest conversation that fits. It is
    arithmetic: of a model on the Hub, only config.json is downloaded. "Speed at
    best" is what memory allows: its bandwidth over the bytes read for each token.

    \b
    Examples:
      lfm2-deploy plan LiquidAI/LFM2-24B-A2B --ram 32GB --context 32768
      lfm2-deploy plan ./my-finetune --precision int8 --bandwidth 100
      lfm2-deploy plan synthetic:LFM2-8B-A1B

    \b
    See also:
      lfm2-deploy export MODEL        make the bundle
      lfm2-deploy bench BUNDLE        what speed it really has
    """
    from lfm2_deploy.checkpoint import describe_model
    from lfm2_deploy.registry import find_entry

    find_entry("target", target)  # a name that is none is told as elsewhere
    if target != "cpu":
        raise RuntimeUnavailableError(
            f"plan knows what target cpu takes, and not {target}: leave --target out for that; "
            "of NPUs docs/npu.md says what they take"
        )
    memory = None if ram is None else parse_size(ram)
    config, origin = describe_model(model, revision, part)
    setting = _choose_setting(config, memory, context, bandwidth)
    choices = [_consider(config, name, setting.context) for name in get_args(Precision)]
    best = _recommend(choices, setting)
    chosen = _select(choices, precision, best)
    if as_json:
        print_json(_describe(origin.name, target, choices, setting, best))
        return
    _print(origin.name, choices, setting, best, chosen)


def _choose_setting(
    config: Lfm2Config, ram: int | None, context: int | None, bandwidth: float | None
) -> Setting:
    from lfm2_deploy.bandwidth import measure_bandwidth
    from lfm2_deploy.machine import count_usable_cores, describe_machine

    longest = config.max_position_embeddings
    if context is not None and context > longest:
        raise ExportError(f"--context {context} is not possible: expected 1 to {longest}")
    if ram is None:
        ram = describe_machine().memory_total_bytes
        if ram is None:
            raise typer.BadParameter("this system does not tell its memory: pass --ram")
    speed = None if bandwidth is None else bandwidth * 1e9
    if speed is None:
        with show_progress() as progress:
            progress("measuring memory bandwidth", 0, 0)
            speed = measure_bandwidth(count_usable_cores() or 1)
    tokens = min(_DEFAULT_CONTEXT, longest) if context is None else context
    return Setting(ram, tokens, speed, bandwidth is None, longest)


def _consider(config: Lfm2Config, precision: str, context: int) -> Choice:
    from lfm2_deploy.footprint import Storage, measure_footprint
    from lfm2_deploy.registry import PLANNER
    from lfm2_deploy.weights import list_weights

    try:
        entries = PLANNER.load()(list_weights(config), precision)
    except ExportError as error:
        return Choice(precision, None, str(error))
    storages = {name: Storage(entry.bits, entry.group) for name, entry in entries.items()}
    return Choice(precision, measure_footprint(config, storages, context))


def _recommend(choices: list[Choice], setting: Setting) -> Choice | None:
    """The most exact that fits and is fluent; else the smallest that fits."""
    fitting = [c for c in choices if c.footprint is not None and setting.fits(c.footprint)]
    fluent = [c for c in fitting if c.footprint and setting.bound(c.footprint) >= _FLUENT]
    return fluent[0] if fluent else (fitting[-1] if fitting else None)


def _select(choices: list[Choice], precision: str | None, best: Choice | None) -> Choice:
    if precision is None:
        return best or next(c for c in reversed(choices) if c.footprint is not None)
    chosen = next(c for c in choices if c.precision == precision)
    if chosen.footprint is None:
        raise ExportError(chosen.problem)
    return chosen


def _print(
    model: str, choices: list[Choice], setting: Setting, best: Choice | None, chosen: Choice
) -> None:
    how = "measured here" if setting.measured else "as given"
    print_title(
        model,
        f"{format_bytes(setting.ram)} of memory, {setting.context:,} tokens, "
        f"{setting.bandwidth / 1e9:.1f} GB/s {how}",
    )
    columns = ("precision", ">disk", ">memory", ">read a token", ">at best", ">longest", "")
    print_table(columns, [_tabulate(choice, setting, best) for choice in choices])
    assert chosen.footprint is not None
    print_title(f"in {chosen.precision}")
    print_facts(_list_facts(chosen.footprint, setting))
    if best is None:
        note(
            f"nothing fits {format_bytes(setting.ram)}: take a shorter --context, a smaller model, "
            "or more memory"
        )


def _tabulate(choice: Choice, setting: Setting, best: Choice | None) -> tuple[str, ...]:
    footprint = choice.footprint
    if footprint is None:
        return (choice.precision, *["-"] * 5, "not possible")
    longest = setting.longest(footprint)
    verdict = "fits" if setting.fits(footprint) else "does not fit"
    return (
        choice.precision,
        format_bytes(footprint.weights),
        format_bytes(footprint.resident(setting.context)),
        format_bytes(footprint.read(setting.context)),
        f"{setting.bound(footprint):.1f} tok/s",
        f"{longest:,}" if longest else "none",
        f"{verdict}, recommended" if choice is best else verdict,
    )


def _list_facts(footprint: Footprint, setting: Setting) -> dict[str, str]:
    keys = setting.context * footprint.kv_per_token
    states = f"{format_bytes(keys)} for keys and values, {format_bytes(footprint.conv_state)}"
    return {
        "download": f"{format_bytes(footprint.download)}, if it is published in 16 bits",
        "disk": f"{format_bytes(footprint.weights)}, besides the download",
        "to export": f"{format_bytes(footprint.export_peak)} of memory at most",
        "to run": f"{format_bytes(footprint.resident(setting.context))} of memory, in which are",
        "  weights": format_bytes(footprint.resident_weights),
        "  states": f"{states} for convolutions",
        "  the rest": f"{format_bytes(footprint.activations)} for a piece of the prompt, "
        f"{format_bytes(footprint.libraries)} for libraries",
        "decoding": f"{format_bytes(footprint.read(0))} read for a token with no context, "
        f"{format_bytes(footprint.read(setting.context))} with all of it",
        "at best": f"{setting.bandwidth / footprint.read(0):.1f} tok/s with no context, "
        f"{setting.bound(footprint):.1f} with all of it",
    }


def _describe(
    model: str, target: str, choices: list[Choice], setting: Setting, best: Choice | None
) -> dict[str, Any]:
    return {
        "model": model,
        "target": target,
        "ram_bytes": setting.ram,
        "context": setting.context,
        "bandwidth_bytes_per_second": setting.bandwidth,
        "bandwidth_was": "measured" if setting.measured else "given",
        "recommended": None if best is None else best.precision,
        "precisions": {choice.precision: _describe_choice(choice, setting) for choice in choices},
    }


def _describe_choice(choice: Choice, setting: Setting) -> dict[str, Any]:
    footprint = choice.footprint
    if footprint is None:
        return {"problem": choice.problem}
    return {
        **{f"{name}_bytes": value for name, value in asdict(footprint).items()},
        "resident_bytes": footprint.resident(setting.context),
        "read_per_token_bytes": footprint.read(setting.context),
        "bound_tokens_per_second": setting.bound(footprint),
        "longest_context": setting.longest(footprint),
        "fits": setting.fits(footprint),
    }
