"""A checkpoint whose weights were rounded by calibration, and what was measured of it."""

from __future__ import annotations

import errno
import hashlib
import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from exporters.quantize.experts import RARE_BELOW
from exporters.quantize.layerwise import Job, read_records, round_layers
from exporters.quantize.store import Store
from lfm2_deploy.calibration_text import CalibrationText
from lfm2_deploy.checkpoint.derived import DerivedCheckpoint
from lfm2_deploy.contracts import Checkpoint, FloatArray
from lfm2_deploy.errors import DiskFullError
from lfm2_deploy.quantization_record import QuantizationRecord

# Whose versions decide what comes out.
_PACKAGES = ("lfm2-deploy", "torch", "numpy")
# Of what is kept of each layer: one that was written in another form is not gone on with.
_FORM = 2


class RoundedCheckpoint(DerivedCheckpoint):
    """A `Checkpoint` whose matrices lie on their plan's grids.

    Args:
        base: what was rounded.
        store: its rounded layers; all of them.
        fingerprint: of what determined them.
    """

    def __init__(self, base: Checkpoint, store: Store, fingerprint: str) -> None:
        super().__init__(base)
        self._store, self._fingerprint = store, fingerprint

    @property
    def identity(self) -> str:
        """The exact weights', and how they were rounded."""
        return f"{self.base.identity} rounded {self._fingerprint}"

    def read(self, name: str) -> FloatArray:
        """One tensor, float32 in its canonical shape.

        Raises:
            CheckpointError: no such tensor; or it is truncated, or not finite.
        """
        return self._store.read(name) if name in self._store else self.base.read(name)


def round_checkpoint(
    job: Job, text: CalibrationText, folder: Path
) -> tuple[RoundedCheckpoint, QuantizationRecord]:
    """Round a checkpoint's layers, or go on with that.

    Args:
        job: what to round, on the rows of `text`.
        text: where the rows come from.
        folder: where rounded layers are kept; the checkpoint reads them there.

    Raises:
        ResumeError: the folder holds layers that were rounded otherwise.
        CheckpointError: a tensor cannot be read.
        DiskFullError: the disk cannot hold them.
    """
    fingerprint = _identify(job, text)
    try:
        store = Store(folder, fingerprint)
        round_layers(job, store)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFullError(
                f"{folder.parent} is full ({error.strerror}): rounded layers are kept there until "
                "the bundle is whole, as large as its weights; free some space and go on with "
                "--resume"
            ) from error
        raise
    measured = read_records(store)
    record = QuantizationRecord(
        method=job.method.name,
        text=text.name,
        text_sha256=text.sha256,
        tokens=sum(map(len, job.rows)),
        rare_below=RARE_BELOW if job.checkpoint.config.moe is not None else 0,
        tensors=measured.tensors,
        layers=measured.layers,
        weights=measured.weights,
    )
    return RoundedCheckpoint(job.checkpoint, store, fingerprint), record


def _identify(job: Job, text: CalibrationText) -> str:
    versions = [version(name) for name in _PACKAGES]
    plan = {name: asdict(entry) for name, entry in job.plan.items()}
    told = [_FORM, job.checkpoint.identity, job.method.name, text.sha256, job.rows, plan, versions]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
