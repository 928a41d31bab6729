"""The table is found and decoded in a DLL made by hand, whose rows are known."""

from __future__ import annotations

import importlib.util
import struct
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "read_directml_table.py"
BASE, RVA = 0x180000000, 0x1000
CODE = BASE + 0x10  # any address that is not 0


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("read_directml_table", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class Data:
    """Constant data of a DLL under construction, by address."""

    def __init__(self) -> None:
        self.raw = bytearray(b"\0" * 8)

    def add(self, content: bytes) -> int:
        """Append at the next multiple of 8; return where it lies."""
        self.raw += b"\0" * (-len(self.raw) % 8)
        self.raw += content
        return BASE + RVA + len(self.raw) - len(content)

    def add_text(self, text: str) -> int:
        return self.add(b"\0" + text.encode() + b"\0") + 1


def make_row(
    data: Data,
    op: str,
    since: int,
    domain: str = "",
    types: Sequence[tuple[str, int]] = (("T", 1 << 1 | 1 << 12),),
    cpu_inputs: Sequence[int] = (),
    aliases: Sequence[int] = (),
    graph: int = 0,
    count: int | None = None,
    query: int = 0,
) -> bytes:
    """One `OperatorRegistrationInformation`, member by member."""
    names = data.add(b"".join(struct.pack("<Q", data.add_text(name)) for name, _ in types))
    masks = data.add(b"".join(struct.pack("<Q", mask) for _, mask in types))
    row = struct.pack("<Qi4xQQQ", data.add_text(op), since, data.add_text(domain), CODE, CODE)
    row += struct.pack("<8Ii4x", *aliases, *[0] * (8 - len(aliases)), len(aliases) // 2)
    row += struct.pack("<QQQQI", len(types), names, len(types), masks, graph)
    row += struct.pack("<4Ii", *cpu_inputs, *[0] * (4 - len(cpu_inputs)), len(cpu_inputs))
    row += struct.pack("<I?3x", count or 0, count is not None)
    return row + struct.pack("<Q?7x", query, False)


def make_dll(rows: Sequence[bytes], data: Data) -> bytes:
    """A PE32+ file of one section with the rows in it, between other data."""
    data.add(b"\xff" * 160 + b"".join(rows) + b"\xff" * 160)
    header, size = 0x40, 112
    section_at = 0x200
    pe = b"PE\0\0" + struct.pack("<HH12xHH", 0x8664, 1, size, 0)
    optional = struct.pack("<H22xQ", 0x20B, BASE).ljust(size, b"\0")
    section = struct.pack("<8sIIII16x", b".rdata", len(data.raw), RVA, len(data.raw), section_at)
    start = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", header)
    return (start + pe + optional + section).ljust(section_at, b"\0") + bytes(data.raw)


def make_table() -> bytes:
    data = Data()
    attention = make_row(
        data,
        "GroupQueryAttention",
        1,
        "com.microsoft",
        [("T", 1 << 1 | 1 << 12), ("M", 1 << 8)],
        cpu_inputs=[6],
        aliases=[3, 1, 4, 2],
    )
    rows = [
        make_row(data, "Shape", 15, types=[("T", 2**64 - 1), ("T1", 1 << 9)], graph=1),
        make_row(data, "MaxUnpool", 9, query=CODE),
        attention,
        make_row(data, "Sum", 13, count=2),
    ]
    return make_dll(rows, data)


def test_rows_of_a_dll_are_decoded(script: ModuleType) -> None:
    rows = script.read_table(script.parse_image(make_table()))
    assert [(row["op"], row["since"], row["domain"]) for row in rows] == [
        ("Shape", 15, ""),
        ("MaxUnpool", 9, ""),
        ("GroupQueryAttention", 1, "com.microsoft"),
        ("Sum", 13, ""),
    ]
    shape, unpool, attention, total = rows
    assert shape["types"] == {"T": "all", "T1": "int64"}
    assert (shape["in_graphs"], unpool["in_graphs"]) == (False, True)
    assert (unpool["query"], total["query"]) == (True, False)
    assert attention["types"] == {"T": "float32 float16", "M": "int32"}
    assert (attention["cpu_inputs"], attention["aliases"]) == ([6], [[3, 1], [4, 2]])
    assert (total["graph_inputs"], attention["graph_inputs"]) == (2, None)


def test_every_bit_of_a_mask_has_its_name(script: ModuleType) -> None:
    names = [script.name_types(1 << bit) for bit in range(35)]
    assert names[:3] == ["undefined", "float32", "uint4"]
    assert names[18:20] == ["seq(float32)", "seq(uint4)"]
    assert names[34] == "seq(complex128)"
    assert len(set(names)) == 35


def test_dll_without_the_table_refused(script: ModuleType) -> None:
    data = Data()
    dll = make_dll([make_row(data, "Sum", 13)], data)
    with pytest.raises(
        script.TableError, match="expected one table with a row 'MaxUnpool', found 0"
    ):
        script.read_table(script.parse_image(dll))


def test_other_file_refused(script: ModuleType) -> None:
    with pytest.raises(script.TableError, match="does not begin with MZ"):
        script.parse_image(b"\x7fELF" + b"\0" * 100)


def test_wheel_is_read_to_a_file(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel, out = tmp_path / "onnxruntime_directml-1.0-win_amd64.whl", tmp_path / "table.json"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("onnxruntime/capi/onnxruntime.dll", make_table())
        archive.writestr("onnxruntime_directml-1.0.dist-info/METADATA", "Name: x\nVersion: 1.0\n")
    monkeypatch.setattr(sys, "argv", ["script", str(wheel), "--out", str(out)])
    assert script.main() == 0
    text = out.read_text()
    assert '"onnxruntime": "1.0"' in text
    assert '  {"op": "Sum", "since": 13, "domain": "", "types"' in text


def test_wheel_of_linux_refused(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wheel = tmp_path / "onnxruntime-1.0-linux.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("onnxruntime/capi/libonnxruntime.so", b"")
    monkeypatch.setattr(sys, "argv", ["script", str(wheel)])
    assert script.main() == 1
    assert "holds no onnxruntime.dll: take a wheel for Windows" in capsys.readouterr().err
