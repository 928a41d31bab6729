"""A checkpoint whose file holds rounded numbers -> a plan that keeps them.

Where a file's numbers are a step times an integer in groups of 32, so are a bundle's: the plan
says "recover", and encoding finds steps and integers that give the very same floats. Of other
types nothing is kept: their grids are in no target's operators.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from exporters.quantize.plan import Precision, TensorPlan, plan_tensor
from exporters.targets.target import Target
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import StoredForm, TellsForms
from lfm2_deploy.errors import ExportError
from lfm2_deploy.imported import KEPT_OF_GGUF
from lfm2_deploy.weights import WeightSpec, list_weights

# Of numbers that are rounded again: so many bits take little from what 4 to 6 bits left.
_BITS, _GROUP = 8, 32
_EXPERT = re.compile(r"(.+\.experts)\.\d+\.w[123]\.weight")
_PRECISIONS: Mapping[int, Precision] = {4: "int4", 8: "int8", 16: "fp16", 32: "fp32"}
_MATRICES = ("projection", "expert")


@dataclass(frozen=True, slots=True)
class KeptPlan:
    """How to store a model as its file does.

    Args:
        precision: what most of its numbers are.
        plan: how each tensor is stored, by canonical name.
        remarks: what is kept and what is not, for people.
    """

    precision: Precision
    plan: Mapping[str, TensorPlan]
    remarks: tuple[str, ...]


def plan_as_stored(checkpoint: TellsForms, config: Lfm2Config, target: Target) -> KeptPlan:
    """Plan each tensor as the file stores it, as far as the target can.

    Args:
        checkpoint: says how the file stores each.
        config: of its model.
        target: where it will run.

    Raises:
        ExportError: the target stores no groups of 32.
    """
    if _GROUP not in target.groups or _GROUP not in target.expert_groups:
        raise ExportError(
            f"target {target.name} cannot store groups of {_GROUP} as a GGUF file does: import "
            "for --target cpu or webgpu, or `export` the file, which rounds its weights again"
        )
    specs = list_weights(config)
    groups: dict[str, list[WeightSpec]] = {}
    for spec in specs:
        groups.setdefault(_EXPERT.sub(r"\1", spec.name), []).append(spec)
    plan: dict[str, TensorPlan] = {}
    for members in groups.values():
        forms = {spec.name: checkpoint.stored_as(spec.name) for spec in members}
        # Experts of a layer are one operator, whose matrices are stored alike.
        distinct = list(dict.fromkeys(forms.values()))
        plan |= {spec.name: _plan(spec, forms[spec.name], distinct) for spec in members}
    return KeptPlan(_choose_precision(specs, plan), plan, _list_remarks(plan))


def _plan(spec: WeightSpec, own: StoredForm, forms: Sequence[StoredForm]) -> TensorPlan:
    """How to store a tensor beside which others lie, in these forms."""
    if spec.role not in (*_MATRICES, "embedding", "head"):
        # float32, which holds whatever any type does.
        return plan_tensor(spec, "fp32")
    bits, group = _join(forms)
    alone = len(forms) == 1 or all(form.bits == bits for form in forms)
    others = " and ".join(form.label for form in forms if form != own)
    beside = "" if alone else f", beside {others}"
    if bits == 0:
        reason = f"{own.label} in the GGUF file{beside}: rounded again"
        return TensorPlan(_BITS, _GROUP, reason)
    reason = f"{own.label} in the GGUF file{beside}: {KEPT_OF_GGUF}"
    return TensorPlan(bits, group, reason, "recover" if group else "search")


def _join(forms: Sequence[StoredForm]) -> tuple[int, int]:
    """Bits and group that hold the numbers of all forms; 0 bits where none does."""
    if any(form.bits == 0 for form in forms):
        return 0, 0
    if all(form.group for form in forms):
        # A level of 4 bits is one of 8.
        return max(form.bits for form in forms), _GROUP
    if any(form.group for form in forms):
        return 32, 0
    return max(form.bits for form in forms), 0


def _choose_precision(specs: Sequence[WeightSpec], plan: Mapping[str, TensorPlan]) -> Precision:
    sizes: Counter[int] = Counter()
    for spec in specs:
        if spec.role in _MATRICES:
            sizes[plan[spec.name].bits] += spec.num_elements
    return _PRECISIONS[sizes.most_common(1)[0][0]]


def _list_remarks(plan: Mapping[str, TensorPlan]) -> tuple[str, ...]:
    again = [n for n, entry in plan.items() if entry.is_quantized and entry.rounding != "recover"]
    kept = "weights are the GGUF file's own numbers"
    if not again:
        return (kept,)
    names = list(dict.fromkeys(_EXPERT.sub(r"\1", name) for name in again))
    shown = ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
    return (
        f"{kept}, except {shown}: of types that no operator reads, and rounded again to {_BITS} "
        "bits",
    )
