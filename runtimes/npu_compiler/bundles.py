"""Compile the graphs of a bundle that are meant for the NPU."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import openvino as ov

from lfm2_deploy.contracts import Progress
from lfm2_deploy.errors import BundleError
from lfm2_deploy.manifest import BlobRecord, GraphRecord
from runtimes.npu_compiler.compiler import Compiler, Verdict, check_platform, find_compiler
from runtimes.ov_device import read_graph
from runtimes.ov_split import split_graph


@dataclass(frozen=True, slots=True)
class Compiled:
    """One graph and what the compiler said.

    Args:
        graph: the file's name in the manifest, such as "decode".
        start: the input that the graph begins with; a file may hold several.
        platform: for which NPU.
        verdict: the compiler's; None where it refuses the graph.
        refusal: why, or None.
    """

    graph: str
    start: str
    platform: str
    verdict: Verdict | None
    refusal: str | None = None


def compile_graphs(
    folder: Path,
    graphs: Sequence[GraphRecord],
    platforms: Sequence[str],
    progress: Progress,
    blobs: Path | None = None,
    alike: bool = True,
) -> Iterator[Compiled]:
    """Compile what runs on the NPU.

    Args:
        folder: where the graphs lie.
        graphs: of the manifest.
        platforms: for which NPUs.
        progress: told of each graph.
        blobs: where to keep what is made; None to keep nothing.
        alike: compile every expert, though all have the same shape; if not, the first of each
            layer stands for the rest.

    Yields:
        one a graph and platform, as they are done.

    Raises:
        RuntimeUnavailableError: there is no compiler, or no such platform.
    """
    for platform in platforms:
        check_platform(platform)
    compiler = find_compiler()
    chosen = [graph for graph in graphs if graph.device == "target"]
    with tempfile.TemporaryDirectory() as scratch:
        for graph in chosen:
            parts = _take_apart(folder / graph.file, Path(scratch), alike)
            for start, file in parts:
                for platform in platforms:
                    progress(f"compiling {start} of {graph.name} for {platform}", 0, 0)
                    try:
                        verdict = _compile(compiler, file, platform, graph, start, blobs)
                    except BundleError as error:
                        yield Compiled(graph.name, start, platform, None, str(error))
                    else:
                        yield Compiled(graph.name, start, platform, verdict)


def _take_apart(path: Path, scratch: Path, alike: bool) -> list[tuple[str, Path]]:
    """Each graph of a file, in a file of its own."""
    graphs = split_graph(read_graph(path))
    if len(graphs) == 1:
        return [(next(iter(graphs)), path)]
    files: list[tuple[str, Path]] = []
    for start, model in graphs.items():
        if not alike and _is_expert(start) and files:
            break
        files.append((start, scratch / f"{path.stem}.{start}.xml"))
        ov.save_model(model, files[-1][1], compress_to_fp16=False)
    return files


def _is_expert(start: str) -> bool:
    """Whether a graph is one of many experts: "moe.LAYER.EXPERT.x"."""
    return start.startswith("moe.") and start.count(".") == 3


def name_blob(graph: str, start: str, platform: str) -> str:
    """The file of a compiled graph in a bundle."""
    return f"{graph}.{start}.{platform}.blob"


def _compile(
    compiler: Compiler,
    file: Path,
    platform: str,
    graph: GraphRecord,
    start: str,
    blobs: Path | None,
) -> Verdict:
    if blobs is not None:
        place = blobs / name_blob(graph.name, start, platform)
        return _find_or_compile(compiler, file, platform, place)
    with tempfile.TemporaryDirectory() as folder:
        return compiler.compile(file, platform, Path(folder) / "made.blob")


def _find_or_compile(compiler: Compiler, file: Path, platform: str, place: Path) -> Verdict:
    """Compile into a place, unless an interrupted export of the same has done so.

    The verdict is written when the blob is whole, and says that it is.
    """
    note = place.with_name(f"{place.name}.json")
    found = _read_verdict(note)
    if found is not None and place.is_file() and place.stat().st_size == found.blob_bytes:
        return found
    verdict = compiler.compile(file, platform, place)
    note.write_text(json.dumps(asdict(verdict)), encoding="utf-8")
    return verdict


def _read_verdict(note: Path) -> Verdict | None:
    """None where there is none, or it was cut off while it was written."""
    try:
        return Verdict(**json.loads(note.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError):
        return None


def add_blobs(
    folder: Path, graphs: Sequence[GraphRecord], platforms: Sequence[str], progress: Progress
) -> tuple[BlobRecord, ...]:
    """Compile a bundle that is being made, and keep the blobs in it.

    Raises:
        RuntimeUnavailableError: as `compile_graphs`.
        BundleError: the compiler refuses a graph.
    """
    blobs = []
    for done in compile_graphs(folder, graphs, platforms, progress, folder):
        if done.verdict is None:
            raise BundleError(f"{done.refusal}; export without --compile, or for another platform")
        name = name_blob(done.graph, done.start, done.platform)
        versions = done.verdict.compiler, done.verdict.openvino
        blobs.append(BlobRecord(done.graph, done.start, name, done.platform, *versions))
    _remove_others(folder, {blob.file for blob in blobs})
    return tuple(blobs)


def _remove_others(folder: Path, kept: Collection[str]) -> None:
    """Drop what an interrupted export left: verdicts, and blobs for other platforms."""
    for file in folder.glob("*.blob*"):
        if file.name not in kept:
            file.unlink()
