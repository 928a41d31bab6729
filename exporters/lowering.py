"""A target's graphs, lowered and written as ONNX; no weight is read."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import onnx_ir as ir

from exporters.draft import SEMANTIC, Draft
from exporters.options import ExportOptions, choose_context
from exporters.readers.rename import place_weights, rename_for
from exporters.stitch import LOGITS_TO_KEEP, BlockTracer, stitch
from exporters.targets.target import Part, Target
from exporters.trace import trace_layer
from exporters.weight_book import WeightBook
from exporters.writer import lay_out, refer_to_file
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.errors import ExportError
from lfm2_deploy.gpu_graphs import BOUND_WEIGHTS
from lfm2_deploy.states import list_states

# The default of logits_to_keep, as Hugging Face names it.
LAST_ONLY = 1


def build_drafts(
    config: Lfm2Config,
    options: ExportOptions,
    trace: BlockTracer = trace_layer,
) -> dict[str, Draft]:
    """Trace, stitch and lower every part of a target; no weight is read.

    Returns:
        name of the part -> its graph; all share one book of weights.

    Raises:
        ExportError: the context is not possible, or lowering left something over.
    """
    target, trace = options.target, functools.cache(trace)
    plan = options.plan_weights(config)
    context_length = choose_context(config, options.context_length, target.context_length)
    options = options.fit_chunk(context_length)
    book, drafts = WeightBook(), {}
    dtype = ir.DataType.from_numpy(np.dtype(target.compute_dtype(options.precision)))
    for part in options.list_parts(config):
        draft = Draft(config, stitch(config, trace), plan, book, context_length, dtype)
        for rewrite in part.passes:
            rewrite(draft)
        _finish(draft, target)
        drafts[part.name] = draft
    return drafts


def build_draft(
    config: Lfm2Config,
    options: ExportOptions,
    trace: BlockTracer = trace_layer,
) -> Draft:
    """As `build_drafts`, for a target of one part."""
    (draft,) = build_drafts(config, options, trace).values()
    return draft


def _finish(draft: Draft, target: Target) -> None:
    left = sorted({n.op_type for n in draft.graph if n.domain == SEMANTIC})
    if left:
        raise ExportError(f"target {target.name} has no lowering for {', '.join(left)}")
    for name, value in list(draft.graph.initializers.items()):
        if name not in draft.book.declared and value.const_value is None:
            del draft.graph.initializers[name]  # a weight that passes have replaced
    draft.graph.opset_imports.clear()
    draft.graph.opset_imports.update(dict(target.opsets))
    # An input with an initializer is one that callers may leave out.
    keep = next((v for v in draft.graph.inputs if v.name == LOGITS_TO_KEEP), None)
    if keep is None:
        return
    keep.const_value = ir.tensor(np.array([LAST_ONLY], dtype=np.int64), name=LOGITS_TO_KEEP)
    draft.graph.initializers[LOGITS_TO_KEEP] = keep


@dataclass(frozen=True, slots=True)
class Lowered:
    """A bundle but for its weights.

    Args:
        parts: the graphs as they were asked for.
        drafts: the same lowered, by name of their part.
        offsets: where each initializer lies in the weights file.
        files: the graphs' files and their content.
    """

    parts: tuple[Part, ...]
    drafts: Mapping[str, Draft]
    offsets: Mapping[str, int]
    files: Mapping[str, bytes]

    @property
    def first(self) -> Draft:
        """The first graph."""
        return self.drafts[self.parts[0].name]

    @property
    def book(self) -> WeightBook:
        """All graphs' weights."""
        return self.first.book


def lower_parts(
    config: Lfm2Config, options: ExportOptions, trace: BlockTracer = trace_layer
) -> Lowered:
    """Make every graph of a bundle.

    Raises:
        ExportError: as `build_drafts`.
    """
    drafts, parts = build_drafts(config, options, trace), options.list_parts(config)
    offsets = lay_out(drafts[parts[0].name].book)
    weights, files = options.weights_file, {}
    for part in parts:
        model = _make_model(drafts[part.name], offsets, options.target, weights)
        files[part.onnx_file] = _serialize(model)
    for reader in options.readers:
        file = reader.graph(options.precision)
        if file not in files:
            states, place = list_states(config), place_weights(file, weights)
            files[file] = _serialize(rename_for(reader, model, states, config, place))
    return Lowered(parts, drafts, offsets, files)


def _make_model(draft: Draft, offsets: Mapping[str, int], target: Target, weights: str) -> ir.Model:
    """A lowered graph whose weights lie in the weights file."""
    refer_to_file(draft.graph, draft.book, offsets, weights)
    return ir.Model(
        draft.graph,
        ir_version=target.ir_version,
        producer_name="lfm2-deploy",
        producer_version=version("lfm2-deploy"),
        metadata_props=_describe_bound(draft, offsets),
    )


def _serialize(model: ir.Model) -> bytes:
    graph: bytes = ir.to_proto(model).SerializeToString()
    return graph


def _describe_bound(draft: Draft, offsets: Mapping[str, int]) -> dict[str, str]:
    """Where the values of bound weights lie; see `lfm2_deploy/gpu_graphs.py`."""
    if not draft.bound:
        return {}
    declared = (draft.book.declared[name] for name in draft.bound)
    places = {d.name: [offsets[d.name], d.dtype.numpy().name, d.shape] for d in declared}
    return {BOUND_WEIGHTS: json.dumps(places)}
