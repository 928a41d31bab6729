"""Where a user wants a bundle to run -> the runtime, loaded there.

Enters: what `--device` and the like were given. Leaves: a `contracts.Runtime`. Knows names of
runtimes, and not one of them.
"""

from __future__ import annotations

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.contracts import Runtime
from lfm2_deploy.device_names import is_device
from lfm2_deploy.errors import RuntimeUnavailableError
from lfm2_deploy.registry import find_entry, find_runtime_of, list_entries


def split_place(text: str) -> tuple[str | None, str | None]:
    """What `--device` names: a device, or a runtime and perhaps a device of it.

    Args:
        text: "cpu", "gpu.1", "genai" or "genai:cuda".

    Returns:
        The runtime's name and the device, each None where none is named.

    Raises:
        RuntimeUnavailableError: what stands before the colon is no runtime.
    """
    name, colon, device = text.strip().lower().partition(":")
    if colon:
        find_entry("runtime", name)
        return name, device or None
    # Some runtimes are called as a device is, and then the device is meant.
    if not is_device(name) and name in list_entries("runtime"):
        return name, None
    return None, name


def load_runtime(
    bundle: Bundle,
    *,
    runtime: str | None = None,
    threads: int | None = None,
    device: str | None = None,
) -> Runtime:
    """Load a bundle where a user wants it to run.

    Args:
        bundle: the opened bundle.
        runtime: the adapter's name; None for what `device` names, or the one it was made for.
        threads: threads of one operator; None lets the runtime choose.
        device: as `split_place` takes it; None for where the bundle was made for.

    Raises:
        RuntimeUnavailableError: there is no such runtime or device, or two were named.
        BundleError: the runtime does not take the bundle.
    """
    named, place = (None, None) if device is None else split_place(device)
    if runtime is not None and named not in (None, runtime):
        raise RuntimeUnavailableError(
            f"device {device!r} names runtime {named!r}, and runtime {runtime!r} was asked for: "
            "leave one out"
        )
    # Most runtimes have one device, and need not be told of it.
    choice = {} if place is None else {"device": place}
    loaded: Runtime = find_runtime_of(bundle, runtime or named)(bundle, threads=threads, **choice)
    return loaded
