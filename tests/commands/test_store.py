"""`lfm2-deploy pull`, `list` and `remove`, and names of the store where a bundle is asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lfm2_deploy.commands import remove as remove_module
from lfm2_deploy.commands.list_models import tell_age

Fails = Callable[..., None]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's store, which does not exist yet."""
    monkeypatch.setenv("LFM2_DEPLOY_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture
def filled(store: Path, run: Callable, bundle: Path) -> Path:
    """The store with the demo model as `mine`."""
    result = run("pull", bundle, "--name", "mine")
    assert result.exit_code == 0, result.stderr
    return store


def test_pull_tells_what_came_and_what_to_do_next(store: Path, run: Callable, bundle: Path) -> None:
    result = run("pull", bundle, "--name", "mine")
    assert result.stdout.startswith("mine  pulled in ")
    for words in (str(bundle), str(store / "mine"), "int4", "cpu"):
        assert words in result.stdout
    assert result.stderr.splitlines()[-1] == "next: lfm2-deploy chat mine"
    again = run("pull", bundle, "--name", "mine")
    assert again.stdout.startswith("mine  in the store already")


def test_pull_of_a_model_without_a_tokenizer_says_so(
    store: Path, run: Callable, random_bundle: Path
) -> None:
    result = run("pull", random_bundle, "--json")
    told = json.loads(result.stdout)
    assert (told["name"], told["pulled"], told["fault"]) == ("random", True, "")
    assert "takes no text" in run("pull", random_bundle).stderr


def test_pull_of_nothing_that_is_known_is_one_line(
    store: Path, run: Callable, fails: Fails
) -> None:
    fails(run("pull", "no-such-model"), "'no-such-model' is nothing that can be pulled", "Hub id")
    fails(run("pull", "demo", "--precision", "int3"), "int3", code=2)
    fails(run("pull", "demo", "--name", "../x"), "is no name for a model")
    fails(run("pull", "demo", "--target", "no-such-target"), "no-such-target", code=2)
    assert not store.exists() or not any(file.is_file() for file in store.rglob("*"))


def test_list_of_an_empty_store_says_how_to_fill_it(store: Path, run: Callable) -> None:
    result = run("list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"no models in {store}" in result.stderr
    assert json.loads(run("list", "--json").stdout) == {
        "store": str(store),
        "models": [],
        "unfinished": [],
    }


def test_list_shows_what_is_there(filled: Path, run: Callable, bundle: Path) -> None:
    title, heading, row = run("list").stdout.splitlines()
    assert title.startswith(str(filled))
    assert heading.split() == ["name", "target", "precision", "size", "last", "used", "from"]
    assert row.split()[:3] == ["mine", "cpu", "int4"]
    assert row.split()[-2:] == ["never", str(bundle)]
    (model,) = json.loads(run("list", "--json", "--verify").stdout)["models"]
    assert model["size_bytes"] == sum(file.stat().st_size for file in bundle.iterdir())
    assert (model["last_used"], model["in_use"], model["fault"]) == (None, False, "")


def test_list_names_damage_and_what_to_do(filled: Path, run: Callable, bundle: Path) -> None:
    (filled / "mine" / "tokenizer.json").write_text("{}")
    result = run("list")
    assert result.exit_code == 1
    assert "damaged" in result.stdout
    assert f"get it anew with `lfm2-deploy pull {bundle} --name mine`" in result.stderr
    assert run("pull", bundle, "--name", "mine").stdout.startswith("mine  pulled in ")
    assert run("list", "--verify").exit_code == 0


def test_list_names_unfinished_pulls(filled: Path, run: Callable) -> None:
    (filled / ".incoming" / "begun").mkdir(parents=True)
    result = run("list")
    assert "begun: its pull has not ended" in result.stderr
    assert run("remove", "begun").exit_code == 0
    assert "begun" not in run("list").stderr


def test_unfinished_pull_of_a_name_that_has_a_model_is_discarded_alone(
    filled: Path, run: Callable, bundle: Path, fails: Fails
) -> None:
    (filled / ".incoming" / "mine").mkdir(parents=True)
    advice = "mine: a pull to replace it has not ended"
    assert advice in run("list").stderr
    assert "`lfm2-deploy remove mine --unfinished` discards" in run("list").stderr
    assert advice in run("pull", bundle, "--name", "mine").stderr
    result = run("remove", "mine", "--unfinished")
    assert "removed what the unfinished pull had of mine" in result.stderr
    assert run("list").exit_code == 0
    assert advice not in run("list").stderr
    assert (filled / "mine").is_dir()
    fails(run("remove", "mine", "--unfinished"), "mine has no unfinished pull")


def test_all_unfinished_pulls_are_discarded_and_models_stay(filled: Path, run: Callable) -> None:
    for name in ("mine", "other"):
        (filled / ".incoming" / name).mkdir(parents=True)
    result = run("remove", "--all", "--unfinished", "--yes", "--json")
    assert list(json.loads(result.stdout)["removed"]) == ["mine", "other"]
    assert (filled / "mine").is_dir()


@pytest.mark.parametrize("target", ["cpu", "npu"])
def test_pull_for_what_this_computer_lacks_says_so(
    store: Path, run: Callable, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    from lfm2_deploy import auto
    from lfm2_deploy.contracts import Probe

    monkeypatch.setattr(auto, "run_probe", lambda _: Probe(False, "", "no NPU was found", "asked"))
    told = run("pull", "synthetic:tiny-dense", "--target", target).stderr
    remark = "this computer does not run target npu (no NPU was found)"
    assert (remark in told) == (target == "npu")


def test_commands_take_a_models_name(filled: Path, run: Callable) -> None:
    options = ("--greedy", "--max-new-tokens", "2", "--threads", "1")
    assert run("generate", "mine", "My fellow", *options).exit_code == 0
    assert run("chat", "mine", *options, stdin="hello\n").exit_code == 0
    assert str(filled / "mine") in run("inspect", "mine", "--check").stdout
    assert json.loads(run("check", "mine", "--json", "--threads", "1").stdout)["path"] == str(
        filled / "mine"
    )
    assert json.loads(run("lint", "mine", "--json").stdout)["path"] == str(filled / "mine")
    (model,) = json.loads(run("list", "--json").stdout)["models"]
    assert model["last_used"] is not None
    assert not model["in_use"]


@pytest.mark.parametrize("command", ["generate", "chat", "check", "verify", "prepare", "bench"])
def test_mistyped_name_is_one_line_with_what_was_meant(
    filled: Path, run: Callable, fails: Fails, command: str
) -> None:
    fails(run(command, "mime"), "mime is no folder and no model in the store; did you mean mine?")


def test_folder_here_wins_over_the_store(
    filled: Path, run: Callable, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bundle, tmp_path / "mine")
    assert json.loads(run("inspect", "mine", "--json").stdout)["path"] == "mine"


def test_remove_tells_what_went(filled: Path, run: Callable) -> None:
    result = run("remove", "mine", "--json")
    removed = json.loads(result.stdout)["removed"]
    assert list(removed) == ["mine"]
    assert removed["mine"] > 10**6
    assert "removed mine (" in result.stderr
    assert not (filled / "mine").exists()


def test_remove_of_an_unknown_name_removes_nothing(
    filled: Path, run: Callable, fails: Fails
) -> None:
    fails(run("remove", "mine", "mnie"), "mnie is no model", "did you mean mine?")
    assert (filled / "mine").is_dir()
    assert "pull" not in run("remove", "nope").stderr


def test_remove_goes_on_after_a_model_that_is_in_use(
    filled: Path, run: Callable, bundle: Path
) -> None:
    from lfm2_deploy.store.locks import hold_model

    run("pull", bundle, "--name", "other")
    hold = hold_model(filled / "mine")
    result = run("remove", "mine", "other")
    assert result.exit_code == 1
    assert "error: mine is loaded by a process (this one): close it there" in result.stderr
    assert "removed other" in result.stderr
    hold.release()
    assert run("remove", "mine").exit_code == 0


def test_remove_of_all_asks_or_is_told(
    filled: Path, run: Callable, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails(run("remove", "--all"), "nobody can be asked here: pass --yes", code=2)
    monkeypatch.setattr(remove_module, "_can_ask", lambda: True)
    assert run("remove", "--all", stdin="n\n").exit_code == 130
    assert (filled / "mine").is_dir()
    assert run("remove", "--all", stdin="y\n").exit_code == 0
    assert not (filled / "mine").exists()
    assert run("remove", "--all", "--yes").exit_code == 0


def test_remove_without_a_name_is_wrong_usage(store: Path, run: Callable, fails: Fails) -> None:
    fails(run("remove"), "name the models to remove, or pass --all", code=2)
    fails(run("remove", "mine", "--all"), "name the models to remove, or pass --all", code=2)


@pytest.mark.parametrize(
    ("past", "words"),
    [
        (timedelta(seconds=59), "just now"),
        (timedelta(seconds=-5), "just now"),
        (timedelta(minutes=1), "1 minute ago"),
        (timedelta(minutes=119), "1 hour ago"),
        (timedelta(hours=47), "1 day ago"),
        (timedelta(days=400), "400 days ago"),
    ],
)
def test_age_is_told_in_its_largest_unit(past: timedelta, words: str) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert tell_age(now - past, now) == words
    assert tell_age(None, now) == "never"
