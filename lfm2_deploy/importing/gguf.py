"""A GGUF file -> a bundle that holds the file's own numbers.

Enters: a file that llama.cpp's quantizer wrote. Leaves: a bundle whose weights, as floats, are
exactly the file's wherever a target's operators can hold them; the manifest says of each tensor
whether they are. `export` takes the same files, and rounds their numbers as any checkpoint's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lfm2_deploy.bundle import Bundle, check_destination
from lfm2_deploy.canary.script import choose_tokens
from lfm2_deploy.checkpoint import is_gguf, open_checkpoint
from lfm2_deploy.contracts import Progress, TellsForms, ignore_progress
from lfm2_deploy.errors import SourceError
from lfm2_deploy.exporting import check_text_files
from lfm2_deploy.registry import EXPORT_OPTIONS, EXPORTER, KEEPER, find_target
from lfm2_deploy.unfinished import check_unfinished


def import_gguf(
    file: str | Path,
    out: str | Path,
    *,
    target: str = "cpu",
    overwrite: bool = False,
    io: Sequence[str] = (),
    progress: Progress = ignore_progress,
) -> Bundle:
    """Make a bundle of a GGUF file, with its numbers kept.

    Q4_0, Q5_0, Q8_0 and IQ4_NL are a step times an integer in blocks of 32, as MatMulNBits, QMoE
    and GatherBlockQuantized read them; F16 stays so, and F32 and BF16 are stored in float32. Other
    types, such as Q6_K of a Q4_0 file's table, are rounded again to 8 bits in groups of 32.

    Args:
        file: an existing file, or one of the Hub as `export` takes it.
        out: the folder to make.
        target: where it will run; one that stores groups of 32.
        overwrite: replace a bundle that is already at `out`.
        io: programs besides our own that shall read it, as `export` takes them.
        progress: told of each step.

    Raises:
        SourceError: it is not a GGUF file.
        ConfigError, CheckpointError: it is of another model, or damaged.
        ExportError: the target cannot hold its numbers.
        BundleError: something is at `out` already. Nothing is left there after any error.
    """
    if not is_gguf(str(file)):
        raise SourceError(
            f"{file} is no GGUF file: expected an existing file whose name ends in .gguf, or one "
            "of the Hub such as LiquidAI/LFM2-350M-GGUF:Q4_0"
        )
    found = find_target(target.lower())
    check_destination(Path(out), overwrite)
    check_unfinished(Path(out), overwrite, False)
    checkpoint = open_checkpoint(str(file), progress=progress)
    assert isinstance(checkpoint, TellsForms)
    check_text_files(checkpoint)
    kept = KEEPER.load()(checkpoint, checkpoint.config, found)
    options = EXPORT_OPTIONS.load()(
        found,
        kept.precision,
        overwrite=overwrite,
        remarks=kept.remarks,
        changed=kept.plan,
        canary=choose_tokens(checkpoint),
        io=tuple(io),
    )
    bundle: Bundle = EXPORTER.load()(checkpoint, Path(out), options, progress)
    return bundle
