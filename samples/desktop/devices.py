"""Which devices a window offers."""

from lfm2_deploy import Lfm2DeployError, open_bundle
from lfm2_deploy.registry import DEVICES
from lfm2_deploy.store.resolve import resolve


def list_devices(bundle: str) -> tuple[str, ...]:
    """What the runtime that the bundle was made for may run on, on any computer."""
    try:
        return DEVICES.get(open_bundle(resolve(bundle)).manifest.runtime, ())
    except Lfm2DeployError:  # loading it says why
        return ()
