"""`--device`: a device, or a runtime with or without a device of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lfm2_deploy import places
from lfm2_deploy.bundle import Bundle
from lfm2_deploy.compare.subjects import read_subject
from lfm2_deploy.errors import RuntimeUnavailableError
from lfm2_deploy.places import load_runtime, split_place


@pytest.mark.parametrize(
    ("text", "runtime", "device"),
    [
        ("cpu", None, "cpu"),
        ("GPU.1", None, "gpu.1"),
        ("genai", "genai", None),
        ("genai:", "genai", None),
        ("Genai:CUDA", "genai", "cuda"),
        # Names of runtimes that are names of devices, too, are the bundle's own device.
        ("webgpu", None, "webgpu"),
        ("directml.1", None, "directml.1"),
        ("webgpu:cpu", "webgpu", "cpu"),
        ("abacus", None, "abacus"),
    ],
)
def test_place_is_a_device_or_a_runtime(text: str, runtime: str | None, device: str | None) -> None:
    assert split_place(text) == (runtime, device)


def test_unknown_runtime_lists_the_choices() -> None:
    with pytest.raises(RuntimeUnavailableError, match=r"no runtime 'gnai'.*mean genai"):
        split_place("gnai:cuda")


def test_two_runtimes_are_refused(bundle_of: Callable[..., Bundle]) -> None:
    with pytest.raises(RuntimeUnavailableError, match="leave one out"):
        load_runtime(bundle_of("dense", "fp32"), runtime="ort", device="genai:cpu")


def test_runtime_is_given_its_own_device_and_no_other(
    bundle_of: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def find(bundle: Bundle, name: str | None) -> Callable[..., None]:
        return lambda bundle, **choice: given.append((name, choice))

    monkeypatch.setattr(places, "find_runtime_of", find)
    bundle = bundle_of("dense", "fp32")
    for device in (None, "cpu", "genai", "genai:cuda"):
        load_runtime(bundle, threads=2, device=device)
    assert given == [
        (None, {"threads": 2}),
        (None, {"threads": 2, "device": "cpu"}),
        ("genai", {"threads": 2}),
        ("genai", {"threads": 2, "device": "cuda"}),
    ]


def test_subject_of_a_comparison_names_its_runtime(bundle_of: Callable[..., Bundle]) -> None:
    folder = bundle_of("dense", "fp32").path
    assert read_subject(folder).runtime == "ort"
    assert read_subject(f"{folder}@cpu").runtime == "ort"
    assert read_subject(f"{folder}@genai:cuda").runtime == "genai"
    assert read_subject(f"{folder}@genai").describe().runtime == "genai"
