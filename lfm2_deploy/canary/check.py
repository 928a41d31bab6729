"""Whether the device a bundle was loaded on computes it: found out once, and remembered.

What was found holds for this bundle's very files, this runtime, device and driver, and this
version of the package; where one of them changes, it is found out again. Only what passed, or is
doubtful, is taken from memory: a device that failed is tried at every load.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args

from lfm2_deploy.bundle import CANARY, Bundle
from lfm2_deploy.canary.judge import Verdict, judge
from lfm2_deploy.canary.record import Coverage, read_canary
from lfm2_deploy.canary.run import Reading, run_canary
from lfm2_deploy.contracts import Runtime, RuntimeInfo
from lfm2_deploy.errors import BundleError, CanaryError, GenerationError
from lfm2_deploy.remember import list_remembered, recall, remember
from lfm2_deploy.words import quote_path

Mode = Literal["auto", "always", "off"]
MODES: tuple[Mode, ...] = get_args(Mode)
# What `canary=None` means; one of the modes.
SWITCH = "LFM2_DEPLOY_CANARY"
# How a refused bundle is loaded all the same; commands name their own option in its place.
OVERRIDE = f"{SWITCH}=off"
KIND = "canary"
NO_CANARY = (
    "this bundle has no canary, so nothing tells whether this device computes it rightly: "
    "export it again to have one"
)

IMPORTED = (
    "this bundle was imported and has no canary, so nothing tells whether this device computes it "
    "rightly: `verify --against` the checkpoint does, token by token"
)


class CanaryWarning(UserWarning):
    """A device computes a bundle in a way that is not usual."""


def choose_mode(asked: str | None) -> Mode:
    """What was asked for; where it is None, what the environment says, or "auto".

    Raises:
        GenerationError: it is none of the modes.
    """
    word = (os.environ.get(SWITCH) or "auto") if asked is None else asked
    # Python callers may pass True, or anything else.
    found = next((mode for mode in MODES if mode == str(word).lower()), None)
    if found is None:
        source = SWITCH if asked is None else "canary"
        raise GenerationError(f"{source} is {word!r}: expected one of {', '.join(MODES)}")
    return found


def guard(
    bundle: Bundle, runtime: Runtime, mode: Mode, at_trial: Callable[[], object] = lambda: None
) -> str:
    """Check a runtime that was just loaded, unless it is known to be right.

    Args:
        bundle: what it was loaded from.
        runtime: closed where it fails.
        mode: "auto" once for each device and driver, "always" at every load, "off" never.
        at_trial: called before the canary runs, if it does.

    Returns:
        What a user should know, or "". Where a device is doubtful, it is also warned of.

    Raises:
        CanaryError: the device computes something else.
        BundleError: the canary is damaged, or must be there and is not.
    """
    if mode == "off":
        return ""
    if not has_canary(bundle):
        if mode == "always":
            raise BundleError(explain_absence(bundle))
        return NO_CANARY if bundle.manifest.imported is None else IMPORTED
    verdict = find_verdict(bundle, runtime.info) if mode == "auto" else None
    if verdict is None or verdict.outcome == "failed":
        at_trial()
        verdict, _ = check(bundle, runtime)
    if verdict.outcome == "failed":
        message = _explain_failure(bundle, runtime.info, verdict)
        runtime.close()
        raise CanaryError(message)
    if verdict.outcome == "passed":
        return ""
    remark = _explain_doubt(runtime.info, verdict)
    warnings.warn(remark, CanaryWarning, stacklevel=3)
    return remark


def explain_absence(bundle: Bundle) -> str:
    """Why there is nothing to check, in one line."""
    if bundle.manifest.imported is None:
        return f"{bundle.path} has no canary to check: export the model again"
    return (
        f"{bundle.path} was imported and has no canary to check, since nothing says what its "
        "weights should give: use `lfm2-deploy verify --against MODEL`"
    )


def has_canary(bundle: Bundle) -> bool:
    """Whether a bundle has one; those made before 0.2 do not."""
    return CANARY in bundle.manifest.files


def check(bundle: Bundle, runtime: Runtime) -> tuple[Verdict, list[Reading]]:
    """Run a bundle's canary now, and remember what it says.

    Raises:
        BundleError: it has none, or a damaged one.
        CanaryError: the device does not get to its end.
    """
    canary = read_canary(bundle.path, bundle.config.vocab_size, bundle.manifest.context_length)
    started = time.perf_counter()
    try:
        readings = run_canary(canary, runtime)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CanaryError(
            f"{_name(runtime.info)} fails while it is checked ({reason}): "
            f"{advise(bundle, runtime.info)}"
        ) from error
    seconds = time.perf_counter() - started
    verdict = judge(canary, readings, runtime.info.arithmetic, seconds)
    found = {**verdict.describe(), "when": int(time.time())}
    remember(KIND, make_key(bundle, runtime.info), found)
    return verdict, readings


def find_coverage(bundle: Bundle) -> Coverage | None:
    """Which of a mixture's experts its canary reaches; None where that is not known.

    Raises:
        BundleError: it has no canary, or a damaged one.
    """
    canary = read_canary(bundle.path, bundle.config.vocab_size, bundle.manifest.context_length)
    return canary.coverage


def find_verdict(bundle: Bundle, info: RuntimeInfo) -> Verdict | None:
    """What is remembered of a bundle where it is loaded now."""
    return _parse(recall(KIND, make_key(bundle, info)))


def list_verdicts(bundle: Bundle) -> list[tuple[Mapping[str, str], Verdict]]:
    """What is remembered of a bundle as it is, on any device, with what it holds for."""
    own = _describe_bundle(bundle)
    found = [
        (key, _parse(finding))
        for key, finding in list_remembered(KIND)
        if own.items() <= key.items()
    ]
    return [(key, verdict) for key, verdict in found if verdict is not None]


def make_key(bundle: Bundle, info: RuntimeInfo) -> dict[str, str]:
    """All that a verdict depends on."""
    return {
        **_describe_bundle(bundle),
        "runtime": info.runtime,
        "device": info.device,
        "driver": info.driver,
    }


def _describe_bundle(bundle: Bundle) -> dict[str, str]:
    """A bundle's files, as they are and as they were when they were last written."""
    files: dict[str, list[str | int]] = {
        name: [record.sha256, _ask_time(bundle.path / name)]
        for name, record in sorted(bundle.manifest.files.items())
        if name.endswith((".onnx", ".data", ".xml", ".bin", ".blob", CANARY))
    }
    digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    return {"bundle": digest}


def _ask_time(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


def _parse(finding: Mapping[str, Any] | None) -> Verdict | None:
    """A remembered verdict, if it is one."""
    if finding is None or finding.get("outcome") not in ("passed", "doubtful", "failed"):
        return None
    try:
        found = {field.name: finding[field.name] for field in fields(Verdict)}
    except KeyError:
        return None
    numbers = {k: float("inf") if found[k] is None else found[k] for k in ("error", "kld")}
    return Verdict(**{**found, **numbers})


def advise(bundle: Bundle, info: RuntimeInfo) -> str:
    """What to do where a bundle does not compute its model on a device."""
    look = f"`lfm2-deploy inspect {quote_path(bundle.path)} --check`, or export again"
    if _is_cpu(info):
        return f"the bundle may be damaged or badly made: {look}"
    return f"update the driver or try --device cpu; if the bundle is damaged, {look}"


def _is_cpu(info: RuntimeInfo) -> bool:
    return info.device.lower().split(" ")[0] == "cpu"


def _name(info: RuntimeInfo) -> str:
    return f"{info.runtime} on {info.device}"


def _explain_failure(bundle: Bundle, info: RuntimeInfo, verdict: Verdict) -> str:
    """One line; `lfm2-deploy check` tells where it begins, and all figures."""
    if verdict.limit < verdict.error < float("inf"):
        seen = f"logits off by {verdict.error:.2g} of their spread, limit {verdict.limit:.2g}"
    else:
        seen = "logits are NaN or infinity"
    what = f"{_name(info)} does not compute this model ({seen})"
    return f"{what}: {advise(bundle, info)}; {OVERRIDE} loads it"


def _explain_doubt(info: RuntimeInfo, verdict: Verdict) -> str:
    driver = "" if _is_cpu(info) else ", and a newer driver may mend it"
    return (
        f"{_name(info)} is less exact than is usual: {verdict.reason}; `lfm2-deploy compare` tells "
        f"what it costs{driver}"
    )
