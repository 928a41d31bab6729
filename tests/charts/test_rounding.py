"""The plot of what rounding cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lfm2_deploy.charts.rounding import plot_rounding, write_rounding
from lfm2_deploy.quantization_record import LayerError, QuantizationRecord, TensorError

from .made_up_rounding import ATTENTION, make_record

SVG = "{http://www.w3.org/2000/svg}"


def test_each_layer_has_its_output_and_its_worst_tensor() -> None:
    record = make_record()
    chart = plot_rounding(record).by_layer
    assert chart is not None
    output, worst = chart.lines
    assert output.points == tuple((entry.layer, entry.error) for entry in record.layers)
    of_two = [t.error for t in record.tensors if t.name.startswith("model.layers.2.")]
    assert worst.points[2] == (2, max(of_two))


def test_map_has_a_row_for_each_unit_mixers_first() -> None:
    heat = plot_rounding(make_record()).by_tensor
    assert heat is not None
    assert heat.rows[:3] == ("conv.in_proj", "conv.out_proj", "attn.q_proj")
    assert heat.rows[-1] == "experts.*.w2"
    column = [(heat.rows[cell.row], cell.text) for cell in heat.cells if cell.column == 2]
    assert ("attn.q_proj", "8") in column
    assert {text for _, text in column} == {"8"}
    keys = [cell.column for cell in heat.cells if heat.rows[cell.row] == "attn.k_proj"]
    assert tuple(keys) == ATTENTION


def test_larger_errors_have_stronger_shades() -> None:
    names = [f"model.layers.{i}.conv.in_proj.weight" for i in range(4)]
    errors = (0.0, 0.01, 0.1, 9.0)
    tensors = tuple(TensorError(n, 4, 32, e, e) for n, e in zip(names, errors, strict=True))
    heat = plot_rounding(QuantizationRecord("rtn", tensors=tensors)).by_tensor
    assert heat is not None
    shades = [cell.shade for cell in heat.cells]
    assert shades == sorted(shades)
    # The least there is stands for zero too.
    assert shades[0] == shades[1] == 0 < shades[2] < shades[3] == 1


def test_errors_that_are_alike_look_alike() -> None:
    names = [f"model.layers.{i}.conv.in_proj.weight" for i in range(2)]
    tensors = tuple(TensorError(n, 4, 32, e, e) for n, e in zip(names, (0.07, 0.08), strict=True))
    plot = plot_rounding(QuantizationRecord("rtn", tensors=tensors))
    assert plot.by_tensor is not None
    shades = [cell.shade for cell in plot.by_tensor.cells]
    assert 0.8 < shades[0] < shades[1] == 1
    assert plot.by_layer is not None
    assert plot.by_layer.y.low == 0


def test_tensors_of_no_layer_are_told_in_words(tmp_path: Path) -> None:
    record = make_record()
    assert [t.name for t in plot_rounding(record).elsewhere] == ["model.embed_tokens.weight"]
    write_rounding(record, tmp_path / "plot.svg", "a bundle")
    texts = read_texts(tmp_path / "plot.svg")
    assert "model.embed_tokens.weight: 8 bits, error 0.0041" in texts
    assert "method gptq, calibrated on 16,384 tokens of austen.txt" in texts


@pytest.mark.parametrize(
    "record",
    [
        QuantizationRecord("rtn"),
        QuantizationRecord("rtn", layers=(LayerError(0, 0.0),)),
        QuantizationRecord("rtn", tensors=(TensorError("lm_head.weight", 8, 32, 0.01, 0.01),)),
    ],
)
def test_record_of_little_is_drawn_as_far_as_it_goes(
    record: QuantizationRecord, tmp_path: Path
) -> None:
    write_rounding(record, tmp_path / "plot.svg", "a bundle")
    assert "method rtn" in read_texts(tmp_path / "plot.svg")


def test_record_from_anywhere_does_no_harm(tmp_path: Path) -> None:
    evil = "</svg><script>\u202e"
    tensors = (
        TensorError(f"model.layers.{'9' * 5000}.conv.in_proj.weight", 4, 32, 0.1, 0.1),
        TensorError(f"model.layers.999999.{evil}.weight", 4, 32, 0.1, 0.1),
        TensorError("model.layers.0.conv.in_proj.weight", 10**30, 32, 1e300, 0.1),
    )
    layers = (LayerError(10**18, 1e300), LayerError(0, 1e-300))
    record = replace(make_record(), text=evil, tensors=tensors, layers=layers)
    write_rounding(record, tmp_path / "plot.svg", evil)
    file = tmp_path / "plot.svg"
    assert "<script" not in file.read_text(encoding="utf-8")
    assert file.stat().st_size < 50_000
    assert any(evil[:-1] in text for text in read_texts(file))


def test_file_stands_alone_and_follows_dark_mode(tmp_path: Path) -> None:
    write_rounding(make_record(layers=40), tmp_path / "plot.svg", "a bundle")
    text = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    assert "prefers-color-scheme:dark" in text
    assert text.count("http") == 1  # the name of SVG itself
    assert len(text) < 150_000


def read_texts(file: Path) -> list[str]:
    """All texts of an SVG file, read by a strict parser."""
    return [e.text or "" for e in ElementTree.parse(file).iter(f"{SVG}text")]
