"""Bundles of GGUF files: the file's own numbers, wherever operators can hold them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from exporters.quantize.kept import plan_as_stored
from exporters.quantize.pack import dequantize, unpack
from lfm2_deploy import export
from lfm2_deploy.bundle import Bundle
from lfm2_deploy.canary.check import check
from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.contracts import Checkpoint, FloatArray, Runtime, StoredForm
from lfm2_deploy.errors import BundleError, ExportError, SourceError
from lfm2_deploy.importing.gguf import import_gguf
from lfm2_deploy.registry import find_runtime, find_target
from lfm2_deploy.weights import list_weights

from ..gguf_files import write_gguf  # noqa: TID252
from ..logits import relative_error  # noqa: TID252

ROW = [1, *range(20, 60)]
# Two float32 implementations sum in different orders.
FLOAT_ORDER = 1e-4


def read_weights(bundle: Bundle) -> dict[str, FloatArray]:
    """A CPU or WebGPU bundle's matrices as floats, by canonical name."""
    graph = onnx.load(str(bundle.path / "model.onnx")).graph
    arrays = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    found = {}
    for name, array in arrays.items():
        base, _, kind = name.rpartition(".")
        if kind in ("fp16", "fp32"):
            found[base] = array.astype(np.float32)
        elif kind in ("q4", "q8"):
            scales = arrays[f"{base}.scales"].astype(np.float32)
            levels = unpack(array.reshape(*scales.shape[:-1], -1), int(kind[1:]))
            found[base] = dequantize(levels, scales, int(kind[1:]))
    return found


def take_apart(found: Mapping[str, FloatArray], name: str) -> FloatArray:
    """One tensor; an expert's from among all of its layer."""
    if ".experts." not in name:
        return found[name]
    prefix, _, rest = name.partition(".experts.")
    expert, matrix = int(rest.split(".")[0]), rest.split(".")[1]
    joined = found[f"{prefix}.experts.{'fc2' if matrix == 'w2' else 'fc1'}"][expert]
    return joined if matrix == "w2" else joined[0 if matrix == "w1" else 1 :: 2]


def require_same(bundle: Bundle, checkpoint: Checkpoint, roles: tuple[str, ...]) -> None:
    found = read_weights(bundle)
    for spec in list_weights(checkpoint.config):
        if spec.role in roles:
            stored = take_apart(found, spec.name)
            np.testing.assert_array_equal(stored, checkpoint.read(spec.name), spec.name)


def score(runtime: Runtime) -> FloatArray:
    try:
        return runtime.open().score([ROW])[0]
    finally:
        runtime.close()


@pytest.fixture(scope="module")
def import_as(
    checkpoints: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Checkpoint, Bundle]]:
    """A tiny checkpoint as a GGUF file of some types, and the bundle made of it."""

    def make(model: str, kind: Any, **options: Any) -> tuple[Checkpoint, Bundle]:
        folder = tmp_path_factory.mktemp("import")
        true = open_checkpoint(str(checkpoints[model]))
        file = write_gguf(true, folder / "model.gguf", kind)
        return open_checkpoint(str(file)), import_gguf(file, folder / "bundle", **options)

    return make


MATRICES = ("projection", "expert", "embedding")
EXACT = ("router", "bias", "norm", "conv")


@pytest.mark.parametrize(
    ("model", "kind", "precision", "bits"),
    [
        ("dense", "Q4_0", "int4", 4),
        ("moe", "Q4_0", "int4", 4),
        ("dense", "Q8_0", "int8", 8),
        ("moe", "Q8_0", "int8", 8),
        ("moe", "Q5_0", "int8", 8),
        ("moe", "IQ4_NL", "int8", 8),
        ("moe", "F16", "fp16", 16),
        ("dense", "BF16", "fp32", 32),
    ],
)
def test_bundle_holds_the_very_numbers_of_the_file(
    import_as: Callable[..., tuple[Checkpoint, Bundle]],
    model: str,
    kind: str,
    precision: str,
    bits: int,
) -> None:
    checkpoint, bundle = import_as(model, kind)
    require_same(bundle, checkpoint, MATRICES + EXACT)
    manifest = bundle.manifest
    assert manifest.precision == precision
    assert manifest.rounding is None
    assert "weights are the GGUF file's own numbers" in manifest.notes
    card = (bundle.path / "README.md").read_text("utf-8")
    assert "lfm2-deploy import FILE --target cpu\n" in card
    told = {line.reason: line.bits for line in manifest.quantization}
    assert told[f"{kind} in the GGUF file: its numbers are kept"] == bits
    assert {line.group for line in manifest.quantization} == ({0, 32} if bits <= 8 else {0})
    # And the runtime computes with them: floats as torch does on the file, integers within what
    # rounding activations to 8 bits does to this very model, which its canary knows.
    runtime = find_runtime("ort")(bundle, threads=1)
    if bits > 8:
        reference = score(find_runtime("reference")(checkpoint))
        assert relative_error(score(runtime), reference) < FLOAT_ORDER
    else:
        verdict, _ = check(bundle, runtime)
        assert verdict.outcome == "passed", verdict


def test_types_of_one_layers_experts_may_differ(
    import_as: Callable[..., tuple[Checkpoint, Bundle]],
) -> None:
    def choose(tensor: str) -> str:
        if "ffn_down_exps" in tensor:
            return "Q8_0" if "blk.2" in tensor else "F16"
        return "Q4_0"

    checkpoint, bundle = import_as("moe", choose)
    require_same(bundle, checkpoint, MATRICES)
    told = {line.name: (line.bits, line.reason) for line in bundle.manifest.quantization}
    prefix = "model.layers.{}.feed_forward.experts.*.w1.weight"
    kept = "its numbers are kept"
    assert told[prefix.format(2)] == (8, f"Q4_0 in the GGUF file, beside Q8_0: {kept}")
    assert told[prefix.format(3)] == (32, f"Q4_0 in the GGUF file, beside F16: {kept}")
    assert told["model.layers.0.conv.in_proj.weight"] == (4, f"Q4_0 in the GGUF file: {kept}")


def test_type_that_no_operator_reads_is_rounded_again_and_told(
    import_as: Callable[..., tuple[Checkpoint, Bundle]],
) -> None:
    checkpoint, bundle = import_as(
        "dense", lambda tensor: "Q4_1" if tensor == "token_embd.weight" else "Q4_0"
    )
    require_same(bundle, checkpoint, ("projection",))
    manifest = bundle.manifest
    assert manifest.quantization[0].reason == "Q4_1 in the GGUF file: rounded again"
    assert any("except model.embed_tokens.weight" in note for note in manifest.notes)
    assert manifest.rounding is not None
    (line,) = manifest.rounding.weights
    assert (line.name, line.bits, line.group) == ("model.embed_tokens.weight", 8, 32)
    # 8 bits of groups of 32 add little to what 4 left.
    assert 0 < line.error < 1e-2


class Told:
    """Says of every matrix that it is of one type, and of norms that they are F32."""

    def __init__(self, form: StoredForm) -> None:
        self.form = form

    def stored_as(self, name: str) -> StoredForm:
        return StoredForm("F32", 32, 0) if "norm" in name else self.form


def test_plan_of_k_quants_is_eight_bits(checkpoints: Mapping[str, Path]) -> None:
    config = open_checkpoint(str(checkpoints["moe"])).config
    kept = plan_as_stored(Told(StoredForm("Q6_K", 0, 0)), config, find_target("cpu"))
    assert kept.precision == "int8"
    matrices = [kept.plan[s.name] for s in list_weights(config) if s.role in MATRICES]
    assert {(entry.bits, entry.group, entry.rounding) for entry in matrices} == {(8, 32, "search")}
    assert "and 25 more" in kept.remarks[0]


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_webgpu_bundle_holds_the_same_numbers(
    import_as: Callable[..., tuple[Checkpoint, Bundle]], kind: str
) -> None:
    checkpoint, bundle = import_as("dense", kind, target="webgpu")
    assert bundle.manifest.target == "webgpu"
    require_same(bundle, checkpoint, MATRICES)


@pytest.mark.parametrize("target", ["npu", "openvino-cpu", "directml", "qnn"])
def test_target_without_groups_of_32_is_refused(
    checkpoints: Mapping[str, Path], tmp_path: Path, target: str
) -> None:
    file = write_gguf(open_checkpoint(str(checkpoints["dense"])), tmp_path / "a.gguf", "Q4_0")
    with pytest.raises(ExportError, match=f"target {target} cannot store groups of 32.*`export`"):
        import_gguf(file, tmp_path / "out", target=target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf"]


def test_what_is_no_gguf_file_or_is_in_the_way_is_refused(
    checkpoints: Mapping[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match="is no GGUF file: expected"):
        import_gguf(checkpoints["dense"], tmp_path / "out")
    file = write_gguf(open_checkpoint(str(checkpoints["dense"])), tmp_path / "a.gguf", "Q4_0")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(BundleError):
        import_gguf(file, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_export_of_a_file_is_that_of_its_numbers(
    checkpoints: Mapping[str, Path], tmp_path: Path
) -> None:
    file = write_gguf(open_checkpoint(str(checkpoints["dense"])), tmp_path / "a.gguf", "Q8_0")
    bundle = export(str(file), tmp_path / "bundle", precision="fp32")
    assert (bundle.manifest.origin.kind, bundle.manifest.origin.name) == ("file", "a.gguf")
    require_same(bundle, open_checkpoint(str(file)), MATRICES)
