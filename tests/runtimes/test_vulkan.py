"""What is said of Vulkan: loaders, drivers, adapters and permissions, each with its remedy."""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

import pytest

from lfm2_deploy.child import call_in_child
from runtimes import vulkan
from runtimes.vulkan import Adapter, examine_vulkan, find_problems

LLVMPIPE = Adapter("llvmpipe (LLVM 15.0.6, 256 bits)", "cpu", "Mesa 25.0.7-2")
RADEON = Adapter("AMD Radeon 780M (RADV PHOENIX)", "integrated", "radv Mesa 25.0.7")
APT = "sudo apt install libvulkan1 mesa-vulkan-drivers"

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="WebGPU runs on Vulkan on Linux only"
)


@pytest.fixture(autouse=True)
def debian(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/apt" if name == "apt" else None)
    monkeypatch.delenv("VK_ICD_FILENAMES", raising=False)
    monkeypatch.delenv("VK_DRIVER_FILES", raising=False)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A GPU's device file."""
    monkeypatch.setattr(vulkan, "_RENDER_NODES", str(tmp_path / "renderD*"))
    file = tmp_path / "renderD128"
    file.touch()
    return file


def words(problems: list[dict[str, str]]) -> list[str]:
    return [problem["what"] for problem in problems]


def test_hardware_adapter_has_no_problem() -> None:
    assert find_problems([LLVMPIPE, RADEON]) == []


@pytest.mark.usefixtures("node")
def test_missing_loader_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vulkan, "_LOADER", "libno-such-vulkan.so.1")
    found = examine_vulkan()
    assert found["adapters"] == []
    assert found["problems"] == [
        {"what": "there is no Vulkan loader (libno-such-vulkan.so.1)", "remedy": APT}
    ]


@pytest.mark.usefixtures("node")
def test_missing_driver_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    (problem,) = find_problems([])
    assert problem["what"] == "Vulkan has no driver (ICD)"
    assert problem["remedy"].startswith(APT)
    monkeypatch.setenv("VK_ICD_FILENAMES", "/none.json")
    assert find_problems([])[0]["remedy"].startswith("unset VK_ICD_FILENAMES, or sudo apt")


@pytest.mark.usefixtures("node")
def test_software_alone_asks_for_the_gpu_s_driver() -> None:
    (problem,) = find_problems([LLVMPIPE])
    assert problem["what"] == "Vulkan lists software adapters only"
    assert APT in problem["remedy"]


@pytest.mark.usefixtures("node")
@pytest.mark.parametrize(("driver", "old"), [("Mesa 22.3.6", True), ("Mesa 25.0.7-2", False)])
def test_old_lavapipe_is_told(driver: str, old: bool) -> None:
    found = words(find_problems([Adapter("llvmpipe (LLVM 15)", "cpu", driver)]))
    assert any("WebGPU fails with Mesa 22.3" in what for what in found) is old


def test_gpu_that_one_may_not_use_asks_for_the_group(
    node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda file, mode: False)
    (problem,) = find_problems([LLVMPIPE])
    assert problem["what"] == f"you may not use {node}"
    assert problem["remedy"] == "sudo usermod -aG render $USER, then log in again"


def test_machine_without_a_gpu_says_so(node: Path) -> None:
    node.unlink()
    (problem,) = find_problems([LLVMPIPE])
    assert problem["what"].startswith("Linux shows no GPU")
    assert "--device /dev/dri" in problem["remedy"]


@pytest.mark.parametrize(
    ("manager", "command"),
    [
        ("dnf", "sudo dnf install vulkan-loader mesa-vulkan-drivers"),
        ("pacman", "sudo pacman -S vulkan-icd-loader vulkan-intel vulkan-radeon"),
    ],
)
def test_other_package_managers_have_their_own_words(
    manager: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: name if name == manager else None)
    assert vulkan.explain_install() == command
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert APT in vulkan.explain_install()
    assert command in vulkan.explain_install()


@pytest.mark.parametrize(
    ("name", "kind", "software"),
    [
        ("llvmpipe (LLVM 15.0.6, 256 bits)", "cpu", True),
        ("SwiftShader Device (LLVM 10.0.0)", "cpu", True),
        ("Virtio-GPU Venus (llvmpipe (LLVM 15.0.6, 256 bits))", "virtual", True),
        ("NVIDIA GeForce RTX 4070", "discrete", False),
    ],
)
def test_emulations_are_told_from_gpus(name: str, kind: str, software: bool) -> None:
    assert Adapter(name, kind, "").is_software is software


def test_vulkan_here_is_read_in_a_child() -> None:
    try:
        ctypes.CDLL("libvulkan.so.1")
    except OSError:
        pytest.skip("there is no Vulkan loader (package libvulkan1)")
    answer = call_in_child("runtimes.vulkan", "examine_vulkan", seconds=60.0)
    assert answer.failure is None
    for adapter in answer.value["adapters"]:
        assert adapter["name"].isprintable()
        assert adapter["kind"] in vulkan._KINDS
    json.dumps(answer.value)
