"""Prefixes on disk: found again, by another process, and never when damaged."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfm2_deploy import api
from lfm2_deploy.bundle import Bundle
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.errors import BundleError
from lfm2_deploy.generate import LanguageModel
from lfm2_deploy.prefix_store import PrefixStore
from lfm2_deploy.prompt_cache import PromptCache

LONG = [1, *range(200, 400)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    place = tmp_path_factory.mktemp("store") / "bundle"
    return api.export(str(DEMO_MODEL), place, precision="int4")


@pytest.fixture(scope="module")
def model(bundle: Bundle) -> LanguageModel:
    return api.load(bundle)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "prefixes"


def ask(model: LanguageModel, bundle: Bundle, folder: Path, ids: list[int], **options: Any) -> Any:
    """As a new process would: nothing is in memory."""
    cache = PromptCache(model.runtime, store=PrefixStore(folder, bundle, **options))
    return model.generate(ids, cache=cache, max_new_tokens=8, ignore_eos=True, temperature=0)


def only_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


def test_prompt_is_loaded_instead_of_computed(
    model: LanguageModel, bundle: Bundle, folder: Path
) -> None:
    first = ask(model, bundle, folder, LONG)
    again = ask(model, bundle, folder, LONG)
    assert (first.reused_tokens, again.reused_tokens) == (0, len(LONG))
    assert again.token_ids == first.token_ids


def test_longest_stored_beginning_is_taken(
    model: LanguageModel, bundle: Bundle, folder: Path
) -> None:
    ask(model, bundle, folder, LONG[:80])
    ask(model, bundle, folder, [*LONG[:80], *reversed(LONG[80:150])])
    ask(model, bundle, folder, LONG[:150])
    longer = ask(model, bundle, folder, LONG)
    assert longer.reused_tokens == 150
    # Cut at the same place, int4 rounds alike.
    cache = PromptCache(model.runtime)
    model.generate(LONG[:80], cache=cache, max_new_tokens=1)
    model.generate(LONG[:150], cache=cache, max_new_tokens=1)
    plain = model.generate(LONG, cache=cache, max_new_tokens=8, ignore_eos=True, temperature=0)
    assert longer.token_ids == plain.token_ids


def test_short_prompts_get_no_file(model: LanguageModel, bundle: Bundle, folder: Path) -> None:
    ask(model, bundle, folder, LONG[:20])
    assert list(folder.iterdir()) == []


def spoil_header(file: Path) -> None:
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def flip_one_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1000] ^= 1
    file.write_bytes(data)


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [spoil_header, cut_short, flip_one_bit, empty])
def test_damaged_file_is_not_used(
    model: LanguageModel, bundle: Bundle, folder: Path, damage: Any
) -> None:
    first = ask(model, bundle, folder, LONG)
    damage(only_file(folder))
    again = ask(model, bundle, folder, LONG)
    assert again.reused_tokens == 0
    assert again.token_ids == first.token_ids
    assert ask(model, bundle, folder, LONG).reused_tokens == len(LONG)  # written anew


def test_file_of_another_prompt_under_this_name_is_not_used(
    model: LanguageModel, bundle: Bundle, folder: Path
) -> None:
    ask(model, bundle, folder, LONG)
    file = only_file(folder)
    other = [*LONG[:-1], 5]
    ask(model, bundle, folder, other)
    target = next(entry for entry in folder.iterdir() if entry != file)
    os.replace(file, target)
    assert ask(model, bundle, folder, other).reused_tokens < len(other)


def test_states_of_another_bundle_are_left_alone(
    model: LanguageModel, bundle: Bundle, folder: Path, tmp_path: Path
) -> None:
    ask(model, bundle, folder, LONG)
    other = api.export(str(DEMO_MODEL), tmp_path / "int8", precision="int8")
    assert ask(api.load(other), other, folder, LONG).reused_tokens == 0
    assert len(list(folder.iterdir())) == 2


def test_files_used_longest_ago_make_room(
    model: LanguageModel, bundle: Bundle, folder: Path
) -> None:
    ask(model, bundle, folder, [1, *LONG])
    size = only_file(folder).stat().st_size
    limit = int(2.5 * size)
    ask(model, bundle, folder, [2, *LONG], max_bytes=limit)
    for file in folder.iterdir():  # as old as can be, but for the first, which is used now
        os.utime(file, (1, 1))
    assert ask(model, bundle, folder, [1, *LONG], max_bytes=limit).reused_tokens > 0
    ask(model, bundle, folder, [3, *LONG], max_bytes=limit)
    assert len(list(folder.iterdir())) == 2
    assert ask(model, bundle, folder, [1, *LONG], max_bytes=limit).reused_tokens > 0


def test_full_disk_costs_the_file_and_not_the_answer(
    model: LanguageModel, bundle: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lfm2_deploy import prefix_store

    def fail(*arguments: Any) -> None:
        raise OSError(28, "no room")

    monkeypatch.setattr(prefix_store, "save_file", fail)
    assert len(ask(model, bundle, folder, LONG).token_ids) == 8
    assert list(folder.iterdir()) == []


def test_folder_that_cannot_be_made_is_told(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BundleError, match="no prompt cache can be made in"):
        PrefixStore(tmp_path / "file", bundle)


def test_stored_states_are_those_of_the_session(
    model: LanguageModel, bundle: Bundle, folder: Path
) -> None:
    session = model.runtime.open(1)
    logits = session.prefill([LONG])[0]
    states: Any = session.snapshot()
    store = PrefixStore(folder, bundle)
    store.save(LONG, states, logits)
    found = store.find([*LONG, 5])
    assert found is not None
    assert found.length == len(LONG)
    np.testing.assert_array_equal(found.logits, logits)
    for name, array in states.arrays.items():
        np.testing.assert_array_equal(found.states.arrays[name], array)
