"""Read DirectML's operator table out of an onnxruntime wheel for Windows.

    python scripts/read_directml_table.py WHEEL --out exporters/lint/tables/directml.json

A wheel of onnxruntime-directml or onnxruntime-windowsml holds onnxruntime.dll, and in its constant
data lies `operatorRegistrationInformationTable`: an array of `OperatorRegistrationInformation`, as
onnxruntime/core/providers/dml/DmlExecutionProvider/src/Operators/OperatorRegistration.cpp declares
it (MIT License, Microsoft Corporation). A DLL for x64 is laid out for one address, so pointers in
the file need no relocation. The array is found by a row that must be there, and its rows are
taken as far as they make sense in both directions.
"""

from __future__ import annotations

import argparse
import json
import re
import struct
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DLL = "onnxruntime.dll"
# A row that every DirectML provider has had since 2018; its name is looked for.
LANDMARK = "MaxUnpool"
DOMAINS = ("", "com.microsoft", "com.microsoft.dml")
# `SupportedTensorDataTypes`, bit by bit from the lowest. Sequences of them follow.
TYPES = [
    "undefined",
    "float32",
    "uint4",
    "int4",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "int32",
    "int64",
    "string",
    "bool",
    "float16",
    "float64",
    "uint32",
    "uint64",
    "complex64",
    "complex128",
]
ALL = 2**64 - 1
# name, version, domain, two functions, 4 aliases and their number, type names, type masks (each a
# length and a pointer), graph support, 4 inputs and their number, an optional count, a function,
# and whether shapes may be dynamic. "x" is what the compiler pads.
ROW = struct.Struct("<QixxxxQQQ8IixxxxQQQQI4IiI?xxxQ?7x")
MOST_VERSION = 64
MOST_NAMES = 16


class TableError(Exception):
    """The file is no such DLL, or the table is not where or what it was."""


@dataclass(frozen=True, slots=True)
class Image:
    """A PE file for x64, by the addresses its data are meant for.

    Args:
        base: address of its first byte in memory.
        sections: (address, contents) of each part.
    """

    base: int
    sections: tuple[tuple[int, bytes], ...]

    def read(self, address: int, size: int) -> bytes:
        """Bytes at an address; none where nothing lies."""
        for start, content in self.sections:
            if start <= address and address + size <= start + len(content):
                return content[address - start : address - start + size]
        return b""

    def read_text(self, address: int) -> str | None:
        """The C string at an address; None where there is none."""
        for start, content in self.sections:
            if start <= address < start + len(content):
                offset = address - start
                end = content.find(b"\0", offset, offset + 128)
                found = content[offset:end] if end >= 0 else b"\xff"
                return found.decode("ascii") if found.isascii() else None
        return None

    def find(self, needle: bytes, alignment: int = 1) -> Iterator[int]:
        """Addresses where these bytes stand."""
        for start, content in self.sections:
            offset = content.find(needle)
            while offset >= 0:
                if (start + offset) % alignment == 0:
                    yield start + offset
                offset = content.find(needle, offset + 1)


def parse_image(dll: bytes) -> Image:
    """Take a PE32+ file apart.

    Raises:
        TableError: it is another kind of file.
    """
    if dll[:2] != b"MZ":
        raise TableError(f"{DLL} does not begin with MZ: this is no Windows library")
    header = struct.unpack_from("<I", dll, 0x3C)[0]
    machine, count, optional_size = struct.unpack_from("<HH12xH", dll, header + 4)
    optional = header + 24
    magic = struct.unpack_from("<H", dll, optional)[0]
    if dll[header : header + 4] != b"PE\0\0" or magic != 0x20B or machine != 0x8664:
        raise TableError(f"{DLL} is not for x64 (machine {machine:#x}): take a win_amd64 wheel")
    base = struct.unpack_from("<Q", dll, optional + 24)[0]
    table = optional + optional_size
    sections = [struct.unpack_from("<8xIIII", dll, table + 40 * index) for index in range(count)]
    return Image(base, tuple((base + rva, dll[at : at + size]) for _, rva, size, at in sections))


def read_table(image: Image) -> list[dict[str, Any]]:
    """All rows of the table, in its order.

    Raises:
        TableError: there is none, or more than one.
    """
    starts = {_walk(image, row, -ROW.size)[-1] for row in _find_rows(image)}
    if len(starts) != 1:
        raise TableError(
            f"expected one table with a row {LANDMARK!r}, found {len(starts)}: compare ROW in "
            "scripts/read_directml_table.py with OperatorRegistrationInformation of this version"
        )
    rows = [_decode(image, address) for address in _walk(image, starts.pop(), ROW.size)]
    return [row for row in rows if row is not None]


def _find_rows(image: Image) -> Iterator[int]:
    """Where a row of the landmark's name stands."""
    for name in image.find(b"\0" + LANDMARK.encode() + b"\0"):
        for address in image.find(struct.pack("<Q", name + 1), alignment=8):
            if _decode(image, address) is not None:
                yield address


def _walk(image: Image, address: int, step: int) -> list[int]:
    addresses = []
    while _decode(image, address) is not None:
        addresses.append(address)
        address += step
    return addresses


def _decode(image: Image, address: int) -> dict[str, Any] | None:
    """One row; None if these bytes are none."""
    raw = image.read(address, ROW.size)
    if len(raw) < ROW.size:
        return None
    name, version, domain, create, _, *rest = ROW.unpack(raw)
    pairs, (alias_count, names, names_at, masks, masks_at, graph) = rest[:8], rest[8:14]
    (*cpu, cpu_count, inputs, has_inputs, query, _) = rest[14:]
    op, domain_name = image.read_text(name), image.read_text(domain)
    sane = 0 < version < MOST_VERSION and names == masks <= MOST_NAMES and create
    if not op or domain_name not in DOMAINS or not sane or max(alias_count, cpu_count) > 4:
        return None
    types = _decode_types(image, names_at, masks_at, names)
    if types is None:
        return None
    return {
        "op": op,
        "since": version,
        "domain": domain_name,
        "types": types,
        "cpu_inputs": cpu[:cpu_count],
        "aliases": [list(pair) for pair in zip(pairs[::2], pairs[1::2], strict=True)][:alias_count],
        "in_graphs": not graph & 1,
        "graph_inputs": inputs if has_inputs else None,
        "query": query != 0,
    }


def _decode_types(image: Image, names: int, masks: int, count: int) -> dict[str, str] | None:
    types = {}
    for index in range(count):
        pointer = image.read(names + 8 * index, 8)
        mask = image.read(masks + 8 * index, 8)
        name = image.read_text(int.from_bytes(pointer, "little")) if pointer and mask else None
        if not name:
            return None
        types[name] = name_types(int.from_bytes(mask, "little"))
    return types


def name_types(mask: int) -> str:
    """A mask's types as one string; "all" for any."""
    if mask == ALL:
        return "all"
    words = [name for bit, name in enumerate(TYPES) if mask >> bit & 1]
    sequences = [f"seq({name})" for bit, name in enumerate(TYPES[1:]) if mask >> (18 + bit) & 1]
    return " ".join(words + sequences)


def write_table(rows: Sequence[dict[str, Any]], wheel: str, version: str) -> str:
    """The table as JSON, a row a line; keys that say nothing are left out."""
    about = {
        "about": "Operators of ONNX Runtime's DirectML provider and what each kernel takes.",
        "made_by": "scripts/read_directml_table.py",
        "wheel": wheel,
        "onnxruntime": version,
        "derived_from": "OperatorRegistration.cpp of microsoft/onnxruntime, MIT License, "
        "Copyright (c) Microsoft Corporation",
    }
    head = json.dumps(about, indent=1)[:-2]
    lines = ",\n".join(f"  {json.dumps(_shorten(row))}" for row in rows)
    return f'{head},\n "operators": [\n{lines}\n ]\n}}\n'


def _shorten(row: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in row.items() if value not in ([], None, False)}
    kept.pop("in_graphs", None)
    return kept | ({} if row["in_graphs"] else {"in_graphs": False})


def read_wheel(wheel: Path) -> tuple[bytes, str]:
    """The DLL in a wheel, and its version.

    Raises:
        TableError: it holds none.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = {Path(name).name: name for name in archive.namelist()}
        if DLL not in names:
            raise TableError(f"{wheel.name} holds no {DLL}: take a wheel for Windows")
        metadata = archive.read(names["METADATA"]).decode()
        found = re.search(r"^Version: (\S+)", metadata, re.MULTILINE)
        return archive.read(names[DLL]), found[1] if found else "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--out", type=Path, help="write here instead of to stdout")
    arguments = parser.parse_args()
    try:
        dll, version = read_wheel(arguments.wheel)
        rows = read_table(parse_image(dll))
    except (OSError, TableError, zipfile.BadZipFile) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    text = write_table(rows, arguments.wheel.name, version)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    print(f"{len(rows)} operators", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
