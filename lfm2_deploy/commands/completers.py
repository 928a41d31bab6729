"""What a word of the command line may become, for shell completion.

Enters the word as far as it is typed, with what stands before it; leaves the values that begin
with it. Names come from where they are defined, so nothing is copied here. This runs at every
press of Tab: it must not import numpy, torch or a runtime, and never raises (`shells` sees to
that). It does not know which shell asks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import typer

from lfm2_deploy.commands.folders import find_folders

BUNDLE_FILE, CHECKPOINT_FILE = "manifest.json", "config.json"
_HUB = "LiquidAI/"
# As `lfm2_deploy.auto` has it, which imports numpy.
_AUTO = "auto"
# Parameters that hold the bundles of a command line.
_BUNDLES = ("bundle", "bundles", "subjects")

Completer = Callable[..., list[str]]


def complete_bundles(incomplete: str) -> list[str]:
    """Folders that are bundles, folders on the way to one, and models of the local store."""
    return [*_begin(list_stored(), incomplete), *find_folders(incomplete, (BUNDLE_FILE,))]


def complete_stored(incomplete: str) -> list[str]:
    """Models of the local store."""
    return _begin(list_stored(), incomplete)


def complete_sources(incomplete: str) -> list[str]:
    """What `pull` takes: as `complete_models`, folders of bundles, and "demo"."""
    found = find_folders(incomplete, (CHECKPOINT_FILE, BUNDLE_FILE))
    return [*found, *_begin(["demo", *list_models()], incomplete)]


def complete_models(incomplete: str) -> list[str]:
    """What `export` takes: folders of checkpoints, Liquid AI's Hub ids, synthetic:NAME."""
    found = find_folders(incomplete, (CHECKPOINT_FILE,), without=(BUNDLE_FILE,))
    return [*found, *_begin(list_models(), incomplete)]


def complete_bundles_and_models(incomplete: str) -> list[str]:
    """What `inspect` takes."""
    found = find_folders(incomplete, (BUNDLE_FILE, CHECKPOINT_FILE))
    return [*found, *_begin([*list_stored(), *list_models()], incomplete)]


def complete_subjects(incomplete: str) -> list[str]:
    """What `compare` takes: bundles, FOLDER@DEVICE, torch:MODEL and transformers:MODEL."""
    folder, at, _ = incomplete.rpartition("@")
    if at:
        return _begin([f"{folder}@{name}" for name in list_devices([folder])], incomplete)
    for kind in ("torch:", "transformers:"):
        if incomplete.startswith(kind):
            return [kind + name for name in complete_models(incomplete.removeprefix(kind))]
    kinds = _begin(("torch:", "transformers:"), incomplete)
    return [*complete_bundles(incomplete), *kinds, *_begin(list_models(), incomplete)]


def complete_targets(incomplete: str) -> list[str]:
    """Targets, other packages' too."""
    from lfm2_deploy.registry import list_entries

    return _begin(list_entries("target"), incomplete)


def complete_targets_or_auto(incomplete: str) -> list[str]:
    """What `export --target` takes."""
    return [*complete_targets(incomplete), *_begin([_AUTO], incomplete)]


def complete_linted_targets(incomplete: str) -> list[str]:
    """Targets that have rules for `lint`."""
    from lfm2_deploy.registry import list_entries

    return _begin(list_entries("set of lint rules"), incomplete)


def complete_target_list(incomplete: str) -> list[str]:
    """Targets with commas between them."""
    return _complete_list(incomplete, complete_targets(""))


def complete_precision_list(incomplete: str) -> list[str]:
    """Precisions with commas between them."""
    from lfm2_deploy.commands.options import Precision

    return _complete_list(incomplete, get_args(Precision))


def complete_parts(incomplete: str) -> list[str]:
    """Parts of vision and audio models."""
    from lfm2_deploy.model_parts import PARTS

    return _begin(PARTS, incomplete)


def complete_methods(incomplete: str) -> list[str]:
    """Ways to round weights."""
    from lfm2_deploy.registry import ROUNDING_METHODS

    return _begin(ROUNDING_METHODS.load(), incomplete)


def complete_readers(incomplete: str) -> list[str]:
    """Programs that may read a bundle besides ours."""
    from lfm2_deploy.manifest import READERS

    return _complete_list(incomplete, READERS)


def complete_devices(ctx: typer.Context, incomplete: str) -> list[str]:
    """Devices that the runtime of the bundle before knows; all of them where there is none."""
    # Where the option before the cursor lacks its value, parsing ends there, and arguments that
    # stand before it are left over.
    given = [*(ctx.params.get(name) for name in _BUNDLES), ctx.args]
    return _begin(list_devices(_flatten(given)), incomplete)


def complete_expert_devices(incomplete: str) -> list[str]:
    """Where the experts beside an NPU's graphs run."""
    from lfm2_deploy.registry import DEVICES

    return _begin(DEVICES["openvino"], incomplete)


def complete_npu_platforms(incomplete: str) -> list[str]:
    """Intel's NPUs, as their compiler numbers them."""
    from lfm2_deploy.static_graphs import NPU_PLATFORMS

    return _begin(NPU_PLATFORMS, incomplete)


def complete_tasks(ctx: typer.Context, incomplete: str) -> list[str]:
    """Tasks of `eval` that need no download, and those of --task-folder; commas between them."""
    from lfm2_deploy.errors import EvaluationError
    from lfm2_deploy.evaluation.catalog import list_local_tasks

    tasks = list_local_tasks()
    folder = ctx.params.get("task_folder")
    with suppress(EvaluationError):  # the command itself says what is wrong with the folder
        tasks += list_local_tasks(Path(folder).expanduser()) if folder else []
    return _complete_list(incomplete, [task.name for task in tasks])


def list_stored() -> list[str]:
    """Names in the local store of models; none where it cannot be read."""
    from lfm2_deploy.store.names import is_name
    from lfm2_deploy.store.place import find_store

    # `store.shelf` knows more of what a model is, and takes numpy's time to import.
    with suppress(OSError):
        folders = [one for one in find_store().iterdir() if is_name(one.name)]
        return sorted(one.name for one in folders if (one / BUNDLE_FILE).is_file())
    return []


def list_models() -> list[str]:
    """Hub ids of Liquid AI's text models, and synthetic:NAME of known shapes."""
    from lfm2_deploy.checkpoint.shapes import SHAPES
    from lfm2_deploy.recommended import list_names

    return [_HUB + name for name in list_names()] + [f"synthetic:{name}" for name in SHAPES]


def list_devices(bundles: Iterable[object]) -> list[str]:
    """Names that `--device` takes for some bundles, or for any where none can be read."""
    from lfm2_deploy.registry import DEVICES

    runtimes = set(filter(None, map(_read_runtime, map(str, bundles)))) & set(DEVICES)
    if "ort" in runtimes:  # onnxruntime-genai runs the same bundles
        runtimes.add("genai")
    names = [name for runtime in runtimes or DEVICES for name in DEVICES[runtime]]
    return list(dict.fromkeys(sorted(names)))


def _read_runtime(bundle: str) -> str | None:
    try:
        file = Path(bundle.partition("@")[0]).expanduser() / BUNDLE_FILE
        manifest: Any = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    runtime = manifest.get("runtime") if isinstance(manifest, dict) else None
    return runtime if isinstance(runtime, str) else None


def _flatten(values: Iterable[object]) -> Iterator[object]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from value
        elif value is not None:
            yield value


def _begin(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _complete_list(incomplete: str, names: Iterable[str]) -> list[str]:
    """Continue the last of several names; those before it are not offered again."""
    before, comma, last = incomplete.rpartition(",")
    used = set(before.split(","))
    return [before + comma + name for name in _begin(names, last) if name not in used]
