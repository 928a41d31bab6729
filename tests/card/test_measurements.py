"""What is kept of measurements, and what is believed of a file that may come from anywhere."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lfm2_deploy.bundle import MEASUREMENTS, Bundle
from lfm2_deploy.card.facts import format_figure
from lfm2_deploy.card.measurements import (
    Figure,
    Measurement,
    add_measurements,
    find_way,
    read_measurements,
)
from lfm2_deploy.errors import BundleError

from .conftest import Make

ONE = Measurement(
    kind="compare",
    bundle="",
    figures=(Figure("KL divergence", 0.02134, 0.00081, "nats"),),
    runtime="ort",
    device="cpu",
    reference="torch",
    created="2026-11-30T12:00:00+00:00",
)


def measured(bundle: Bundle, **changes: Any) -> Measurement:
    return replace(ONE, bundle=bundle.identity, **changes)


def test_measurement_written_is_read_again(make: Make) -> None:
    bundle = make()
    one = measured(bundle, versions={"torch": "2.13.0"})
    add_measurements(bundle, [one])
    assert read_measurements(bundle) == (one,)
    # The manifest knows nothing of it, and the bundle is as whole as before.
    bundle.verify()


def test_later_measurement_of_the_same_replaces_the_earlier(make: Make) -> None:
    bundle = make()
    other = measured(bundle, device="gpu")
    add_measurements(bundle, [measured(bundle), other])
    later = measured(bundle, created="2026-12-01T12:00:00+00:00")
    add_measurements(bundle, [later])
    assert read_measurements(bundle) == (other, later)


def test_measurement_of_other_bytes_is_not_given_out_and_goes_with_the_next(make: Make) -> None:
    bundle = make()
    stale = replace(ONE, bundle="another bundle's identity")
    add_measurements(bundle, [stale])
    assert read_measurements(bundle) == ()
    add_measurements(bundle, [measured(bundle)])
    assert "another bundle's" not in (bundle.path / MEASUREMENTS).read_text()


def test_number_that_is_none_is_left_out(make: Make) -> None:
    bundle = make()
    figures = (Figure("a", math.nan), Figure("b", 1.0, math.nan), Figure("c", math.inf))
    add_measurements(bundle, [measured(bundle, figures=figures)])
    assert read_measurements(bundle)[0].figures == (Figure("b", 1.0, None),)


DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "schema": lambda raw: raw.update(schema=2),
    "no list": lambda raw: raw.update(measurements={}),
    "kind": lambda raw: raw["measurements"][0].update(kind="rumour"),
    "way": lambda raw: raw["measurements"][0].update(way="dreamt"),
    "key": lambda raw: raw["measurements"][0].update(extra=1),
    "text": lambda raw: raw["measurements"][0].update(device=["cpu"]),
    "long": lambda raw: raw["measurements"][0].update(device="x" * 5000),
    "value": lambda raw: raw["measurements"][0]["figures"][0].update(value="small"),
    "unit": lambda raw: raw["measurements"][0]["figures"][0].update(unit="stars"),
    "date": lambda raw: raw["measurements"][0].update(created="yesterday"),
    "versions": lambda raw: raw["measurements"][0].update(versions={"torch": 2}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file_is_one_line_that_says_what_to_do(make: Make, damage: str) -> None:
    bundle = make()
    add_measurements(bundle, [measured(bundle)])
    file = bundle.path / MEASUREMENTS
    raw = json.loads(file.read_text())
    DAMAGES[damage](raw)
    file.write_text(json.dumps(raw))
    with pytest.raises(BundleError, match=r"measurements\.json .*delete it, and measure") as caught:
        read_measurements(bundle)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (Figure("x", 0.02134, 0.00081, "nats"), "0.02134 ± 0.00081 nats"),
        (Figure("x", 0.9312, 0.0021, "share"), "93.12 ± 0.21 %"),
        (Figure("x", 0.9312, None, "share"), "93.1 %"),
        (Figure("x", 28.4321, 3.74), "28.4 ± 3.7"),
        (Figure("x", 12.0, 15.0), "12 ± 15"),
        (Figure("x", 1064.4, unit="tok/s"), "1,064 tok/s"),
        (Figure("x", 90_200_000.0, unit="bytes"), "90.2 MB"),
        (Figure("x", 0.0, 0.0, "nats"), "0 nats"),
    ],
)
def test_figure_is_told_with_two_digits_of_its_error(figure: Figure, text: str) -> None:
    assert format_figure(figure) == text


@pytest.mark.parametrize(
    ("device", "way"),
    [
        ("cpu", "executed"),
        ("NVIDIA H200 (webgpu)", "executed"),
        ("Qualcomm HTP, emulated on this CPU (SoC model 60)", "emulated"),
        ("CPU (onnxruntime), in the place of a Qualcomm NPU", "emulated"),
        ("llvmpipe (LLVM 17)", "emulated"),
        ("dml.0 (gpu, software, Microsoft Basic Render Driver)", "emulated"),
    ],
)
def test_device_in_anothers_place_is_emulated(device: str, way: str) -> None:
    assert find_way(device) == way
