"""Shell completion: what a word may become, and what really happens in bash, zsh and fish."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pexpect
import pytest
from typer.completion import completion_init

from lfm2_deploy.commands.folders import find_folders
from lfm2_deploy.commands.shells import SWITCH, install
from lfm2_deploy.registry import DEVICES

HEAVY = ("torch", "onnx", "onnxruntime", "numpy", "tokenizers", "jinja2", "transformers")
ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ("manifest.json",)

Complete = Callable[..., list[str]]


def make_bundle(path: Path, runtime: str = "ort") -> Path:
    path.mkdir(parents=True)
    (path / "manifest.json").write_text(json.dumps({"runtime": runtime}), encoding="utf-8")
    return path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with bundles and other things in it, where the shell is."""
    folder = tmp_path / "work"
    make_bundle(folder / "models" / "my bundle", "qnn")
    make_bundle(folder / "models" / "cpu-bundle")
    (folder / "photos").mkdir()
    (folder / "prompts.txt").write_text("Hi\n", encoding="utf-8")
    return folder


@pytest.fixture
def programs(tmp_path: Path) -> dict[str, str]:
    """An environment in which `lfm2-deploy` is this package's, and the home is empty."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "lfm2-deploy"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lfm2_deploy "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COMP_")}
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "TERM": "dumb"}


@pytest.fixture
def complete(place: Path, programs: dict[str, str]) -> Complete:
    """What bash is told when Tab is pressed behind these words, one word an argument."""

    def run(*words: str, expect: int = 0) -> list[str]:
        asked = {"COMP_WORDS": "\n".join(("lfm2-deploy", *words)), "COMP_CWORD": str(len(words))}
        done = subprocess.run(
            ["lfm2-deploy"],
            env={**programs, **asked, SWITCH: "complete_bash"},
            cwd=place,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (expect, "")
        return [line for line in done.stdout.splitlines() if line]

    return run


def test_command_is_completed(complete: Complete) -> None:
    assert complete("che") == ["check"]


def test_options_of_a_command_are_completed(complete: Complete) -> None:
    assert complete("generate", "x", "--prom") == ["--prompts-file", "--prompt-cache"]


def test_bundles_are_completed_and_other_folders_are_not(complete: Complete) -> None:
    # "models" alone leads to bundles, so it is entered; spaces are escaped as bash wants them.
    assert complete("chat", "") == ["models/cpu-bundle", r"models/my\ bundle"]


def test_targets_are_those_of_the_registry(complete: Complete) -> None:
    from lfm2_deploy.auto import AUTO
    from lfm2_deploy.registry import LINTS, TARGETS

    assert complete("export", "x", "--target", "") == [*TARGETS, AUTO]
    assert complete("plan", "x", "--target", "") == [*TARGETS]
    assert complete("lint", "x", "--target", "") == [*LINTS]


def test_rounding_methods_are_the_exporters(complete: Complete) -> None:
    from exporters.quantize.methods import METHODS

    assert complete("export", "x", "--quantize", "") == list(METHODS)


def test_precisions_are_completed_one_by_one_and_in_lists(complete: Complete) -> None:
    assert complete("export", "x", "--precision", "int") == ["int8", "int4"]
    assert complete("compare", "x", "--precision", "int8,int") == ["int8,int4"]


def test_devices_are_those_of_the_bundles_runtime(complete: Complete) -> None:
    assert complete("chat", r"models/my\ bundle", "--device", "") == ["cpu", "emulator", "npu"]
    # onnxruntime-genai runs the same bundles.
    found = complete("chat", "models/cpu-bundle", "--device", "")
    assert sorted(found) == sorted(["cpu", *DEVICES["genai"]])
    assert "low-power" in complete("chat", "elsewhere", "--device", "")


def test_subject_of_compare_is_completed_behind_its_at_sign(complete: Complete) -> None:
    # bash keeps the "@" in the word that it replaces, and ends the word before.
    assert complete("compare", r"models/my\ bundle", "@", "em") == ["@emulator"]


def test_word_that_bash_took_apart_is_put_together(complete: Complete) -> None:
    assert complete("export", "synthetic", ":", "tiny") == ["tiny-dense", "tiny-moe"]
    assert complete("export", "x", "--target", "=", "cp") == ["cpu"]
    assert complete("compare", "torch", ":", "synthetic", ":", "tiny-d") == ["tiny-dense"]


def test_models_are_hub_ids_and_shapes(complete: Complete) -> None:
    from lfm2_deploy.checkpoint.shapes import SHAPES

    found = complete("export", "")
    assert "LiquidAI/LFM2-350M" in found
    assert [f"synthetic:{name}" for name in SHAPES] == found[-len(SHAPES) :]


def test_tasks_of_eval_are_those_that_come_along(complete: Complete) -> None:
    assert "lfm2_demo_ending" in complete("eval", "x", "--tasks", "lfm2")


def test_file_options_are_left_to_the_shell(complete: Complete) -> None:
    assert complete("generate", "x", "--prompts-file", "prom") == []


@pytest.mark.parametrize(
    "words", [("nonsense", "x"), ("chat", "--nope", "x"), ("chat", "'open"), ("chat", "~nobody/")]
)
def test_nonsense_is_completed_by_nothing(complete: Complete, words: Sequence[str]) -> None:
    assert complete(*words) == []


def test_failure_while_completing_says_nothing(place: Path, programs: dict[str, str]) -> None:
    # No COMP_WORDS: not even what bash always sends.
    for asks in ("complete_bash", "complete_zsh", "complete_fish"):
        done = subprocess.run(
            ["lfm2-deploy"], env={**programs, SWITCH: asks}, cwd=place, capture_output=True
        )
        assert done.stderr == b""


def test_completing_loads_nothing_heavy(place: Path) -> None:
    lines = ("lfm2-deploy\nchat\n", "lfm2-deploy\nexport\n", "lfm2-deploy\ncompare\n")
    script = (
        "import os, sys\n"
        "from lfm2_deploy.cli import app\n"
        f"os.environ[{SWITCH!r}] = 'complete_bash'\n"
        f"for line in {lines!r}:\n"
        "    os.environ.update(COMP_WORDS=line, COMP_CWORD='2')\n"
        "    try: app(standalone_mode=False)\n"
        "    except SystemExit as done: assert done.code == 0\n"
        "for words in ('--target', '--quantize', '--precision', '--experts', '--platform'):\n"
        "    os.environ.update(COMP_WORDS=f'x\\nexport\\nm\\n{words}\\n', COMP_CWORD='4')\n"
        "    try: app(standalone_mode=False)\n"
        "    except SystemExit as done: assert done.code == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=place, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stderr == "[]\n"
    assert "awq+gptq" in done.stdout


def test_names_of_the_store_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lfm2_deploy.commands.completers import complete_bundles, complete_sources, complete_stored

    for name in ("lfm2-demo", "other", ".trash"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    (tmp_path / "lfm2-no-model").mkdir()
    monkeypatch.setenv("LFM2_DEPLOY_STORE", str(tmp_path))
    assert complete_bundles("lfm2-d") == complete_stored("lfm2-d") == ["lfm2-demo"]
    assert complete_stored("") == ["lfm2-demo", "other"]
    assert "demo" in complete_sources("de")


def test_store_that_is_not_there_completes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lfm2_deploy.commands.completers import complete_stored

    monkeypatch.setenv("LFM2_DEPLOY_STORE", str(tmp_path / "absent"))
    assert complete_stored("") == []


def test_every_bundle_argument_is_completed() -> None:
    from typer.main import get_command

    from lfm2_deploy.cli import app

    completion_init()
    group = get_command(app)
    for command in group.commands.values():  # type: ignore[attr-defined]
        for param in command.params:
            if "BUNDLE" in (param.metavar or ""):
                context = command.make_context(command.name, [], resilient_parsing=True)
                found = param.shell_complete(context, str(ROOT / "lfm2_deploy" / "no-such"))
                assert found == [], command.name
                assert param._custom_shell_complete is not None, f"{command.name}: autocompletion"


# Folders.


def test_folder_on_the_way_ends_in_a_separator(tmp_path: Path) -> None:
    make_bundle(tmp_path / "a" / "deep" / "one")
    make_bundle(tmp_path / "b")
    assert find_folders(f"{tmp_path}/", BUNDLE) == [f"{tmp_path}/a/", f"{tmp_path}/b"]


def test_finished_folder_is_kept(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "one")
    assert find_folders(f"{bundle}/", BUNDLE) == [f"{bundle}/"]


def test_hidden_folders_are_found_only_when_asked_for(tmp_path: Path) -> None:
    make_bundle(tmp_path / ".kept")
    assert find_folders(f"{tmp_path}/", BUNDLE) == []
    assert find_folders(f"{tmp_path}/.k", BUNDLE) == [f"{tmp_path}/.kept"]


def test_home_stays_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    make_bundle(tmp_path / "one")
    assert find_folders("~/o", BUNDLE) == ["~/one"]


def test_folder_too_large_to_search_is_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        (tmp_path / "large" / str(number)).mkdir(parents=True)
    assert find_folders(f"{tmp_path}/l", BUNDLE) == []
    monkeypatch.setattr("lfm2_deploy.commands.folders._MOST_ENTRIES", 10)
    assert find_folders(f"{tmp_path}/l", BUNDLE) == [f"{tmp_path}/large/"]


# In shells. READLINE_LINE and BUFFER are what stands in the line after Tab.

_TEACH = {
    "bash": "source <(lfm2-deploy --show-completion --shell bash); "
    "bind 'set enable-bracketed-paste off'; "
    'bind -x \'"\\C-g": echo "LINE=[$READLINE_LINE]"\'',
    "zsh": "autoload -Uz compinit; compinit -u -D; "
    "source <(lfm2-deploy --show-completion --shell zsh); "
    'show() { print -r -- "LINE=[$BUFFER]" }; zle -N show; bindkey "^G" show',
}
_START = {"bash": ["--norc", "--noprofile", "-i"], "zsh": ["-f", "-i"]}
_TYPED = {
    "lfm2-deploy cha": "lfm2-deploy chat ",
    "lfm2-deploy chat models/m": r"lfm2-deploy chat models/my\ bundle ",
    "lfm2-deploy export x --target=c": "lfm2-deploy export x --target=cpu ",
    r"lfm2-deploy compare models/my\ bundle@em": r"lfm2-deploy compare models/my\ bundle@emulator ",
    "lfm2-deploy export synthetic:tiny-d": "lfm2-deploy export synthetic:tiny-dense ",
    "lfm2-deploy generate x --prompts-file prom": (
        "lfm2-deploy generate x --prompts-file prompts.txt "
    ),
}


@pytest.mark.parametrize("shell", list(_TEACH))
def test_tab_in_a_shell_completes(shell: str, place: Path, programs: dict[str, str]) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"not run: there is no {shell} on this machine")
    child = pexpect.spawn(
        shell, _START[shell], env=programs, cwd=str(place), encoding="utf-8", timeout=30,
        dimensions=(50, 250),
    )  # fmt: skip
    child.sendline(f"PS1='> '; {_TEACH[shell]}; echo RE''ADY")
    child.expect("READY")
    for typed, expected in _TYPED.items():
        child.send(f"{typed}\t\x07")
        child.expect(r"LINE=\[([^\]]*)\]")
        assert child.match.group(1) == expected
        child.sendcontrol("u")
    child.close(force=True)


def test_fish_completes(place: Path, programs: dict[str, str]) -> None:
    if shutil.which("fish") is None:
        pytest.skip("not run: there is no fish on this machine")
    lines = ("cha", "chat models/m", "export x --target=c", "generate x --prompts-file prom")
    asked = "; ".join(f'complete -C "lfm2-deploy {line}"' for line in lines)
    script = f"lfm2-deploy --show-completion --shell fish | source; {asked}"
    done = subprocess.run(
        ["fish", "--no-config", "-c", script], env=programs, cwd=place, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "chat\tTalk with a model.",
        "models/my bundle",
        "--target=cpu",
        "prompts.txt",
    ]


def test_powershell_quotes_what_needs_it(place: Path, programs: dict[str, str]) -> None:
    asked = {"_TYPER_COMPLETE_ARGS": "lfm2-deploy chat mod", SWITCH: "complete_powershell"}
    done = subprocess.run(
        ["lfm2-deploy"], env={**programs, **asked, "_TYPER_COMPLETE_WORD_TO_COMPLETE": "mod"},
        cwd=place, capture_output=True, text=True,
    )  # fmt: skip
    words = [line.partition(":::")[0] for line in done.stdout.splitlines()]
    assert words == ["models/cpu-bundle", "'models/my bundle'"]


# Scripts and installing.


def test_script_of_powershell_asks_this_program(run: Callable) -> None:
    # Read, not run: there is no PowerShell here.
    script = run("--show-completion", "--shell", "powershell").stdout
    assert f'$Env:{SWITCH} = "complete_powershell"' in script
    assert "Register-ArgumentCompleter -Native -CommandName lfm2-deploy" in script
    assert script.count("{") == script.count("}")


def test_unknown_shell_names_the_choices(run: Callable, fails: Callable) -> None:
    fails(run("--show-completion", "--shell", "tcsh"), "'tcsh'", "'bash'", "'fish'", code=2)


@pytest.mark.parametrize(
    ("shell", "file"),
    [
        ("bash", ".bash_completions/lfm2-deploy.sh"),
        ("zsh", ".zfunc/_lfm2-deploy"),
        ("fish", ".config/fish/completions/lfm2-deploy.fish"),
    ],
)
def test_install_writes_where_the_shell_looks(
    shell: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    result = run("--install-completion", "--shell", shell)
    assert (result.exit_code, result.stdout) == (0, "")
    assert str(tmp_path / file) in result.stderr.replace("\n", "")
    assert SWITCH in (tmp_path / file).read_text(encoding="utf-8")


def test_install_says_what_it_changed_and_how_to_undo_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".bashrc").write_text("alias ll='ls -l'\n", encoding="utf-8")
    for _ in range(2):
        told = run("--install-completion", "--shell", "bash").stderr.replace("\n", " ")
        script = tmp_path / ".bash_completions" / "lfm2-deploy.sh"
        assert f"{tmp_path / '.bashrc'} has the line: source '{script}'" in told
        assert f"to undo: delete {script}, and take that line out" in told
        assert "alias" not in told


def fake_powershell(folder: Path, policy: str) -> None:
    script = folder / "pwsh"
    script.write_text(
        "#!/bin/sh\n"
        f'case "$3" in Get-ExecutionPolicy) echo {policy};; *) echo {folder}/profile.ps1;; esac\n',
        encoding="utf-8",
    )
    script.chmod(0o755)


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for PowerShell is a shell script")
def test_powershells_profile_is_extended_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    fake_powershell(tmp_path, "RemoteSigned")
    (tmp_path / "profile.ps1").write_text("# mine\n", encoding="utf-8")
    for _ in range(2):
        assert install("lfm2-deploy", "pwsh") == tmp_path / "profile.ps1"
    profile = (tmp_path / "profile.ps1").read_text(encoding="utf-8")
    assert profile.startswith("# mine\n")
    assert profile.count("Register-ArgumentCompleter") == 1


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for PowerShell is a shell script")
def test_powershell_that_runs_no_profile_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable, fails: Callable
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    fake_powershell(tmp_path, "Restricted")
    result = run("--install-completion", "--shell", "pwsh")
    fails(result, "Restricted", "Set-ExecutionPolicy RemoteSigned -Scope CurrentUser", code=2)
    assert not (tmp_path / "profile.ps1").exists()
