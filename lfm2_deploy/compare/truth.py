"""What subjects are held against: where it comes from, before anything of it is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lfm2_deploy.checkpoint import describe_model, open_checkpoint
from lfm2_deploy.compare.base_file import BaseFile
from lfm2_deploy.compare.identity import identify_content
from lfm2_deploy.compare.origin import open_reference
from lfm2_deploy.compare.scorer import Scorer
from lfm2_deploy.compare.subjects import BASE, HUGGING_FACE, TORCH, Subject, is_model, read_subject
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import Checkpoint, Origin, Progress
from lfm2_deploy.errors import GenerationError, RequestError
from lfm2_deploy.registry import STREAMED_REFERENCE
from lfm2_deploy.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Truth:
    """A reference that is not computed yet.

    Args:
        name: for people.
        kind: as `result.ReferenceInfo.kind`.
        open: loads what computes it; None of a base file, behind which there is no model.
        detail: more of it for people, once it is known.
        config: the model's; None of a base file.
        tokenizer: None where it has none.
        identify: says what its logits depend on; None where it is not kept for later.
        base: the base file.
        precision: of its weights.
        context_length: most tokens of a row; None where it is the model's own.
        origin: what the first bundle was made from, where that is the reference.
        named: where the checkpoint lies that the user chose as the reference.
    """

    name: str
    kind: str
    open: Callable[[Progress], Scorer] | None
    detail: str
    config: Lfm2Config | None
    tokenizer: Tokenizer | None
    identify: Callable[[Progress], str] | None = None
    base: BaseFile | None = None
    precision: str = "fp32"
    context_length: int | None = None
    origin: Origin | None = None
    named: Origin | None = None


def choose_truth(
    subjects: list[Subject],
    reference: str | None,
    adapter: Path | None,
    progress: Progress,
) -> tuple[Truth, list[Subject]]:
    """The reference, and the subjects that are left.

    Args:
        subjects: what is compared.
        reference: what the user chose, in the forms of `subjects`; None for the checkpoint that
            the first bundle was made from, or else the first subject. A bundle that names no
            device runs where it was made for, wherever subjects do.
        adapter: the LoRA adapter merged into that bundle.
        progress: told of downloads.

    Raises:
        SourceError: the first bundle does not say where its checkpoint lies.
        GenerationError: nothing is left to compare with it.
    """
    if reference is not None:
        chosen = read_reference(reference, subjects[0].threads)
        left = [subject for subject in subjects if subject.identity != chosen.identity]
    elif subjects[0].bundle is not None:
        checkpoint = open_reference(subjects[0].bundle, None, adapter, progress)
        truth = _of_checkpoint(checkpoint, checkpoint.origin.name)
        return replace(truth, origin=subjects[0].bundle.manifest.origin), subjects
    else:
        chosen, *left = subjects
    if not left:
        raise GenerationError(
            f"there is nothing to compare with {chosen.given}: {_advise_alone(chosen)}"
        )
    return _of_subject(chosen, _find_part(subjects), adapter, progress), left


def _find_part(subjects: Sequence[Subject]) -> str | None:
    """Of which part of a model bundles are, so that the same is taken of a checkpoint."""
    parts = (s.bundle.manifest.origin.part for s in subjects if s.bundle is not None)
    return next((part for part in parts if part), None)


def read_reference(given: str, threads: int | None) -> Subject:
    """Understand what a user wrote after --reference.

    Raises:
        GenerationError: it is none of the forms, or a checkpoint without "torch:".
        BundleError: a bundle is damaged.
    """
    folder = Path(given).expanduser()
    if is_model(given) and (folder.is_dir() or given.startswith("synthetic:")):
        raise GenerationError(f"--reference {given} is a checkpoint: write torch:{given}")
    return read_subject(given, threads=threads)


def refuse_text(chosen: Subject, text: Path | None) -> None:
    """Before anything is timed.

    Raises:
        GenerationError: a text was given, and the reference brings its own.
    """
    if chosen.kind == BASE and text is not None:
        raise RequestError(
            f"{chosen.name} brings its own tokens, so {text} cannot be read: leave --text out"
        )


def _advise_alone(subject: Subject) -> str:
    if subject.kind == HUGGING_FACE:
        return f"add --reference torch:{subject.model}"
    return "name another subject"


def _of_subject(
    subject: Subject, part: str | None, adapter: Path | None, progress: Progress
) -> Truth:
    if subject.kind == BASE:
        base = BaseFile(Path(subject.model).expanduser())
        detail = "log-probabilities in 16 bits, from a base file in llama.cpp's format"
        return Truth(subject.name, BASE, None, detail, None, None, base=base)
    if subject.kind == TORCH:
        checkpoint = open_checkpoint(subject.model, adapter=adapter, part=part, progress=progress)
        truth = _of_checkpoint(checkpoint, subject.name.removeprefix(f"{TORCH}:"))
        return replace(truth, named=checkpoint.origin)
    if subject.bundle is not None:
        config = subject.bundle.config
    else:
        config, _ = describe_model(subject.model)
    return Truth(
        subject.name,
        subject.kind,
        subject.load,
        subject.precision,
        config,
        subject.find_tokenizer(),
        precision=subject.precision,
        context_length=subject.context_length,
    )


def _of_checkpoint(checkpoint: Checkpoint, name: str) -> Truth:
    file = checkpoint.side_files.get("tokenizer.json")
    return Truth(
        name=name,
        kind=TORCH,
        open=lambda progress: STREAMED_REFERENCE.load()(checkpoint),
        detail="torch, float32, layer by layer",
        config=checkpoint.config,
        tokenizer=None if file is None else Tokenizer.from_folder(file.parent),
        identify=lambda progress: identify_content(checkpoint, progress),
    )
