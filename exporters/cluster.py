"""Weight jobs -> encoded arrays, on the machines of a Ray cluster.

Enters: how to open the checkpoint and what to make of it. Leaves: (number, encoded), as
`encoding.py` gives them, so the file is the same byte for byte. A unit is one job: one
matrix of a layer, or one expert. Units are sent as numbers; each worker opens the
checkpoint and lowers the graph itself, once, and sends encoded bytes back. One that dies
costs the units it had, which others take over.

The checkpoint must be reachable under the same name on every node: a Hub id, a synthetic
name, or a folder that all of them see.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from exporters.draft import Draft
from exporters.encoding import Encoded, EncodeJobs, run_job
from exporters.lowering import build_drafts
from exporters.options import ExportOptions
from exporters.quantize.plan import Precision
from exporters.weight_book import WeightBook
from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.contracts import Checkpoint
from lfm2_deploy.errors import ExportError, Lfm2DeployError
from lfm2_deploy.registry import find_target

LOCAL = "local"
# How often a unit is begun anew where its worker died.
_RETRIES = 5
# Units on their way for each core: one is worked on, one waits.
_AHEAD = 2


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that a worker needs to make the same draft: plain values.

    Args:
        model: as `open_checkpoint` takes it.
        revision: of a Hub model.
        adapter: folder of a LoRA adapter.
        target: name of the target.
        precision: how weights are stored.
        context_length, chunk, experts, quantize, inputs_embeds: as in `ExportOptions`.
        part: as `open_checkpoint` takes it.
    """

    model: str
    revision: str | None
    adapter: str | None
    target: str
    precision: Precision
    context_length: int | None
    chunk: int | None = None
    experts: str | None = None
    quantize: str | None = None
    part: str | None = None
    inputs_embeds: bool = False

    def build(self) -> tuple[Checkpoint, Draft]:
        """Open the checkpoint and lower the graph."""
        checkpoint = open_checkpoint(
            self.model, revision=self.revision, adapter=self.adapter, part=self.part
        )
        options = ExportOptions(
            find_target(self.target),
            self.precision,
            self.context_length,
            chunk=self.chunk,
            experts=self.experts,
            quantize=self.quantize,
            inputs_embeds=self.inputs_embeds,
        )
        drafts = build_drafts(checkpoint.config, options)
        return checkpoint, next(iter(drafts.values()))


def use_cluster(address: str, recipe: Recipe) -> Callable[[WeightBook], EncodeJobs]:
    """What makes an `EncodeJobs` that runs on a cluster.

    Args:
        address: "local" for one on this machine, made and ended here; or that of a running
            cluster as `ray.init` takes it, such as "auto" or "ray://head:10001".
        recipe: what workers make; its jobs must be those of the book it is used for.

    Raises:
        ExportError: while running: the cluster cannot be reached, a node has other
            package versions, or a unit's workers died more than 5 times.
    """

    def choose(book: WeightBook) -> EncodeJobs:
        def encode(pending: Iterable[int]) -> Generator[tuple[int, Encoded]]:
            _connect(address)
            try:
                yield from _encode(recipe, describe_jobs(book), pending)
            finally:
                ray.shutdown()

        return encode

    return choose


def describe_jobs(book: WeightBook) -> str:
    """A digest of every initializer and job, to tell whether two processes have the same."""
    jobs = [(job.sources, job.slots) for job in book.jobs]
    return hashlib.sha256(repr((list(book.declared.values()), jobs)).encode()).hexdigest()


def _connect(address: str) -> None:
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    where = {"include_dashboard": False} if address == LOCAL else {"address": address}
    try:
        ray.init(**settings, **where)
    except (RayError, OSError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ExportError(
            f"no Ray cluster answers at {address!r} ({reason}): start one with "
            "`ray start --head`, or pass --cluster local"
        ) from error


def _encode(
    recipe: Recipe, expected: str, numbers: Iterable[int]
) -> Generator[tuple[int, Encoded]]:
    unit = ray.remote(max_retries=_RETRIES)(encode_unit)
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    at_once = _AHEAD * max(1, int(resources.get("CPU", 1)))
    numbers = iter(numbers)
    running: dict[Any, int] = {}
    while True:
        for number in islice(numbers, at_once - len(running)):
            running[unit.remote(recipe, expected, number)] = number
        if not running:
            return
        for reference in ray.wait(list(running))[0]:
            yield running.pop(reference), _fetch(reference)


def _fetch(reference: Any) -> Encoded:
    try:
        encoded: Encoded = ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, Lfm2DeployError):
            raise error.cause from error
        raise ExportError(
            f"a node of the cluster failed ({type(error.cause).__name__}: {error.cause}): "
            "see that it has this package in the same version"
        ) from error
    except RayError as error:
        reason = str(error).partition("\n")[0]
        raise ExportError(
            f"the cluster lost a unit of work more than {_RETRIES} times ({reason}): see that "
            "its nodes have memory left, and go on with --resume"
        ) from error
    return encoded


def encode_unit(recipe: Recipe, expected: str, number: int) -> Encoded:
    """What a worker does.

    Raises:
        ExportError: this worker lowers another graph than the process that asks.
    """
    checkpoint, draft, found = _prepare(recipe)
    if found != expected:
        raise ExportError(
            "a node of the cluster lowers another graph: install the same versions of "
            "lfm2-deploy, torch and onnx-ir on every node"
        )
    return run_job(draft.book.jobs[number], checkpoint)


@functools.lru_cache(maxsize=1)
def _prepare(recipe: Recipe) -> tuple[Checkpoint, Draft, str]:
    checkpoint, draft = recipe.build()
    return checkpoint, draft, describe_jobs(draft.book)
