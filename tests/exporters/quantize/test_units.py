"""What can be chosen for a model, and what it takes."""

from __future__ import annotations

import pytest

from exporters.quantize.pack import pack, quantize
from exporters.quantize.plan import Precision, TensorPlan
from exporters.quantize.units import list_units, measure_size
from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.contracts import Checkpoint
from lfm2_deploy.registry import find_target
from lfm2_deploy.weights import list_weights

TARGETS = ["cpu", "webgpu", "directml", "openvino-cpu", "igpu", "npu", "qnn"]


@pytest.fixture(scope="module", params=["synthetic:LFM2-350M", "synthetic:LFM2-8B-A1B"])
def real(request: pytest.FixtureRequest) -> Checkpoint:
    return open_checkpoint(request.param)


@pytest.mark.parametrize("target", TARGETS)
def test_each_quantized_tensor_is_in_one_unit_and_in_all_its_options(
    real: Checkpoint, target: str
) -> None:
    weights = list_weights(real.config)
    units = list_units(weights, find_target(target))
    names = [name for unit in units for name in unit.options[0].plans]
    kinds = ("embedding", "head", "projection", "expert")
    assert names == [weight.name for weight in weights if weight.role in kinds]
    for unit in units:
        assert all(option.plans.keys() == unit.options[0].plans.keys() for option in unit.options)
        sizes = [option.size_bytes for option in unit.options]
        assert sizes == sorted(sizes)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_what_a_target_plans_is_among_the_options(
    real: Checkpoint, target: str, precision: Precision
) -> None:
    found, weights = find_target(target), list_weights(real.config)
    if precision not in found.precisions:
        return
    plans = found.plan(weights, precision)
    for unit in list_units(weights, found):
        wanted = [(plans[name].bits, plans[name].group) for name in unit.options[0].plans]
        offered = [
            [(plan.bits, plan.group) for plan in option.plans.values()] for option in unit.options
        ]
        assert wanted in offered


def test_experts_of_a_layer_share_bits_and_group_in_every_option() -> None:
    weights = list_weights(open_checkpoint("synthetic:LFM2-8B-A1B").config)
    units = list_units(weights, find_target("cpu"))
    options = [
        option
        for unit in units
        for option in unit.options
        if any(".experts." in name for name in option.plans)
    ]
    assert len(options) > 22
    for option in options:
        # onnxruntime-genai's builder takes no others for a QMoE node.
        assert all(plan.group in (32, 64, 128) for plan in option.plans.values())
        assert len({(plan.bits, plan.group) for plan in option.plans.values()}) == 1


def test_a_targets_options_are_its_groups_in_4_bits_and_8_bits() -> None:
    weights = list_weights(open_checkpoint("synthetic:LFM2-350M").config)
    cpu, npu = (list_units(weights, find_target(name))[1] for name in ("cpu", "npu"))
    assert (cpu.name, npu.name) == ("layer 0 mixer", "layer 0 mixer")
    assert [option.label for option in cpu.options] == [
        "4 bits, groups of 256",
        "4 bits, groups of 128",
        "4 bits, groups of 64",
        "4 bits, groups of 32",
        "8 bits, groups of 32",
    ]
    assert [option.label for option in npu.options] == [
        "4 bits, groups of 1024",
        "8 bits, groups of 1024",
    ]


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 64), (8, 32)])
def test_a_size_is_that_of_the_arrays(bits: int, group: int) -> None:
    checkpoint = open_checkpoint("synthetic:tiny-moe")
    weight = next(w for w in list_weights(checkpoint.config) if w.role == "expert")
    levels, scales = quantize(checkpoint.read(weight.name), bits, group)
    stored = pack(levels, bits).nbytes + scales.nbytes
    assert measure_size([weight], {weight.name: TensorPlan(bits, group, "")}, 4) == stored
