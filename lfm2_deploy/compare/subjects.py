"""What users write -> what is compared: bundles, devices, torch, transformers.

FOLDER                    a bundle, where it was made for
FOLDER@DEVICE             a bundle on a device, as --device takes it, so also FOLDER@genai:cuda
torch:MODEL               the torch model, MODEL as `export` takes it
transformers:MODEL        transformers' own class, a folder or Hub id
base:FILE                 a base file of llama.cpp; as the reference only
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lfm2_deploy.bundle import Bundle, open_bundle
from lfm2_deploy.checkpoint import is_gguf, is_hub_id, open_checkpoint
from lfm2_deploy.compare.result import SubjectInfo
from lfm2_deploy.compare.scorer import RuntimeScorer
from lfm2_deploy.contracts import Origin, Progress, Runtime
from lfm2_deploy.errors import GenerationError
from lfm2_deploy.intact import ensure_intact
from lfm2_deploy.manifest import MANIFEST
from lfm2_deploy.places import load_runtime, split_place
from lfm2_deploy.registry import TRANSFORMERS, find_runtime
from lfm2_deploy.states import StateSpec, list_states
from lfm2_deploy.tokenizer import Tokenizer

TORCH, HUGGING_FACE, BASE, BUNDLE = "torch", "transformers", "base", "bundle"
FORMS = "a bundle's FOLDER, FOLDER@DEVICE, torch:MODEL or transformers:MODEL"
FORMS += "; or, with --precision, a MODEL as export takes it"
_PACKAGES = (
    "lfm2-deploy",
    "numpy",
    "onnxruntime",
    "onnxruntime-ep-webgpu",
    "onnxruntime-genai",
    "onnxruntime-qnn",
    "openvino",
    "torch",
    "transformers",
)


@dataclass(frozen=True, slots=True)
class Subject:
    """One thing to compare; nothing of it is loaded.

    Args:
        given: as the user wrote it.
        name: short, and another for each subject.
        kind: "bundle", "torch", "transformers" or "base".
        model: what follows the prefix; the folder, of a bundle.
        bundle: of a bundle, opened.
        device: where it shall run; None for where it was made for.
        threads: of one operator; None lets the runtime choose.
    """

    given: str
    name: str
    kind: str
    model: str
    bundle: Bundle | None = None
    device: str | None = None
    threads: int | None = None

    @property
    def context_length(self) -> int | None:
        """Most tokens of a row; None where it is not known before loading."""
        return None if self.bundle is None else self.bundle.manifest.context_length

    @property
    def precision(self) -> str:
        """Of its weights."""
        return "fp32" if self.bundle is None else self.bundle.manifest.precision

    @property
    def identity(self) -> tuple[str, str, str | None]:
        """What tells it from others, however it is written."""
        place = Path(self.model).expanduser()
        model = os.path.realpath(place) if place.exists() else self.model
        return self.kind, model, self.device

    @property
    def runtime(self) -> str:
        """Name of the runtime that is to run a bundle; of others, their kind."""
        if self.bundle is None:
            return self.kind
        named = None if self.device is None else split_place(self.device)[0]
        return named or self.bundle.manifest.runtime

    def describe(self) -> SubjectInfo:
        """What is known before it is loaded."""
        manifest = None if self.bundle is None else self.bundle.manifest
        return SubjectInfo(
            name=self.name,
            given=self.given,
            kind=self.kind,
            model=manifest.model if manifest else self.model,
            precision=self.precision,
            target=manifest.target if manifest else "",
            runtime=self.runtime,
            device=self.device or "",
            size_bytes=None if self.bundle is None else self.bundle.size_bytes,
            origin=_tell_origin(manifest.origin) if manifest else "",
        )

    def load(self, progress: Progress) -> RuntimeScorer:
        """Load it.

        Raises:
            Lfm2DeployError: it, its runtime or its device is not there.
        """
        progress(f"loading {self.name}", 0, 0)
        runtime = self._load_runtime(progress)
        states: Sequence[StateSpec] = list_states(runtime.config)
        if self.bundle is not None:
            states = self.bundle.manifest.states
        return RuntimeScorer(runtime, states, f"comparing {self.name}")

    def find_tokenizer(self) -> Tokenizer | None:
        """Its tokenizer; None where it has none, or names no folder."""
        folder = Path(self.model).expanduser() if self.bundle is None else self.bundle.path
        if self.kind in (TORCH, HUGGING_FACE) and not folder.is_dir():
            found = open_checkpoint(self.model).side_files.get("tokenizer.json")
            folder = found.parent if found else folder
        return Tokenizer.from_folder(folder) if (folder / "tokenizer.json").is_file() else None

    def _load_runtime(self, progress: Progress) -> Runtime:
        runtime: Runtime
        if self.bundle is not None:
            ensure_intact(self.bundle, progress)
            runtime = load_runtime(self.bundle, threads=self.threads, device=self.device)
        elif self.kind == TORCH:
            runtime = find_runtime("reference")(open_checkpoint(self.model, progress=progress))
        else:
            runtime = TRANSFORMERS.load()(self.model)
        return runtime


def is_model(given: str | Path | Bundle) -> bool:
    """Whether it names a checkpoint of which bundles can be made: a folder, Hub id, GGUF file or
    synthetic:."""
    if isinstance(given, Bundle):
        return False
    text = str(given)
    folder = Path(text).expanduser()
    if folder.is_dir():
        return not (folder / MANIFEST).is_file() and (folder / "config.json").is_file()
    return text.startswith("synthetic:") or is_hub_id(text) or is_gguf(text)


def _tell_origin(origin: Origin) -> str:
    """A checkpoint with its revision, for people who want the same one."""
    match origin.kind:
        case "hub":
            text = f"{origin.name} at {origin.revision}"
        case "synthetic":
            text = f"synthetic:{origin.name}@{origin.revision}"
        case "file":
            text = f"a file named {origin.name}"
        case _:
            text = f"a folder named {origin.name}"
    part = f"the {origin.part} part of " if origin.part else ""
    return f"{part}{text}" + (f", with adapter {origin.adapter}" if origin.adapter else "")


def read_subject(
    given: str | Path | Bundle, device: str | None = None, threads: int | None = None
) -> Subject:
    """Understand what a user wrote.

    Args:
        given: one of the forms of this module, or an opened bundle.
        device: for bundles that name none themselves.
        threads: for bundles.

    Raises:
        GenerationError: it has none of the forms.
        BundleError: a bundle is damaged.
    """
    if isinstance(given, Bundle):
        return _of_bundle(str(given.path), given, device, threads)
    text = str(given)
    kind, separator, rest = text.partition(":")
    if separator and kind in (TORCH, HUGGING_FACE, BASE) and not Path(text).exists():
        if not rest:
            what = "file: write base:FILE" if kind == BASE else f"model: write {kind}:MODEL"
            raise GenerationError(f"{text!r} names no {what}")
        if kind != BASE:
            _check_place(text, kind, rest)
        is_place = kind == BASE or Path(rest).expanduser().is_dir()
        short = os.path.basename(os.path.abspath(os.path.expanduser(rest))) if is_place else rest
        return Subject(text, f"{kind}:{short}", kind, rest)
    folder, at, place = text.rpartition("@")
    if at and not Path(text).expanduser().exists():
        if not place:
            raise GenerationError(f"{text!r} names no device: write {folder}@gpu, or {folder}")
        return _of_bundle(text, _open(folder, text), place.lower(), threads)
    return _of_bundle(text, _open(text, text), device, threads)


def _check_place(given: str, kind: str, model: str) -> None:
    known = Path(model).expanduser().is_dir() or is_hub_id(model)
    own = kind == TORCH and (model.startswith("synthetic:") or is_gguf(model))
    if not known and not own:
        raise GenerationError(
            f"{given!r}: the folder {model} does not exist; expected {kind}:FOLDER, or a Hub id "
            f"as {kind}:LiquidAI/LFM2-350M"
        )


def _open(folder: str, given: str) -> Bundle:
    path = Path(folder).expanduser()
    if not (path / MANIFEST).is_file() and not path.is_dir():
        raise GenerationError(f"{given!r} was not found: expected {FORMS}")
    if not (path / MANIFEST).is_file() and (path / "config.json").is_file():
        raise GenerationError(
            f"{given!r} is a checkpoint, not a bundle: say what to export of it (--precision "
            f"int8,int4), or write torch:{folder} to compare the torch model itself"
        )
    return open_bundle(path)


def _of_bundle(given: str, bundle: Bundle, device: str | None, threads: int | None) -> Subject:
    # Not resolved: the name of a link is the one its user gave.
    name = Path(os.path.abspath(bundle.path)).name
    if device is not None:
        name = f"{name}@{device}"
    return Subject(given, name, BUNDLE, str(bundle.path), bundle, device, threads)


def give_names(subjects: Sequence[Subject]) -> list[Subject]:
    """Names that differ: where two folders are called alike, with their parents' names.

    Raises:
        GenerationError: one subject was given twice.
    """
    for number, subject in enumerate(subjects):
        for other in subjects[:number]:
            if subject.identity == other.identity:
                again = "" if subject.given == other.given else f", first as {other.given}"
                raise GenerationError(f"{subject.given} is given twice{again}: leave one out")
    names = [subject.name for subject in subjects]
    return [
        replace(subject, name=subject.given) if names.count(subject.name) > 1 else subject
        for subject in subjects
    ]


def list_versions() -> dict[str, str]:
    """Versions of what may have computed something, of what is installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
