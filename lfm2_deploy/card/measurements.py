"""measurements.json of a bundle: what was measured of it, and where.

Enters: one `Measurement` after another, of `compare`, `verify`, `eval`, `check` and `bench`.
Leaves: those that hold for the bundle's graphs and weights as they are; a figure of other bytes
is never given out, and goes with the next write. The file may come from anywhere, so what is read
is checked. How a card looks is not known here.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from reprlib import repr as shorten
from typing import Any, Literal, get_args

from lfm2_deploy.bundle import MEASUREMENTS, Bundle
from lfm2_deploy.errors import BundleError
from lfm2_deploy.json_file import read_json_object

SCHEMA = 1
Kind = Literal["check", "verify", "compare", "eval", "bench"]
# What was done on a device: graphs ran there, or in a program that stands in for it.
Way = Literal["executed", "emulated"]
Outcome = Literal["passed", "doubtful", "failed", ""]
Unit = Literal["", "nats", "share", "tok/s", "ms", "s", "bytes"]
# More is no card any more; the oldest go.
_MOST, _MOST_FIGURES, _LONGEST = 64, 200, 400
_AGAIN = "delete it, and measure again with --record"


@dataclass(frozen=True, slots=True)
class Figure:
    """One number.

    Args:
        name: for people, such as "KL divergence".
        value: the number.
        error: its standard error; None where there is none.
        unit: "share" is from 0 to 1.
    """

    name: str
    value: float
    error: float | None = None
    unit: Unit = ""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one command measured of a bundle on one device.

    Args:
        kind: the command.
        bundle: `Bundle.identity` of what was measured.
        figures: numbers, the one that says most first.
        runtime, device, driver: where it ran, as `RuntimeInfo` has them.
        way: whether the device itself computed.
        outcome: the verdict; "" of commands that give none.
        reason: why it is not "passed"; or "".
        reference: what it was held against; "" where nothing was.
        protocol: on what, in words.
        remark: what makes figures worse than they need be, such as other programs' work; or "".
        versions: package -> version.
        created: when, ISO 8601, in UTC.
    """

    kind: Kind
    bundle: str
    figures: tuple[Figure, ...]
    runtime: str
    device: str
    driver: str = ""
    way: Way = "executed"
    outcome: Outcome = ""
    reason: str = ""
    reference: str = ""
    protocol: str = ""
    remark: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""

    @property
    def subject(self) -> tuple[str, ...]:
        """What it is about: a later one of the same replaces it."""
        return self.kind, self.runtime, self.device, self.reference, self.protocol


def stamp() -> str:
    """Now, as `Measurement.created` has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def find_way(device: str, driver: str = "") -> Way:
    """Whether a device itself computes, by what its runtime calls it."""
    words = f"{device} {driver}".lower()
    adapters = ("llvmpipe", "lavapipe", "swiftshader", "basic render", ", software")
    stands_in = ("emulat", "in the place of", *adapters)
    return "emulated" if any(word in words for word in stands_in) else "executed"


def read_measurements(bundle: Bundle) -> tuple[Measurement, ...]:
    """What was measured of a bundle as it is now, oldest first.

    Raises:
        BundleError: measurements.json is damaged, or of another schema.
    """
    file = bundle.path / MEASUREMENTS
    if not file.is_file():
        return ()
    raw = read_json_object(file, BundleError, _AGAIN)
    if raw.get("schema") != SCHEMA:
        raise BundleError(
            f"{file} has schema {shorten(raw.get('schema'))}, this package reads {SCHEMA}; {_AGAIN}"
        )
    try:
        every = [_parse(line) for line in _expect_list(raw["measurements"], _MOST)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise BundleError(f"{file} is damaged ({reason}); {_AGAIN}") from error
    return tuple(one for one in every if one.bundle == bundle.identity)


def add_measurements(bundle: Bundle, found: Sequence[Measurement]) -> None:
    """Keep measurements beside the bundle's manifest; one of the same subject is replaced.

    Raises:
        BundleError: the file there is damaged, or the folder takes none.
    """
    fresh = {one.subject for one in found}
    kept = [one for one in read_measurements(bundle) if one.subject not in fresh]
    write_measurements(bundle, [*kept, *found])


def write_measurements(bundle: Bundle, measurements: Sequence[Measurement]) -> None:
    """Write measurements.json, all at once; the oldest go where there are too many."""
    lines = [_describe(one) for one in measurements[-_MOST:]]
    record = {"schema": SCHEMA, "measurements": lines}
    replace_file(bundle, MEASUREMENTS, json.dumps(record, indent=1, allow_nan=False) + "\n")


def replace_file(bundle: Bundle, name: str, text: str) -> None:
    """Write a file of a bundle's folder so that nobody sees half of it.

    Raises:
        BundleError: the folder takes none.
    """
    scratch = bundle.path / f".{name}.{os.getpid()}"
    try:
        scratch.write_text(text, encoding="utf-8", errors="surrogateescape", newline="\n")
        os.replace(scratch, bundle.path / name)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise BundleError(
            f"{bundle.path / name} cannot be written ({error.strerror or error}); "
            "copy the bundle to a folder of your own"
        ) from error


def _describe(one: Measurement) -> dict[str, Any]:
    """As JSON; a number that JSON does not know is left out, as nobody measured it."""
    figures = [asdict(figure) for figure in one.figures if math.isfinite(figure.value)]
    for figure in figures:
        if figure["error"] is not None and not math.isfinite(figure["error"]):
            figure["error"] = None
    return {**asdict(one), "versions": dict(one.versions), "figures": figures}


def _parse(raw: Any) -> Measurement:
    figures = tuple(_parse_figure(line) for line in _expect_list(raw["figures"], _MOST_FIGURES))
    one = Measurement(**{**raw, "figures": figures})
    for part, choices in (("kind", Kind), ("way", Way), ("outcome", Outcome)):
        _expect_choice(getattr(one, part), get_args(choices), part)
    for line in fields(one):
        if line.name not in ("figures", "versions"):
            _expect_text(getattr(one, line.name), line.name)
    if not isinstance(one.versions, dict):
        raise ValueError(f"versions is {shorten(one.versions)}, expected an object")
    for package, version in one.versions.items():
        _expect_text(package, "a package")
        _expect_text(version, f"version of {package}")
    datetime.fromisoformat(one.created)
    return one


def _parse_figure(raw: Any) -> Figure:
    figure = Figure(**raw)
    _expect_text(figure.name, "name of a figure")
    _expect_choice(figure.unit, get_args(Unit), "unit")
    for number in (figure.value, 0.0 if figure.error is None else figure.error):
        if type(number) not in (int, float) or not math.isfinite(number):
            raise ValueError(f"{figure.name} is {shorten(number)}, expected a number")
    return figure


def _expect_list(value: Any, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"found {shorten(value)}, expected a list of at most {most}")
    return value


def _expect_text(value: Any, name: str) -> None:
    if type(value) is not str or len(value) > _LONGEST:
        raise ValueError(f"{name} is {shorten(value)}, expected text of at most {_LONGEST}")


def _expect_choice(value: Any, choices: Sequence[str], name: str) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {shorten(value)}, expected one of {', '.join(choices)}")
