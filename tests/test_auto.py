"""`--target auto`: on machines made up for the purpose, each outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from lfm2_deploy import auto
from lfm2_deploy.auto import ORDER, Wish, choose, consider
from lfm2_deploy.checkpoint import describe_model
from lfm2_deploy.contracts import Probe
from lfm2_deploy.entry import Entry
from lfm2_deploy.errors import RuntimeUnavailableError

DENSE = describe_model("synthetic:tiny-dense", None)[0]
MOE = describe_model("synthetic:tiny-moe", None)[0]
ALL = {name: Probe(True, f"the {name}", "ran a graph", "ran a graph") for name in ORDER}
Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine on which only these targets' devices run; every target is installed."""

    def furnish(*present: str, lacking: str = "", precisions: tuple = ("fp32", "int8", "int4")):
        def entry(name: str) -> Entry:
            needs = ("no_such_package",) if name == lacking else ()
            return Entry(name, "", needs, f"pip install {name}", name)

        entries = {name: entry(name) for name in ORDER}
        monkeypatch.setattr(auto, "list_entries", lambda kind: entries)
        monkeypatch.setattr(auto, "find_target", lambda n: SimpleNamespace(precisions=precisions))
        absent = Probe(False, "", "there is none", "not run")
        monkeypatch.setattr(
            auto, "run_probe", lambda e: ALL[e.module] if e.module in present else absent
        )

    return furnish


def outcomes(wish: Wish) -> Mapping[str, str]:
    return {found.target: found.outcome for found in consider(wish)}


def test_order_is_as_documented() -> None:
    assert ORDER == ("igpu", "directml", "webgpu", "npu", "qnn", "cpu")


@pytest.mark.parametrize(
    ("present", "chosen"),
    [
        (ORDER, "igpu"),
        (("directml", "webgpu", "cpu"), "directml"),
        (("webgpu", "npu", "cpu"), "webgpu"),
        (("npu", "qnn", "cpu"), "npu"),
        (("qnn", "cpu"), "qnn"),
        (("cpu",), "cpu"),
    ],
)
def test_first_device_that_runs_is_chosen(
    present: tuple[str, ...], chosen: str, machine: Machine
) -> None:
    machine(*present)
    choice = choose(Wish(DENSE))
    assert choice.target == chosen
    assert [c.target for c in choice.candidates] == list(ORDER)
    before = choice.candidates[: ORDER.index(chosen)]
    assert {c.outcome for c in before} <= {"passed over"}
    assert all(c.reason for c in choice.candidates)
    assert choice.describe() == f"--target auto chose {chosen} on the {chosen}: ran a graph"


def test_devices_behind_the_chosen_are_not_asked(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(*ORDER)
    asked = []
    monkeypatch.setattr(
        auto, "run_probe", lambda e: [asked.append(e.module), replace(ALL[e.module])][1]
    )
    choose(Wish(DENSE))
    assert asked == ["igpu"]


def test_mixture_of_experts_is_not_put_on_an_npu(machine: Machine) -> None:
    machine("npu", "qnn", "cpu")
    choice = choose(Wish(MOE))
    assert choice.target == "cpu"
    assert "mixture of experts is not practical" in choice.candidates[3].reason


@pytest.mark.parametrize(("context", "chosen"), [(None, "npu"), (1024, "npu"), (1025, "cpu")])
def test_npu_takes_the_contexts_it_was_estimated_for(
    context: int | None, chosen: str, machine: Machine
) -> None:
    machine("npu", "cpu")
    assert choose(Wish(DENSE, "int4", context)).target == chosen


@pytest.mark.parametrize(
    ("config", "precision", "chosen"),
    [
        (DENSE, "int8", "igpu"),
        (MOE, "int8", "cpu"),
        (MOE, "int4", "igpu"),
        (DENSE, "fp32", "cpu"),
    ],
)
def test_igpu_is_passed_over_for_what_it_cannot_do_well(
    config: Any, precision: str, chosen: str, machine: Machine
) -> None:
    machine("igpu", "cpu")
    assert choose(Wish(config, precision)).target == chosen


def test_target_that_cannot_be_exported_for_is_passed_over_with_the_remedy(
    machine: Machine,
) -> None:
    machine("igpu", "cpu", lacking="igpu")
    choice = choose(Wish(DENSE))
    assert choice.target == "cpu"
    assert choice.candidates[0].reason == (
        "it runs, but exporting for it needs no_such_package: pip install igpu"
    )


def test_precision_that_a_target_lacks_passes_it_over(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("webgpu", "cpu")
    lists = {"webgpu": ("fp16", "int4"), "cpu": ("fp32", "int4")}
    monkeypatch.setattr(auto, "find_target", lambda n: SimpleNamespace(precisions=lists[n]))
    choice = choose(Wish(DENSE, "fp32"))
    assert choice.target == "cpu"
    assert choice.candidates[2].reason == "it has no precision fp32: expected one of fp16, int4"


def test_machine_that_runs_nothing_is_an_error_with_every_reason(machine: Machine) -> None:
    machine()
    with pytest.raises(RuntimeUnavailableError) as caught:
        choose(Wish(DENSE))
    message = str(caught.value)
    assert message.startswith("--target auto finds no target to choose: igpu: there is none; ")
    assert all(f"{name}: " in message for name in ORDER)


def test_targets_that_are_not_there_are_not_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"cpu": Entry("cpu", "", (), "", "")}
    monkeypatch.setattr(auto, "list_entries", lambda kind: here)
    assert auto.list_order() == ("cpu",)


def test_probe_whose_package_is_missing_says_how_to_get_it() -> None:
    found = auto.run_probe(Entry("x", "y", ("no_such_package",), "pip install it", "looking"))
    assert found == Probe(False, "", "needs no_such_package: pip install it", "not asked")
