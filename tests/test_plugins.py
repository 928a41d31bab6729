"""Runtimes, targets and probes of other packages: real small ones, found by their metadata."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from lfm2_deploy import auto, export, load
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.errors import RuntimeUnavailableError
from lfm2_deploy.registry import (
    TARGETS,
    find_package,
    find_runtime,
    find_target,
    list_entries,
    list_problems,
)

# pytest imports test modules one by one (importmode importlib), without their folder.
_SPEC = spec_from_file_location("foreign", Path(__file__).with_name("foreign.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
_FOREIGN = module_from_spec(_SPEC)
_SPEC.loader.exec_module(_FOREIGN)
write_package = _FOREIGN.write_package

RUNTIMES, LFM2_TARGETS = "lfm2_deploy.runtimes", "lfm2_deploy.targets"
PROBES = "lfm2_deploy.probes"
# The CPU's graph under a name of its own, run by our own adapter: what a package would do that
# differs in one pass.
ACME = """
from dataclasses import replace

from exporters.targets.cpu import CPU

TARGET = replace(CPU, name="acme", runtime="acme")
"""
ACME_RUN = """
from lfm2_deploy.contracts import Probe
from runtimes.ort import OrtRuntime


def load(bundle, *, threads=None, device=None):
    return OrtRuntime(bundle, threads)


def probe():
    return Probe(True, "an Acme 1", "ran a graph there", "ran a graph there")
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a package for one test."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def write(name: str, points: dict[str, dict[str, str]], **modules: str) -> None:
        write_package(site, name, points, modules)

    yield write
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(site)):
            del sys.modules[name]


@pytest.fixture
def acme(install: Install) -> None:
    """A package with a target, its runtime and its probe."""
    points = {
        RUNTIMES: {"acme": "acme_run:load"},
        LFM2_TARGETS: {"acme": "acme_target:TARGET"},
        PROBES: {"acme": "acme_run:probe"},
    }
    install("acme-lfm2", points, acme_target=ACME, acme_run=ACME_RUN)


@pytest.mark.usefixtures("acme")
def test_target_and_runtime_of_a_package_export_and_load(tmp_path: Path) -> None:
    bundle = export(str(DEMO_MODEL), tmp_path / "bundle", target="acme", precision="fp32")
    assert (bundle.manifest.target, bundle.manifest.runtime) == ("acme", "acme")
    assert bundle.manifest.made_with["acme-lfm2"] == "1.0"
    text = load(bundle, threads=1).generate("Once", max_new_tokens=2).text
    assert text
    sys.path.pop(0)  # as if it were uninstalled; the fixture puts the rest right
    with pytest.raises(RuntimeUnavailableError) as caught:
        load(bundle)
    assert str(caught.value) == (
        f"{bundle.path} was made for runtime 'acme', which no installed package brings "
        "(there are ort, openvino, reference): install the one that does; it was made with "
        "acme-lfm2 1.0"
    ).replace("ort, openvino, reference", ", ".join(_own_runtimes()))


def _own_runtimes() -> list[str]:
    return [name for name, entry in list_entries("runtime").items() if not entry.package]


@pytest.mark.usefixtures("acme")
def test_commands_know_a_package_s_target(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from lfm2_deploy.cli import app

    def run(*words: object) -> str:
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == 0, result.stderr
        return result.stdout

    place = tmp_path / "bundle"
    run("export", DEMO_MODEL, place, "--target", "acme")
    assert "runtime acme of package acme-lfm2" in run("inspect", place)
    made = json.loads(run("generate", place, "Once", "--max-new-tokens", "2", "--json"))
    assert made
    report = json.loads(run("doctor", "--json"))
    assert report["targets"]["acme"]["available"] is True
    assert report["runtimes"]["acme"]["package"] == "acme-lfm2"
    chosen = [found["target"] for found in report["auto"] if found["outcome"] == "chosen"]
    assert chosen == ["acme"]


@pytest.mark.usefixtures("acme")
def test_probe_of_a_package_comes_before_the_cpu() -> None:
    assert auto.list_order()[-2:] == ("acme", "cpu")
    found = {candidate.target: candidate for candidate in auto.consider(auto.Wish())}
    assert found["acme"].outcome == "chosen"
    assert found["acme"].device == "an Acme 1"
    assert found["cpu"].reason == "acme comes first"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise OSError('no such board')", "its probe of package acme-lfm2 failed: no such board"),
        ("return True", "acme_run:probe gives bool, expected a Probe"),
        ("import os; os._exit(3)", "the process ended with code 0x3"),
        ("import time; time.sleep(60)", "it did not answer within 2 s"),
    ],
)
def test_probe_that_fails_is_passed_over_with_the_reason(
    body: str, reason: str, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "_SECONDS", 2.0)
    points = {LFM2_TARGETS: {"acme": "acme_target:TARGET"}, PROBES: {"acme": "acme_run:probe"}}
    install("acme-lfm2", points, acme_target=ACME, acme_run=f"def probe():\n    {body}\n")
    found = auto.run_probe(list_entries("probe")["acme"])
    assert not found.available
    assert reason in found.reason


def test_own_name_wins_and_the_clash_names_both_packages(install: Install) -> None:
    install("acme-lfm2", {LFM2_TARGETS: {"cpu": "nowhere:TARGET"}})
    assert list_entries("target")["cpu"] is TARGETS["cpu"]
    assert find_target("cpu").name == "cpu"
    (problem,) = list_problems("target")
    assert problem == (
        "target 'cpu' of package acme-lfm2 1.0 is not used: lfm2-deploy has a target of that "
        "name; uninstall acme-lfm2, or ask its makers for another name"
    )


def test_name_of_two_packages_is_an_error_that_names_both(install: Install) -> None:
    for name in ("acme-lfm2", "other-lfm2"):
        install(name, {RUNTIMES: {"acme": "acme_run:load"}})
    message = (
        "runtime 'acme' is offered by several packages, acme-lfm2 and other-lfm2: "
        "uninstall all but one"
    )
    with pytest.raises(RuntimeUnavailableError) as caught:
        find_runtime("acme")
    assert str(caught.value) == message
    assert list_problems("runtime") == [message]
    assert "acme" not in list_entries("runtime")
    assert callable(find_runtime("ort"))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import no_such_module_at_all\n", "ModuleNotFoundError: No module named"),
        ("def load(:\n", "SyntaxError"),
        ("raise RuntimeError('no\\n  licence')\n", "RuntimeError: no licence"),
        ("import sys\nsys.exit(7)\n", "SystemExit: 7"),
        ("x = 1\n", "AttributeError"),
    ],
)
def test_plugin_that_cannot_be_imported_is_one_line_that_names_its_package(
    source: str, words: str, install: Install
) -> None:
    install("acme-lfm2", {RUNTIMES: {"acme": "acme_run:load"}}, acme_run=source)
    with pytest.raises(RuntimeUnavailableError) as caught:
        find_runtime("acme")
    message = str(caught.value)
    assert message.startswith("runtime 'acme' of package acme-lfm2 1.0 cannot be imported (")
    assert words in message
    assert message.endswith("pip install --upgrade acme-lfm2, or uninstall acme-lfm2")
    assert "\n" not in message
    assert callable(find_runtime("ort"))


@pytest.mark.parametrize("name", ["auto", "Acme", "a b", "../x"])
def test_name_that_cannot_be_typed_is_a_problem(name: str, install: Install) -> None:
    install("acme-lfm2", {LFM2_TARGETS: {name: "acme_target:TARGET"}}, acme_target=ACME)
    (problem,) = list_problems("target")
    assert problem.startswith(f"target {name!r} of package acme-lfm2 1.0 is not used:")
    assert name not in list_entries("target")


def test_target_that_calls_itself_otherwise_is_refused(install: Install) -> None:
    install("acme-lfm2", {LFM2_TARGETS: {"acme2": "acme_target:TARGET"}}, acme_target=ACME)
    with pytest.raises(RuntimeUnavailableError, match=r"is Target 'acme', expected .* 'acme2'"):
        find_target("acme2")


def test_runtime_that_is_no_function_is_refused(install: Install) -> None:
    install("acme-lfm2", {RUNTIMES: {"acme": "acme_run:load"}}, acme_run="load = 3\n")
    with pytest.raises(RuntimeUnavailableError, match=r"is int, expected a function load"):
        find_runtime("acme")


def test_broken_plugins_do_not_break_doctor(install: Install) -> None:
    from typer.testing import CliRunner

    from lfm2_deploy.cli import app

    install("acme-lfm2", {RUNTIMES: {"acme": "acme_run:load", "ort": "acme_run:load"}})
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    assert "acme       broken" in result.stdout
    assert "lfm2-deploy has a runtime of that name" in result.stdout
    assert "ort        ready" in result.stdout


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import sys\nsys.exit(7)\n", "(SystemExit: 7)"),
        ("import os\nos._exit(0)\n", "(the process ended with code 0x0: it said nothing)"),
        pytest.param(
            "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n",
            "(the process crashed (SIGSEGV): it said nothing)",
            marks=pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals"),
        ),
        ("import time\ntime.sleep(60)\n", "(it did not answer within 3 s)"),
    ],
)
def test_plugin_that_ends_the_process_costs_doctor_one_line(
    source: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own, which the plugin would end."""
    site = tmp_path / "site"
    points = {RUNTIMES: {"acme": "acme_run:load"}}
    write_package(site, "acme-lfm2", points, {"acme_run": source})
    # What this process finds, the new one finds as well.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *filter(None, sys.path)]))
    code = (
        "import sys\n"
        "from lfm2_deploy.cli import main\n"
        "from lfm2_deploy.commands import doctor, doctor_devices\n"
        # The package has the command under the module's name.
        "module = sys.modules['lfm2_deploy.commands.doctor']\n"
        f"module._PLUGIN_SECONDS = {3.0 if 'sleep' in source else 60.0}\n"
        "doctor_devices.examine_auto = list\n"
        "doctor_devices.examine_ort = lambda vulkan: None\n"
        "sys.argv[1:] = ['doctor', '--json']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    acme = report["runtimes"]["acme"]
    assert acme["available"] is False
    assert acme["fault"] == (
        f"runtime 'acme' of package acme-lfm2 1.0 cannot be imported {words}: "
        "pip install --upgrade acme-lfm2, or uninstall acme-lfm2"
    )
    assert report["runtimes"]["ort"]["available"] is True


def test_package_of_a_name_is_found(acme: None) -> None:
    assert find_package("target", "acme") == "acme-lfm2"
    assert find_package("target", "cpu") == find_package("target", "no such") == ""


def test_every_kind_has_a_group_of_its_own() -> None:
    from lfm2_deploy.plugins import GROUPS

    assert set(GROUPS.values()) == {
        f"lfm2_deploy.{name}"
        for name in ("runtimes", "targets", "lints", "probes", "ort_providers")
    }
