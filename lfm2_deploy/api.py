"""The library's front door: `export`, `load`, `verify`, `compare_models`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from lfm2_deploy.bundle import GENERATION, Bundle, open_bundle
from lfm2_deploy.canary.check import check as run_check
from lfm2_deploy.canary.check import choose_mode, explain_absence, guard, has_canary
from lfm2_deploy.canary.judge import Verdict
from lfm2_deploy.canary.run import Reading
from lfm2_deploy.chat import ChatTemplate
from lfm2_deploy.compare.compare import Comparison, compare_runtimes
from lfm2_deploy.compare.exported import export_variants, tell_kept
from lfm2_deploy.compare.measure import measure_load
from lfm2_deploy.compare.needs import require_exports, require_reference, require_subjects
from lfm2_deploy.compare.result import Report
from lfm2_deploy.compare.run import Settings, run_comparison
from lfm2_deploy.compare.subjects import BASE, BUNDLE, Subject, give_names, is_model, read_subject
from lfm2_deploy.compare.truth import choose_truth, read_reference, refuse_text
from lfm2_deploy.contracts import Checkpoint, Progress, Runtime, RuntimeInfo, ignore_progress
from lfm2_deploy.errors import BundleError, GenerationError
from lfm2_deploy.exporting import choose_target, export
from lfm2_deploy.generate import LanguageModel
from lfm2_deploy.intact import ensure_intact
from lfm2_deploy.json_file import read_json_object
from lfm2_deploy.options import GenerationOptions
from lfm2_deploy.registry import find_preparer, find_runtime, find_runtime_of
from lfm2_deploy.store.locks import Hold, hold_model
from lfm2_deploy.store.resolve import find_stored, resolve
from lfm2_deploy.tokenizer import Tokenizer

__all__ = [
    "check",
    "choose_target",
    "compare_models",
    "export",
    "load",
    "prepare",
    "read_generation_defaults",
    "verify",
]

# What `load` tells its progress after the files are hashed.
LOADING, TRYING = "loading", "trying the canary"


def load(
    bundle: str | Path | Bundle,
    *,
    runtime: str | None = None,
    threads: int | None = None,
    device: str | None = None,
    canary: str | None = None,
    progress: Progress = ignore_progress,
) -> LanguageModel:
    """Load a bundle for generation.

    The first time, and after its files changed, they are hashed. The first time on a device, and
    after its driver changed, the bundle's canary is run: a few short prompts whose logits were
    recorded at export. Both take well under a second for small models, and what they find is
    remembered.

    Args:
        bundle: the folder, its name in the store, or the opened bundle.
        runtime: which adapter runs it; None for the one it was made for.
        threads: threads of one operator; None lets the runtime choose.
        device: "cpu", "gpu" or "npu", where the runtime knows several, or one of several GPUs by
            number or name ("gpu.1", "webgpu.1", "nvidia"); None for the one the
            bundle was made for. It runs there or not at all.
        canary: "auto"; "always" to check at every load; "off" never to, hashes neither; None for
            what the environment variable LFM2_DEPLOY_CANARY says, or "auto".
        progress: told of the bytes that are hashed, and of the stages `LOADING` and, where
            the canary runs, `TRYING`.

    Raises:
        BundleError: it is absent or damaged, or has no tokenizer.
        CanaryError: the device computes something else than the model. One that is only less
            exact than usual is warned of (`CanaryWarning`).
        RuntimeUnavailableError: the runtime is not installed, or there is no such device.
    """
    mode = choose_mode(canary)
    with _opening(bundle) as (opened, hold):
        if not (opened.path / "tokenizer.json").is_file():
            raise BundleError(
                f"{opened.path} has no tokenizer.json, so it takes no text; "
                "put the model's tokenizer.json into the checkpoint and export it again"
            )
        if mode != "off":
            ensure_intact(opened, progress, again=mode == "always")
        progress(LOADING, 0, 0)
        loaded = _load_runtime(opened, runtime, threads, device)
        hold.follow(loaded)
        remark = guard(opened, loaded, mode, lambda: progress(TRYING, 0, 0))
    tokenizer = Tokenizer.from_folder(opened.path)
    return LanguageModel(
        loaded,
        tokenizer,
        ChatTemplate.find(opened.path, tokenizer.special_tokens),
        read_generation_defaults(opened.path),
        [remark] if remark else [],
    )


def _load_runtime(
    bundle: Bundle, name: str | None, threads: int | None, device: str | None
) -> Runtime:
    # Most runtimes have one device, and need not be told of it.
    choice = {} if device is None else {"device": str(device).lower()}
    runtime: Runtime = find_runtime_of(bundle, name)(bundle, threads=threads, **choice)
    return runtime


def _open(bundle: str | Path | Bundle) -> Bundle:
    """A bundle that may be given by its folder, or by its name in the store."""
    return bundle if isinstance(bundle, Bundle) else open_bundle(resolve(bundle))


@contextmanager
def _opening(bundle: str | Path | Bundle) -> Iterator[tuple[Bundle, Hold]]:
    """As `_open`; nobody removes it from the store until who follows the hold is gone."""
    hold = hold_model(bundle.path if isinstance(bundle, Bundle) else resolve(bundle))
    try:
        yield _open(bundle), hold
    except BaseException:
        hold.release()
        raise


def _find_stored_subject(given: str | Path | Bundle) -> str | Path | Bundle:
    """A subject of a comparison, with the folder in place of a name of the store."""
    name, at, device = str(given).partition("@")
    stored = None if isinstance(given, Bundle) else find_stored(name)
    return given if stored is None else f"{stored}{at}{device}"


def check(
    bundle: str | Path | Bundle,
    *,
    threads: int | None = None,
    device: str | None = None,
    progress: Progress = ignore_progress,
) -> tuple[Bundle, RuntimeInfo, Verdict, list[Reading]]:
    """Hash a bundle's files and run its canary now, whatever is remembered; remember what is found.

    Args:
        bundle: the folder, its name in the store, or the opened bundle; it needs no tokenizer.
        threads: threads of one operator; None lets the runtime choose.
        device: as `load` takes it.
        progress: told of the bytes that are hashed.

    Returns:
        The bundle, where it ran, the verdict, and what came of each call.

    Raises:
        BundleError: the bundle is absent or damaged, or has no canary.
        CanaryError: the device does not get to the canary's end.
        RuntimeUnavailableError: the runtime is not installed, or there is no such device.
    """
    with _opening(bundle) as (opened, hold):
        if not has_canary(opened):
            raise BundleError(explain_absence(opened))
        ensure_intact(opened, progress, again=True)
        runtime = _load_runtime(opened, None, threads, device)
        hold.follow(runtime)
    verdict, readings = run_check(opened, runtime)
    info = runtime.info
    runtime.close()
    return opened, info, verdict, readings


def prepare(bundle: str | Path | Bundle, *, progress: Progress = ignore_progress) -> Path:
    """Keep a bundle's weights in the order this machine reads them, so that it loads faster.

    They are mapped from disk then instead of copied into memory. `load` uses the copy by
    itself; results are the same.

    Args:
        bundle: the folder, its name in the store, or the opened bundle.
        progress: told of each step.

    Returns:
        The copy's folder, in the user's cache.

    Raises:
        BundleError: the bundle is absent or damaged, or cannot be prepared.
        DiskFullError: there is no room.
        RuntimeUnavailableError: its runtime keeps nothing prepared.
    """
    opened = _open(bundle)
    folder: Path = find_preparer(opened.manifest.runtime).prepare(opened, progress)
    return folder


def read_generation_defaults(folder: Path) -> GenerationOptions:
    """Options of a folder's generation_config.json; greedy where there is none.

    Raises:
        BundleError: the file is not readable JSON.
    """
    file = folder / GENERATION
    if not file.is_file():
        return GenerationOptions()
    raw = read_json_object(file, BundleError, "copy or export the bundle again")
    return GenerationOptions.from_generation_config(raw)


def verify(
    bundle: str | Path | Bundle,
    checkpoint: Checkpoint,
    rows: Sequence[Sequence[int]],
    *,
    greedy_tokens: int = 32,
    threads: int | None = None,
    device: str | None = None,
    progress: Progress = ignore_progress,
) -> Comparison:
    """Compare a bundle with the torch reference on the checkpoint it was made from.

    Args:
        bundle: the folder, its name in the store, or the opened bundle.
        checkpoint: the weights.
        rows: token ids to score, each row from an empty state.
        greedy_tokens: how many tokens to generate greedily after the first row.
        threads: threads of one operator; None lets the runtime choose.
        device: as `load` takes it.
        progress: told of each step.

    Returns:
        How far the bundle is from the reference.

    Raises:
        BundleError: the bundle is absent or damaged.
        CheckpointError: a tensor cannot be read.
        RuntimeUnavailableError: torch, or the bundle's runtime, is not installed.
        GenerationError: there are no rows, or the vocabularies differ.
    """
    with _opening(bundle) as (opened, hold):
        ensure_intact(opened, progress)
        reference = find_runtime("reference")(checkpoint, progress)
        tested = _load_runtime(opened, None, threads, device)
        hold.follow(tested)
    return compare_runtimes(reference, tested, rows, greedy_tokens, progress)


def compare_models(
    subjects: str | Path | Bundle | Sequence[str | Path | Bundle],
    *,
    reference: str | None = None,
    precisions: Sequence[str] = (),
    targets: Sequence[str] = (),
    adapter: str | Path | None = None,
    settings: Settings | None = None,
    threads: int | None = None,
    device: str | None = None,
    progress: Progress = ignore_progress,
) -> Report:
    """Say how far bundles, devices and implementations are from a reference.

    Args:
        subjects: each a bundle, its folder or its name in the store, "FOLDER@DEVICE",
            "torch:MODEL" or "transformers:MODEL"; a single one needs no list.
        reference: another of these, or "base:FILE" for a base file of llama.cpp; None for the
            checkpoint that the first bundle was made from, in torch float32, or, where the first
            is no bundle, the first itself.
        precisions, targets: of each subject that is a model, as `export` takes it, bundles are
            made in these precisions for these targets, and kept in the user's cache.
        adapter: the LoRA adapter that was merged into the first bundle.
        settings: a `lfm2_deploy.compare.run.Settings`: text, windows, what to measure, limits;
            None for the defaults.
        threads: threads of one operator; None lets the runtimes choose.
        device: for bundles that name none; as `load` takes it.
        progress: told of each step.

    Returns:
        Everything that was measured. A subject that failed says why and has no scores.

    Raises:
        GenerationError: a subject cannot be understood, or there is nothing to compare.
        BundleError, CheckpointError: something named is absent or damaged.
        RuntimeUnavailableError: a package that a subject or the reference needs is missing.
        Lfm2DeployError: the reference cannot be had, or every subject failed.
    """
    busy = measure_load()  # before an export of ours, which is no other program
    if isinstance(subjects, str | Path | Bundle):
        subjects = [subjects]
    subjects = [_find_stored_subject(given) for given in subjects]
    if reference is not None:
        reference = str(_find_stored_subject(reference))
    if not subjects:
        raise GenerationError("there is nothing to compare: name at least one bundle")
    choice = None if device is None else device.lower()
    settings = settings or Settings()
    if precisions or targets:
        if reference is None and is_model(subjects[0]):
            reference = f"torch:{subjects[0]}"
        targets, precisions = targets or ["cpu"], precisions or ["int4"]
        _require_models(subjects)
        require_exports(targets, precisions)
    makes = bool(precisions or targets)
    ready = [
        None if makes and is_model(given) else read_subject(given, choice, threads)
        for given in subjects
    ]
    _require_packages(ready, reference, threads, settings)
    every, places = [], []
    for given, one in zip(subjects, ready, strict=True):
        if one is not None:
            every.append(one)
            continue
        for folder, words in _export_model(str(given), targets, precisions, progress):
            every.append(replace(read_subject(folder, choice, threads), given=words))
            places.append(folder.parent)
    read = give_names(every)
    for subject in read:
        if subject.kind == BASE:
            raise GenerationError(
                f"{subject.given} holds no model that could be compared: it can be the reference "
                f"(--reference {subject.given})"
            )
    merged = None if adapter is None else Path(adapter)
    truth, left = choose_truth(read, reference, merged, progress)
    report = run_comparison(left, truth, settings, progress, busy)
    return replace(report, kept=tell_kept(places))


def _require_models(subjects: Sequence[str | Path | Bundle]) -> None:
    """Raises GenerationError where none is a model that can be exported."""
    if not any(map(is_model, subjects)):
        raise GenerationError(
            "precisions and targets are of models that are exported for the comparison, and "
            f"{subjects[0]} is none: leave --precision and --target out"
        )


def _require_packages(
    ready: Sequence[Subject | None], reference: str | None, threads: int | None, settings: Settings
) -> None:
    """Refuse what is known to fail before anything is made; models yet to be made are None."""
    require_subjects([one for one in ready if one is not None])
    chosen = None if reference is None else read_reference(reference, threads)
    if chosen is not None:
        refuse_text(chosen, settings.text)
    require_reference(chosen, BUNDLE if ready[0] is None else ready[0].kind)


def _export_model(
    model: str, targets: Sequence[str], precisions: Sequence[str], progress: Progress
) -> list[tuple[Path, str]]:
    """Bundles made of a model, each with the words that ask for it."""

    def make(model: str, folder: Path, target: str, precision: str) -> Bundle:
        return export(
            model, folder, target=target, precision=precision, overwrite=True, progress=progress
        )

    folders = export_variants(model, targets, precisions, make, progress)
    asked = [f"{model} --target {t} --precision {p}" for t in targets for p in precisions]
    return list(zip(folders, asked, strict=True))
