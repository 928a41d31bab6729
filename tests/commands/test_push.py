"""`push`: the real huggingface_hub, in a process of its own, on a fake Hub; back by `pull`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lfm2_deploy import ModelStore, open_bundle, push
from lfm2_deploy.bundle import CARD, MEASUREMENTS, seal
from lfm2_deploy.card.measurements import Figure, Measurement, add_measurements
from lfm2_deploy.card.write import write_card
from lfm2_deploy.contracts import Origin
from lfm2_deploy.manifest import Manifest, ReaderRecord, read_manifest

from ..bundle.made_up import FILES, MADE  # noqa: TID252
from ..store.fake_upload import READER, WRITER, UploadHub  # noqa: TID252

REPOSITORY = "somebody/made-up-cpu-int4"
JS = "onnx/model_q4.onnx"
Push = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[UploadHub]:
    """A Hub without repositories."""
    with UploadHub(place=tmp_path / "hub") as running:
        yield running


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A made-up bundle with a graph in a folder, large weights, and one measurement."""
    folder = tmp_path / "made-up"
    for name, content in {**FILES, JS: b"for js", "model.onnx.data": bytes(20_000)}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    origin = Origin("hub", "LiquidAI/LFM2-350M", "abc123")
    seal(folder, replace(MADE, origin=origin, readers=(ReaderRecord("transformersjs", JS),)))
    opened = open_bundle(folder)
    figures = (Figure("KL divergence", 0.02, 0.001, "nats"),)
    one = Measurement("compare", opened.identity, figures, "ort", "cpu", created="2026-11-30")
    add_measurements(opened, [one])
    write_card(opened)
    return folder


@pytest.fixture
def call(hub: UploadHub, tmp_path: Path, program: Sequence[str]) -> Push:
    """Run a command against the Hub, with a token."""

    def run(*words: object, token: str = WRITER, **more: str) -> subprocess.CompletedProcess[str]:
        own = {"HF_TOKEN": token, "HF_HOME": str(tmp_path / "hf"), **more}
        return subprocess.run(
            [*program, *map(str, words)],
            env=hub.environment(tmp_path) | own,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def read_error(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that says what failed."""
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr
    return line


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def test_bundle_pushed_comes_back_by_pull_byte_for_byte(
    call: Push, hub: UploadHub, bundle: Path, tmp_path: Path
) -> None:
    before = contents(bundle)
    done = call("push", bundle, REPOSITORY, "--private", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["url"].endswith(f"/{REPOSITORY}")
    assert hub.made == {REPOSITORY: "private"}
    assert hub.commits == ["main: made-up, int4 for cpu"]
    # The folder is as it was; the card that went up says where it lies.
    assert contents(bundle) == before
    there = contents(hub.repositories[REPOSITORY])
    assert f"lfm2-deploy pull {REPOSITORY}" in there[CARD].decode()
    assert set(there) == {*before, ".gitattributes"}

    assert call("pull", REPOSITORY).returncode == 0
    pulled = ModelStore(tmp_path / "store").get("made-up-cpu-int4").path
    open_bundle(pulled).verify()
    assert contents(pulled) == {n: c for n, c in there.items() if n != ".gitattributes"}
    assert {n: c for n, c in contents(pulled).items() if n != CARD} == {
        n: c for n, c in before.items() if n != CARD
    }
    assert "KL divergence 0.0200 ± 0.0010 nats" in (pulled / CARD).read_text()


def test_upload_that_broke_off_goes_on_without_sending_twice(
    call: Push, hub: UploadHub, bundle: Path
) -> None:
    (bundle / "tokenizer.json").write_text(json.dumps({"words": "x" * 30_000}))
    (bundle / MEASUREMENTS).unlink()
    reseal(bundle)
    hub.break_after = 1
    line = read_error(call("push", bundle, REPOSITORY))
    assert f"the upload to {REPOSITORY} failed (400" in line
    # Nobody sees half a bundle.
    assert set(contents(hub.repositories[REPOSITORY])) == {".gitattributes"}
    hub.break_after = None
    assert call("push", bundle, REPOSITORY).returncode == 0
    assert len(hub.sent) == len(set(hub.sent)) == 2


def reseal(folder: Path) -> None:
    """Make the manifest anew of changed files."""
    manifest = open_manifest(folder)
    (folder / "manifest.json").unlink()
    seal(folder, replace(manifest, files={}))


def open_manifest(folder: Path) -> Manifest:
    return read_manifest(folder)[0]


def test_older_bundle_in_the_repository_is_replaced_and_its_files_go(
    call: Push, hub: UploadHub, bundle: Path
) -> None:
    assert call("push", bundle, REPOSITORY).returncode == 0
    there = hub.repositories[REPOSITORY]
    (there / "LICENSE").write_text("LFM Open License")
    card = there / CARD
    card.write_text(f"{card.read_text()}\nWritten on the Hub.\n")
    (bundle / JS).unlink()
    (bundle / "onnx").rmdir()
    manifest = replace(open_manifest(bundle), readers=(), files={})
    seal(bundle, manifest)
    (bundle / CARD).unlink()
    write_card(open_bundle(bundle))
    done = call("push", bundle, REPOSITORY, "--message", "Without a browser's graph")
    assert done.returncode == 0, done.stderr
    assert hub.commits[-1] == "main: Without a browser's graph"
    assert set(contents(there)) == {*contents(bundle), ".gitattributes", "LICENSE"}
    # What was written there by hand is kept, where nothing was written here.
    assert "Written on the Hub." in card.read_text()
    assert "transformers.js\n" not in card.read_text().partition("lfm2-deploy: begin")[0]


def test_repository_with_other_files_is_refused_unless_asked(
    call: Push, hub: UploadHub, bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "model.safetensors").write_text("weights")
    hub.repositories[REPOSITORY] = tmp_path / "theirs"
    line = read_error(call("push", bundle, REPOSITORY))
    assert f"{REPOSITORY} holds model.safetensors, which is no part of the bundle" in line
    assert set(contents(tmp_path / "theirs")) == {"model.safetensors"}
    assert call("push", bundle, REPOSITORY, "--beside-others").returncode == 0
    assert {"model.safetensors", "manifest.json"} <= set(contents(tmp_path / "theirs"))


def test_pull_request_and_branch_are_asked_for(call: Push, hub: UploadHub, bundle: Path) -> None:
    hub.repositories[REPOSITORY] = bundle.parent / "empty"
    (bundle.parent / "empty").mkdir()
    done = call("push", bundle, REPOSITORY, "--create-pr")
    assert "/discussions/1" in done.stdout, done.stderr
    done = call("push", bundle, REPOSITORY, "--revision", "small")
    assert "/tree/small" in done.stdout, done.stderr
    assert [commit.partition(":")[0] for commit in hub.commits] == ["main", "small"]
    assert contents(bundle.parent / "empty") == {}


REFUSALS = {
    "no token": ({"token": ""}, "there is no token of the Hub: make one that may write"),
    "wrong token": ({"token": "hf_nobody"}, "the Hub does not accept the token (401)"),
    "token that reads": ({"token": READER}, f"the token may not write to {REPOSITORY} (403)"),
    "offline": ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set, so nothing goes up"),
    "no way": ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "the Hub cannot be reached (ConnectError"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusal_is_one_clear_line_at_once(call: Push, bundle: Path, case: str) -> None:
    environment, words = REFUSALS[case]
    done = call("push", bundle, REPOSITORY, **environment)
    assert words in read_error(done)
    assert "Retrying" not in done.stderr


def test_dry_run_needs_neither_network_nor_token(bundle: Path, run: Callable) -> None:
    result = run("push", bundle, REPOSITORY, "--dry-run")
    assert result.exit_code == 0, result.stderr
    for name in ("model.onnx.data", JS, "manifest.json", CARD, MEASUREMENTS, "20 kB"):
        assert name in result.stdout
    assert "no device was checked" in result.stderr
    assert "nothing was uploaded" in result.stderr
    assert "license" not in result.stderr


def test_dry_run_of_a_bundle_without_canary_names_what_runs_there(
    bundle: Path, run: Callable
) -> None:
    (bundle / "canary.json").unlink(missing_ok=True)
    seal(bundle, replace(open_manifest(bundle), files={}))
    told = run("push", bundle, REPOSITORY, "--dry-run").stderr
    assert "no device was checked: `lfm2-deploy verify BUNDLE --against MODEL --record`" in told


def test_dry_run_warns_of_an_unknown_license(bundle: Path, run: Callable) -> None:
    seal(bundle, replace(open_manifest(bundle), origin=Origin("folder", "mine"), files={}))
    (bundle / CARD).unlink()
    record = json.loads(run("push", bundle, REPOSITORY, "--dry-run", "--json").stdout)
    assert record["url"] == ""
    assert any("the license is not known" in warning for warning in record["warnings"])
    assert any("base_model: OWNER/NAME" in warning for warning in record["warnings"])
    assert record["size_bytes"] == sum(record["files"].values())


def test_damaged_bundle_and_foreign_files_do_not_go_up(bundle: Path, run: Callable) -> None:
    (bundle / "diary.txt").write_text("dear diary")
    result = run("push", bundle, REPOSITORY, "--dry-run")
    assert result.exit_code == 1
    assert "also holds diary.txt, which is no part of the bundle" in result.stderr
    (bundle / "diary.txt").unlink()
    (bundle / "model.onnx.data").write_bytes(bytes(19_999) + b"1")
    result = run("push", bundle, REPOSITORY, "--dry-run")
    assert result.exit_code == 1
    assert "model.onnx.data is damaged" in result.stderr


def test_wrong_repository_is_one_line(bundle: Path, run: Callable) -> None:
    result = run("push", bundle, "whales", "--dry-run")
    assert result.exit_code == 1
    assert "'whales' is no Hub id: expected USER/REPO" in result.stderr


def test_python_gives_the_plan(bundle: Path) -> None:
    pushed = push(bundle, REPOSITORY, dry_run=True)
    assert pushed.url == ""
    assert pushed.plan.size_bytes == sum(file.size_bytes for file in pushed.plan.files)
    assert pushed.plan.files[0].name == "model.onnx.data"
