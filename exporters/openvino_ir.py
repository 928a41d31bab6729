"""A written ONNX graph with explicit states -> a stateful OpenVINO IR, beside tokenizers.

What leaves is what optimum-intel would write and openvino-genai reads: `openvino_model.xml`
and `.bin`, states as variables that begin empty, `openvino_tokenizer.xml` and
`openvino_detokenizer.xml`. The ONNX files go: the IR holds the weights.
"""

from __future__ import annotations

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino._offline_transformations import apply_make_stateful_transformation

from exporters.draft import Draft
from exporters.passes.ov.stateful_frame import BEAM, genai_names
from exporters.targets.target import Written
from lfm2_deploy.bundle import WEIGHTS
from lfm2_deploy.errors import ExportError
from lfm2_deploy.states import CAPACITY, StateSpec, list_states

_INSTALL = "pip install openvino-tokenizers transformers, and export again"
IR_FILE = "openvino_model.xml"


def write_ir(written: Written) -> None:
    """Turn the only graph of a folder into an IR.

    Raises:
        ExportError: OpenVINO cannot read the graph.
    """
    (part,) = written.parts
    source = written.folder / part.onnx_file
    written.progress("writing OpenVINO's model", 0, 0)
    try:
        model = ov.Core().read_model(source)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ExportError(
            f"OpenVINO {ov.__version__} cannot read the graph ({reason}); "
            "2026.4 is the version this was written for"
        ) from error
    draft = written.drafts[part.name]
    _drop_nan_guards(model)
    _make_stateful(model, draft)
    _describe_compression(model, draft)
    _forget_inner_names(model)
    ov.save_model(model, written.folder / part.file, compress_to_fp16=False)
    del model  # its weights are mapped from the file that goes now
    source.unlink()
    (written.folder / WEIGHTS).unlink()
    write_tokenizers(written)


def _drop_nan_guards(model: ov.Model) -> None:
    """Take off the Select by which the importer clears rows that see nothing.

    A row of padding sees the lowest number, not an infinity, so there is no such row; and
    with the guard behind it, attention is not folded with its cache. OpenVINO 2026.4.1,
    onnx frontend, opset 23 Attention.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "ScaledDotProductAttention":
            continue
        for user in [t.get_node() for t in node.output(0).get_target_inputs()]:
            if user.get_type_name() == "Select":
                for target in list(user.output(0).get_target_inputs()):
                    target.replace_source_output(node.output(0))


def _make_stateful(model: ov.Model, draft: Draft) -> None:
    """States become variables, empty at the start, of as many rows as `beam_idx` has."""
    states = list_states(draft.config)
    names = dict(genai_names(states))
    apply_make_stateful_transformation(model, names)
    variables = {
        before + after: s for (before, after), s in zip(names.items(), states, strict=True)
    }
    beam = next(p for p in model.get_parameters() if p.get_friendly_name() == BEAM)
    rows = ops.shape_of(beam, output_type="i64")
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            empty = _empty(variables[node.get_variable_id()], rows)
            node.set_arguments([empty.output(0)])
    model.validate_nodes_and_infer_types()


def _empty(spec: StateSpec, rows: ov.Node) -> ov.Node:
    sizes = [0 if size == CAPACITY else size for size in spec.shape[1:]]
    shape = ops.concat([rows, ops.constant(sizes, dtype=np.int64)], axis=0)
    return ops.broadcast(ops.constant(0.0, dtype=np.float32), shape)


def _forget_inner_names(model: ov.Model) -> None:
    """Leave names on inputs and outputs only.

    ONNX names every tensor, and NPUW takes any name of a state's tensor for its own: it then
    pairs states of different types (OpenVINO 2026.4.1, "src_tensor->get_element_type() ==
    dst_tensor->get_element_type()" at the second call).
    """
    ends = {r.input_value(0).get_node().get_friendly_name() for r in model.get_results()}
    for node in model.get_ops():
        if node.get_type_name() in ("Parameter", "Result") or node.get_friendly_name() in ends:
            continue
        for output in node.outputs():
            output.get_tensor().set_names(set())


def _describe_compression(model: ov.Model, draft: Draft) -> None:
    """What NPUW looks up to unpack int4: how many neighbours share a scale."""
    groups = {entry.group for entry in draft.plan.values() if entry.bits == 4}
    if not groups:
        return
    settings = {"mode": "int4_sym", "group_size": min(groups), "ratio": 1.0}
    for key, value in settings.items():
        model.set_rt_info(str(value), ["nncf", "weight_compression", key])


def write_tokenizers(written: Written) -> None:
    """The models by which openvino-genai turns text into ids and back, where there is a tokenizer.

    Raises:
        ExportError: the tokenizer cannot be converted.
    """
    if not (written.folder / "tokenizer.json").is_file():
        return
    try:
        from openvino_tokenizers import convert_tokenizer
        from transformers import AutoTokenizer
    except ImportError as error:
        written.progress(
            f"{error.name} is not installed, so openvino-genai gets no tokenizer: {_INSTALL}", 0, 0
        )
        return
    try:
        tokenizer = AutoTokenizer.from_pretrained(written.folder)
        models = convert_tokenizer(tokenizer, with_detokenizer=True, skip_special_tokens=True)
    except Exception as error:  # of two libraries, which say no more of what they raise
        reason = " ".join(str(error).split())[:200]
        raise ExportError(
            f"the tokenizer cannot be converted for openvino-genai ({reason}): pip uninstall "
            "openvino-tokenizers to go without, or mend tokenizer.json"
        ) from error
    for model, name in zip(models, ("openvino_tokenizer", "openvino_detokenizer"), strict=True):
        ov.save_model(model, written.folder / f"{name}.xml")
