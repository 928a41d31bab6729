"""`--target auto`: which target this machine can really run, and why not the others.

Targets are asked in one order, `ORDER`. A target is chosen if it takes the model, its device
ran a graph, and what exports for it is installed; else the next is asked. What was asked for by
name never comes here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from lfm2_deploy.child import call_in_child
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import Probe
from lfm2_deploy.entry import Entry
from lfm2_deploy.errors import RuntimeUnavailableError
from lfm2_deploy.registry import PROBE_CALL, find_target, list_entries

AUTO = "auto"
# Docs/targets.md gives the reasons. Targets of other packages that bring a probe stand before
# "cpu", by name.
ORDER = ("igpu", "directml", "webgpu", "npu", "qnn", "cpu")
_LAST = "cpu"
# The NPU's graphs hold a context of fixed length; longer ones were not estimated (docs/npu.md).
NPU_CONTEXT = 1024
# The first use of a driver may compile kernels or wake a device.
_SECONDS = 30.0

Outcome = Literal["chosen", "passed over", "not needed"]


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be exported.

    Args:
        config: the model; None where only the machine is asked about.
        precision: how weights are stored.
        context_length: as asked for, if at all.
    """

    config: Lfm2Config | None = None
    precision: str = "int4"
    context_length: int | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A target that was considered.

    Args:
        target: its name.
        outcome: what came of it.
        reason: why, in one line.
        device: what would run it, or "".
        checked: how that is known, or "".
    """

    target: str
    outcome: Outcome
    reason: str
    device: str = ""
    checked: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """The target that was chosen, and every candidate in order."""

    target: str
    candidates: tuple[Candidate, ...]

    @property
    def chosen(self) -> Candidate:
        """The candidate that won."""
        return next(found for found in self.candidates if found.outcome == "chosen")

    def describe(self) -> str:
        """For the manifest's notes."""
        device = f" on {self.chosen.device}" if self.chosen.device else ""
        return f"--target auto chose {self.target}{device}: {self.chosen.reason}"


def choose(wish: Wish) -> Choice:
    """Ask target after target, until one can be exported for and run here.

    Raises:
        RuntimeUnavailableError: there is none; says what each of them lacks.
    """
    candidates = consider(wish)
    chosen = [found.target for found in candidates if found.outcome == "chosen"]
    if not chosen:
        reasons = "; ".join(f"{found.target}: {found.reason}" for found in candidates)
        raise RuntimeUnavailableError(f"--target auto finds no target to choose: {reasons}")
    return Choice(chosen[0], candidates)


def consider(wish: Wish) -> tuple[Candidate, ...]:
    """Every target in order, and what came of it; at most one is chosen."""
    candidates: list[Candidate] = []
    chosen = None
    for target in list_order():
        if chosen is not None:
            candidates.append(Candidate(target, "not needed", f"{chosen} comes first"))
            continue
        candidates.append(_consider(target, wish))
        chosen = target if candidates[-1].outcome == "chosen" else None
    return tuple(candidates)


def list_order() -> tuple[str, ...]:
    """The targets that are asked, in order; those that do not exist here are left out."""
    targets, probes = list_entries("target"), list_entries("probe")
    foreign = [name for name in sorted(probes) if name not in ORDER]
    ordered = [*(name for name in ORDER if name != _LAST), *foreign, _LAST]
    return tuple(name for name in ordered if name in targets and name in probes)


def _consider(target: str, wish: Wish) -> Candidate:
    refusal = _refuse(target, wish)
    if refusal is not None:
        return Candidate(target, "passed over", refusal)
    entry = list_entries("probe")[target]
    found = run_probe(entry)
    if not found.available:
        return Candidate(target, "passed over", found.reason, found.device, found.checked)
    lack = _find_lack(target, wish)
    if lack is not None:
        return Candidate(target, "passed over", lack, found.device, found.checked)
    return Candidate(target, "chosen", found.reason, found.device, found.checked)


def _find_lack(target: str, wish: Wish) -> str | None:
    """What keeps this installation from exporting for a device that is there."""
    exporter = list_entries("target")[target]
    lacking = [*exporter.missing(), *exporter.mismatched()]
    if lacking:
        return f"it runs, but exporting for it needs {', '.join(lacking)}: {exporter.install}"
    if wish.config is None:
        return None  # importing torch takes seconds
    try:
        precisions = find_target(target).precisions
    except RuntimeUnavailableError as error:
        return f"it runs, but {error}"
    if wish.precision not in precisions:
        return f"it has no precision {wish.precision}: expected one of {', '.join(precisions)}"
    return None


def run_probe(entry: Entry) -> Probe:
    """Ask whether this machine can run a target, in a process of its own."""
    missing = entry.missing()
    if missing:
        reason = f"needs {', '.join(missing)}: {entry.install}"
        return Probe(False, "", reason, "not asked")
    call = (PROBE_CALL.module, PROBE_CALL.attribute, entry.module, entry.attribute)
    answer = call_in_child(*call, seconds=_SECONDS)
    if answer.failure is not None:
        who = f" of package {entry.package}" if entry.package else ""
        return Probe(False, "", f"its probe{who} failed: {answer.failure}", "the probe failed")
    return Probe(**answer.value)


def _refuse(target: str, wish: Wish) -> str | None:
    """Why a target is not for this model, before any device is asked; None where it is."""
    return next((why for rule in _RULES.get(target, ()) for why in rule(wish)), None)


def _refuse_exact(wish: Wish) -> Iterator[str]:
    if wish.precision == "fp32":
        yield "fp32 asks for exact arithmetic, and it computes in float16"


def _refuse_experts_on_npu(wish: Wish) -> Iterator[str]:
    if wish.config is not None and wish.config.moe is not None:
        yield "a mixture of experts is not practical on an NPU yet (docs/npu.md)"


def _refuse_long_context(wish: Wish) -> Iterator[str]:
    if wish.context_length is not None and wish.context_length > NPU_CONTEXT:
        yield (
            f"--context {wish.context_length} is longer than the {NPU_CONTEXT} that its graphs "
            "were estimated for; --target npu makes it all the same"
        )


def _refuse_experts_in_int8(wish: Wish) -> Iterator[str]:
    if wish.config is not None and wish.config.moe is not None and wish.precision == "int8":
        yield "OpenVINO's GPU plugin fuses experts in int4, not in int8 (openvino#38211)"


_RULES: dict[str, tuple[Callable[[Wish], Iterator[str]], ...]] = {
    "igpu": (_refuse_exact, _refuse_experts_in_int8),
    "npu": (_refuse_exact, _refuse_experts_on_npu, _refuse_long_context),
    "qnn": (_refuse_exact, _refuse_experts_on_npu, _refuse_long_context),
}
