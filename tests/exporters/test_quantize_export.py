"""An export with weights rounded by calibration: its record, its size, going on, and refusals."""

from __future__ import annotations

import contextlib
import errno
import re
from pathlib import Path
from typing import Any

import pytest

from lfm2_deploy import api
from lfm2_deploy.bundle import Bundle
from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.commands.sizes import parse_size
from lfm2_deploy.errors import BundleError, DiskFullError, ExportError, ResumeError
from lfm2_deploy.quantization_record import QuantizationRecord
from lfm2_deploy.registry import find_runtime
from lfm2_deploy.unfinished import count_rounded, find_kept, find_unfinished

MODEL = "synthetic:tiny-moe"
ROW = [1, *range(20, 60)]


def read_all(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def measure(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return api.export(MODEL, tmp_path_factory.mktemp("whole") / "bundle", quantize="gptq")


def test_manifest_says_how_weights_were_rounded(whole: Bundle, tmp_path: Path) -> None:
    record = whole.manifest.rounding
    assert record is not None
    assert (record.method, record.text, record.text_sha256) == ("gptq", "random tokens", "")
    assert record.tokens == 8 * 256
    assert len(record.layers) == whole.config.num_hidden_layers
    assert api.export(MODEL, tmp_path / "float", precision="fp16").manifest.rounding is None


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_error_of_weights_is_recorded_without_a_text(tmp_path: Path, precision: str) -> None:
    found = {}
    for method in ("rtn", "search"):
        out = tmp_path / method
        manifest = api.export(MODEL, out, precision=precision, quantize=method).manifest
        record = manifest.rounding
        assert record is not None
        assert record == QuantizationRecord(method, weights=record.weights)
        rounded = [(t.name, t.bits, t.group) for t in manifest.quantization if t.group]
        assert [(line.name, line.bits, line.group) for line in record.weights] == rounded
        found[method] = sum(line.error for line in record.weights)
    # Scales are searched in 4 bits alone.
    assert (found["search"] < found["rtn"]) == (precision == "int4")


def test_calibrated_bundle_has_both_errors_and_tables_have_one(whole: Bundle) -> None:
    record = whole.manifest.rounding
    assert record is not None
    plain = [t.name for t in whole.manifest.quantization if t.group]
    assert [line.name for line in record.weights] == plain
    calibrated = {line.name: line.error for line in record.tensors}
    assert set(plain) - set(calibrated) == {"model.embed_tokens.weight"}
    # GPTQ gives up nearness of the weights for that of the products.
    own = {line.name: line.error for line in record.weights}
    nearer = [name for name, error in calibrated.items() if error < own[name]]
    assert len(nearer) > 0.8 * len(calibrated)


def test_methods_differ_in_bytes_and_not_in_size(whole: Bundle, tmp_path: Path) -> None:
    data = {(whole.path / "model.onnx.data").read_bytes()}
    for method in ("rtn", "search", "awq"):
        bundle = api.export(MODEL, tmp_path / method, quantize=method)
        data.add((bundle.path / "model.onnx.data").read_bytes())
    assert len(data) == 4
    assert len({len(content) for content in data}) == 1


def test_bundle_is_nearer_to_the_model_than_one_rounded_to_nearest(
    whole: Bundle, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(MODEL)
    near = api.export(MODEL, tmp_path / "near", quantize="rtn")
    rows = [[1, *range(start, 500, 7)][:60] for start in range(8, 15)]
    found, simple = (api.verify(b, checkpoint, rows, greedy_tokens=0) for b in (whole, near))
    assert found.kld < simple.kld


def test_text_of_the_user_is_named_with_its_digest(tmp_path: Path) -> None:
    from lfm2_deploy.demo import DEMO_MODEL

    text = tmp_path / "mine.txt"
    text.write_text("A short text, of a few words only. " * 3, encoding="utf-8")
    bundle = api.export(str(DEMO_MODEL), tmp_path / "out", quantize="awq", calibrate=text)
    record = bundle.manifest.rounding
    assert record is not None
    assert record.text == "mine.txt"
    assert len(record.text_sha256) == 64
    assert 10 < record.tokens < 60


def interrupt_at(layer: int) -> Any:
    def interrupt(what: str, done: int, total: int) -> None:
        if what == "rounding weights" and done == layer:
            raise KeyboardInterrupt

    return interrupt


def test_export_stopped_while_rounding_goes_on_to_the_same_bytes(
    whole: Bundle, tmp_path: Path
) -> None:
    place, seen = tmp_path / "bundle", []
    with pytest.raises(KeyboardInterrupt):
        api.export(MODEL, place, quantize="gptq", progress=interrupt_at(2))
    assert find_unfinished(place) is not None
    with pytest.raises(ResumeError, match="rounded otherwise"):
        api.export(MODEL, place, quantize="awq", resume=True)

    def note(what: str, done: int, total: int) -> None:
        if what == "rounding weights":
            seen.append(done)

    api.export(MODEL, place, quantize="gptq", resume=True, progress=note)
    assert seen[0] == 2
    assert read_all(place) == read_all(whole.path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("other", [{"precision": "int8"}, {"precision": "fp16"}, {}])
def test_layers_that_another_export_rounded_are_kept_and_not_gone_on_with(
    whole: Bundle, tmp_path: Path, other: dict[str, str]
) -> None:
    place = tmp_path / "bundle"
    with pytest.raises(KeyboardInterrupt):
        api.export(MODEL, place, quantize="gptq", progress=interrupt_at(2))
    with pytest.raises(ResumeError, match=r"rounded otherwise: .* with --overwrite"):
        api.export(MODEL, place, resume=True, **other)
    with pytest.raises(BundleError, match=r"rounded 2 layers .*--resume goes on, --overwrite"):
        api.export(MODEL, place, **other)
    # Neither goes what a failure of another kind ends.
    with pytest.raises(ExportError, match="too small"):
        api.export(MODEL, place, quantize="gptq", resume=True, max_size_bytes=10)
    assert count_rounded(place) == 2
    api.export(MODEL, place, quantize="gptq", resume=True)
    assert read_all(place) == read_all(whole.path)


def test_layers_that_another_export_rounded_go_with_overwrite(tmp_path: Path) -> None:
    place = tmp_path / "bundle"
    with pytest.raises(KeyboardInterrupt):
        api.export(MODEL, place, quantize="gptq", progress=interrupt_at(2))
    assert find_kept(place) == tmp_path / ".bundle.partial.rounded"
    api.export(MODEL, place, precision="int8", overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


def test_disk_that_fills_while_going_on_loses_no_layer(
    whole: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "bundle"
    with pytest.raises(KeyboardInterrupt):
        api.export(MODEL, place, quantize="gptq", progress=interrupt_at(2))
    write = Path.write_text

    def fill(self: Path, *args: Any, **named: Any) -> int:
        if self.parent.name.endswith(".rounded"):
            self.open("w").close()
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, *args, **named)

    with monkeypatch.context() as patch, contextlib.suppress(DiskFullError, KeyboardInterrupt):
        patch.setattr(Path, "write_text", fill)
        api.export(MODEL, place, quantize="gptq", resume=True, progress=interrupt_at(2))
    api.export(MODEL, place, quantize="gptq", resume=True)
    assert read_all(place) == read_all(whole.path)


def test_export_stopped_before_the_first_layer_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        api.export(MODEL, tmp_path / "bundle", quantize="gptq", progress=interrupt_at(0))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["cpu", "npu"])
@pytest.mark.parametrize("share", [1.02, 1.2])
def test_bundle_stays_within_the_size_that_was_asked_for(
    tmp_path: Path, target: str, share: float
) -> None:
    usual = api.export(MODEL, tmp_path / "usual", target=target, context_length=128)
    most = int(share * measure(usual.path))
    bundle = api.export(
        MODEL, tmp_path / "out", target=target, context_length=128, max_size_bytes=most
    )
    assert 0.8 * most < measure(bundle.path) <= most
    record = bundle.manifest.rounding
    assert record is not None
    assert record.max_size_bytes == most
    assert record.method == "search"


@pytest.mark.parametrize("target", ["cpu", "webgpu"])
def test_smallest_size_that_is_told_is_possible(tmp_path: Path, target: str) -> None:
    place = tmp_path / "out"
    with pytest.raises(ExportError) as caught:
        api.export(MODEL, place, target=target, context_length=128, max_size_bytes=1000)
    told = re.search(r"takes (\S+)", str(caught.value))
    assert told is not None
    smallest = parse_size(told[1])
    bundle = api.export(MODEL, place, target=target, context_length=128, max_size_bytes=smallest)
    assert measure(bundle.path) <= smallest


def test_bundle_of_a_size_runs_and_is_better_than_a_smaller_one(tmp_path: Path) -> None:
    checkpoint, errors = open_checkpoint(MODEL), []
    usual = measure(api.export(MODEL, tmp_path / "usual", context_length=128).path)
    for share in (1.02, 1.4):
        size, place = int(share * usual), tmp_path / f"{share}"
        bundle = api.export(MODEL, place, quantize="gptq", context_length=128, max_size_bytes=size)
        find_runtime("ort")(bundle, threads=1).close()
        errors.append(api.verify(bundle, checkpoint, [ROW], greedy_tokens=0).kld)
    assert errors[1] < errors[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quantize": "best"}, r"no --quantize best: expected one of rtn, search, awq, gptq"),
        ({"quantize": "gptq", "precision": "fp16"}, "choose --precision int8 or int4"),
        ({"max_size_bytes": 10**9, "precision": "int8"}, "leave one of them out"),
        ({"max_size_bytes": 1000}, r"the smallest bundle of this model takes \d"),
        ({"quantize": "gptq", "cluster": "local"}, "leave --cluster out"),
        ({"max_size_bytes": 10**9, "cluster": "local"}, "--max-size goes through the layers"),
        ({"calibrate": "x.txt", "quantize": "rtn"}, "nothing is calibrated"),
        ({"calibrate": "x.txt", "quantize": "gptq"}, "no tokenizer.json"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ExportError, match=words) as caught:
        api.export(MODEL, tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "GPTQ4", "none"])
def test_unknown_method_names_those_there_are(tmp_path: Path, name: str) -> None:
    with pytest.raises(ExportError, match=r"rtn, search, awq, gptq"):
        api.export(MODEL, tmp_path / "out", quantize=name)
