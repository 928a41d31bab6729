"""One entry of the registry: where something lives, what it needs, and importing it."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from lfm2_deploy.errors import RuntimeUnavailableError

PACKAGE = "lfm2-deploy"
# What users install; "dev" and "docs" pin what only our own tests and site are held to.
_EXTRAS = (
    "", "bench", "eval", "export", "gguf", "hub", "openvino", "optimum", "optimum-intel",
    "qnn", "ray", "serve", "webgpu",
)  # fmt: skip
# An import error in one of these is a bug of ours, not a broken installation.
_OWN = {"lfm2_deploy", "exporters", "runtimes"}


@dataclass(frozen=True, slots=True)
class Entry:
    """Where something lives and what it needs.

    Args:
        module: module to import.
        attribute: what to take from it.
        needs: import names of the packages it cannot do without.
        install: the command that brings them.
        summary: one line for `doctor`.
        package: the package of somebody else that brings it; "" for our own.
    """

    module: str
    attribute: str
    needs: tuple[str, ...]
    install: str
    summary: str
    package: str = ""

    def missing(self) -> tuple[str, ...]:
        """Which of the needed packages are not installed."""
        return tuple(name for name in self.needs if importlib.util.find_spec(name) is None)

    def mismatched(self) -> tuple[str, ...]:
        """What is installed in a version this package does not take.

        Returns:
            Words such as "torch==2.13.0, found 2.5.1".
        """
        found = (_compare_version(requirement) for requirement in _list_requirements(self.needs))
        return tuple(words for words in found if words is not None)

    def load(self) -> Any:
        """Import and return it.

        Raises:
            RuntimeUnavailableError: a needed package is not installed, is of the wrong
                version, or does not load.
        """
        if self.package:
            return self._load_plugin()
        self.require()
        return getattr(self._import(), self.attribute)

    def require(self) -> None:
        """See whether what it needs is installed, without importing anything.

        Raises:
            RuntimeUnavailableError: a needed package is not installed, or of the wrong version.
        """
        missing = self.missing()
        if missing:
            verb = "is" if len(missing) == 1 else "are"
            raise RuntimeUnavailableError(
                f"{self.summary} needs {', '.join(missing)}, which {verb} not installed: "
                f"{self.install}"
            )
        mismatched = self.mismatched()
        if mismatched:
            raise RuntimeUnavailableError(
                f"{self.summary} needs {'; '.join(mismatched)}: {self.install}"
            )

    def _load_plugin(self) -> Any:
        """As `load`; whatever goes wrong in somebody else's package is told in one line."""
        try:
            found: Any = importlib.import_module(self.module)
            for name in filter(None, self.attribute.split(".")):
                found = getattr(found, name)
        except (Exception, SystemExit) as error:  # a module may call sys.exit
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise RuntimeUnavailableError(self.explain_fault(why)) from error
        return found

    def explain_fault(self, why: str) -> str:
        """The line about somebody else's part that cannot be imported."""
        return (
            f"{self.summary} cannot be imported ({why}): {self.install}, or uninstall "
            f"{self.package}"
        )

    def _import(self) -> ModuleType:
        try:
            return importlib.import_module(self.module)
        except (ImportError, OSError) as error:  # OSError: torch, where a library is absent
            if _is_own(error):
                raise
            among = "one of " if len(self.needs) > 1 else ""
            raise RuntimeUnavailableError(
                f"{self.summary} needs {among}{', '.join(self.needs)}, which is installed but "
                f"does not load ({' '.join(str(error).split())}): {self.install} --force-reinstall"
            ) from error


def find_plugin_fault(place: Mapping[str, str]) -> str | None:
    """Why an entry of somebody else's cannot be loaded; None where it can. For a child process.

    Args:
        place: module, attribute, install, summary and package of the entry.
    """
    try:
        Entry(needs=(), **place).load()
    except RuntimeUnavailableError as error:
        return str(error)
    return None


def _is_own(error: ImportError | OSError) -> bool:
    name = error.name if isinstance(error, ImportError) else None
    return (name or "").partition(".")[0] in _OWN


def _list_requirements(names: tuple[str, ...]) -> list[Requirement]:
    """What this package requires of others, given by their import names."""
    wanted = {canonicalize_name(name) for name in names}
    declared = _list_declared()
    return [r for r in declared if canonicalize_name(r.name) in wanted and _applies(r)]


def _list_declared() -> list[Requirement]:
    try:
        return list(map(Requirement, metadata.requires(PACKAGE) or []))
    except metadata.PackageNotFoundError:  # run from a folder, without being installed
        return []


def list_own_packages() -> set[str]:
    """The packages that this one requires, with any of its extras."""
    return {requirement.name for requirement in _list_declared()}


def _applies(requirement: Requirement) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in _EXTRAS)


def _compare_version(requirement: Requirement) -> str | None:
    """What is wrong with the installed version; None if nothing is, or none is known."""
    try:
        found = Version(metadata.version(requirement.name))
        fits = requirement.specifier.contains(found, prereleases=True)
    except (metadata.PackageNotFoundError, InvalidVersion):
        return None  # a wheel of another name provides the module, or a build of one's own
    return None if fits else f"{requirement.name}{requirement.specifier}, found {found}"
