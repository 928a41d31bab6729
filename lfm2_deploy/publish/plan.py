"""What of a bundle goes up, and what should be mended first. Needs no network and no token.

Enters: an opened bundle whose hashes were checked, and a repository's id. Leaves: a `Plan`: every
file with its size, the card as it will stand there, and what its publisher should know.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from lfm2_deploy.bundle import CANARY, CARD, MANIFEST, MEASUREMENTS, Bundle, list_foreign
from lfm2_deploy.card import metadata
from lfm2_deploy.card.measurements import read_measurements
from lfm2_deploy.card.write import make_card
from lfm2_deploy.checkpoint.source import has_hub_form
from lfm2_deploy.errors import PublishError

# What the Hub takes in one file.
_LARGEST_BYTES = 50 * 10**9


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file that goes up.

    Args:
        name: its path in the repository.
        size_bytes: of it.
        path: where it lies; None where `content` is what goes up.
        content: what goes up.
    """

    name: str
    size_bytes: int
    path: Path | None = None
    content: bytes = b""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a push uploads.

    Args:
        repository: its Hub id.
        files: all of them, largest first.
        warnings: what its publisher should know, a sentence each.
    """

    repository: str
    files: tuple[PlannedFile, ...]
    warnings: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(file.size_bytes for file in self.files)

    @property
    def card(self) -> str:
        """The model card that goes up."""
        found = next(file for file in self.files if file.name == CARD)
        return found.content.decode("utf-8", errors="surrogateescape")

    def with_card(self, card: str) -> Plan:
        """The same with another card."""
        files = [file for file in self.files if file.name != CARD]
        return replace(self, files=_order([*files, _make_card_file(card)]))


def make_plan(bundle: Bundle, repository: str) -> Plan:
    """Say what would go up.

    Raises:
        PublishError: the id is none, the folder holds what does not belong to the bundle, or a
            file is larger than the Hub takes.
        BundleError: the card or measurements cannot be read.
    """
    if not has_hub_form(repository):
        raise PublishError(
            f"{repository!r} is no Hub id: expected USER/REPO, such as somebody/LFM2-350M-cpu-int4"
        )
    foreign = list_foreign(bundle.path)
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise PublishError(
            f"{bundle.path} also holds {foreign[0]}{more}, which is no part of the bundle and "
            "would not go up: move it away first"
        )
    records = bundle.manifest.files.items()
    files = [PlannedFile(n, record.size_bytes, bundle.path / n) for n, record in records]
    later = (MANIFEST, MEASUREMENTS) if read_measurements(bundle) else (MANIFEST,)
    for name in later:
        files.append(PlannedFile(name, (bundle.path / name).stat().st_size, bundle.path / name))
    largest = max(files, key=lambda file: file.size_bytes)
    if largest.size_bytes > _LARGEST_BYTES:
        raise PublishError(
            f"{largest.name} has {largest.size_bytes:,} bytes, and the Hub takes at most "
            f"{_LARGEST_BYTES:,} in a file: export with fewer bits (--precision int4)"
        )
    card = make_card(bundle, repository)
    files.append(_make_card_file(card))
    return Plan(repository, _order(files), tuple(list_warnings(bundle, card)))


def list_warnings(bundle: Bundle, card: str) -> list[str]:
    """What a bundle's publisher should know before everybody can see it."""
    items, _ = metadata.split(card)
    license_name = metadata.read_value(items, "license")
    own = metadata.describe(bundle)
    found = []
    if not license_name:
        found.append(
            f"the license is not known: write `license: ...` between the lines of --- of "
            f"{bundle.path / CARD}; LFM2 models and what is made from them are under the LFM Open "
            "License (license: other, license_name: lfm1.0, license_link: its address)"
        )
    elif license_name == "other" and not metadata.read_value(items, "license_link"):
        found.append(f"license: other has no license_link in {CARD}: say where its text is")
    elif "license" in own and own["license"] != items["license"]:
        found.append(
            f"{CARD} says {items['license']!r}, and the model it was made from is under lfm1.0, "
            "whose terms hold for what is made from it"
        )
    if not metadata.read_value(items, "base_model"):
        found.append(
            f"the model it was made from is not known: write `base_model: OWNER/NAME` into {CARD}"
        )
    if bundle.manifest.origin.kind == "synthetic":
        found.append("its weights are random: it says nothing")
    kinds = {one.kind for one in read_measurements(bundle)}
    if CANARY in bundle.manifest.files and "check" not in kinds:
        found.append("no device was checked: `lfm2-deploy check BUNDLE --record` does it")
    elif not kinds & {"check", "verify"}:  # an imported graph has no canary
        found.append(
            "no device was checked: `lfm2-deploy verify BUNDLE --against MODEL --record` does it"
        )
    return found


def _make_card_file(card: str) -> PlannedFile:
    content = card.encode("utf-8", errors="surrogateescape")
    return PlannedFile(CARD, len(content), content=content)


def _order(files: list[PlannedFile]) -> tuple[PlannedFile, ...]:
    return tuple(sorted(files, key=lambda file: (-file.size_bytes, file.name)))
