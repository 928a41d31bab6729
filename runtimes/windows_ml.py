"""Windows ML's catalogue of execution providers, where the package `windowsml` is present.

The catalogue offers vendors' providers, and Windows downloads one when it is made ready. That
happens only when a device of it was asked for by name. Not checked on Windows: written from
the wheel windowsml 2.5.96 and its README; tests use a module of that form.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

from lfm2_deploy.errors import RuntimeUnavailableError

_MODULE = "windowsml"
_READY = "Ready"


@dataclass(frozen=True, slots=True)
class Offer:
    """A provider in the catalogue.

    Args:
        provider: such as "OpenVINOExecutionProvider".
        state: "Ready", "NotReady" or "NotPresent" (not downloaded).
        path: of its library; "" while it is not present.
    """

    provider: str
    state: str
    path: str

    @property
    def ready(self) -> bool:
        """Whether it can be loaded as it is."""
        return self.state == _READY and bool(self.path)


def list_offers() -> tuple[Offer, ...]:
    """What the catalogue offers; nothing where there is none. Downloads nothing."""
    module = _import()
    if module is None:
        return ()
    try:
        # A provider must not outlive its catalogue, so all is read while that is open.
        with module.EpCatalog() as catalogue:
            return tuple(_describe(found) for found in catalogue.find_all_providers())
    except OSError:  # a Windows too old for the catalogue
        return ()


def ensure_ready(provider: str) -> None:
    """Let Windows download and prepare a provider, if its catalogue offers that one.

    Raises:
        RuntimeUnavailableError: it could not be made ready.
    """
    module = _import()
    if module is None:
        return
    try:
        with module.EpCatalog() as catalogue:
            for found in catalogue.find_all_providers():
                if found.name == provider and not _describe(found).ready:
                    found.ensure_ready()
    except OSError as error:
        raise RuntimeUnavailableError(
            f"Windows ML cannot make {provider} ready ({error}): run Windows Update, and look "
            "whether this computer reaches the Microsoft Store"
        ) from error


def _describe(found: Any) -> Offer:
    return Offer(str(found.name), str(found.ready_state.name), str(found.library_path))


def _import() -> Any:
    """The module; None where it is not installed or does not load (its DLL is for Windows)."""
    if importlib.util.find_spec(_MODULE) is None:
        return None
    try:
        return importlib.import_module(_MODULE)
    except (ImportError, OSError):
        return None
