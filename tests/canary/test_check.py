from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lfm2_deploy.bundle import CANARY, Bundle
from lfm2_deploy.canary import check
from lfm2_deploy.canary.check import CanaryWarning, choose_mode, guard
from lfm2_deploy.contracts import FloatArray
from lfm2_deploy.errors import BundleError, CanaryError, GenerationError
from lfm2_deploy.words import quote_path
from runtimes.fake import FakeRuntime

MakeRuntime = Callable[..., FakeRuntime]


def _garble(history: tuple[int, ...], logits: FloatArray) -> FloatArray:
    return logits[::-1].copy()


def _blur(history: tuple[int, ...], logits: FloatArray) -> FloatArray:
    rng = np.random.default_rng(history)
    return logits + (0.03 * rng.standard_normal(len(logits))).astype(np.float32)


def test_healthy_device_is_checked_once_and_remembered(
    bundle: Bundle, make_runtime: MakeRuntime, cache: Path
) -> None:
    first, second = make_runtime(), make_runtime()
    assert guard(bundle, first, "auto") == ""
    assert first.sessions
    assert guard(bundle, second, "auto") == ""
    assert second.sessions == []
    assert not second.closed


@pytest.mark.parametrize("what", ["driver", "device", "files", "package"])
def test_change_of_what_a_verdict_depends_on_is_checked_again(
    bundle: Bundle,
    make_runtime: MakeRuntime,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    guard(bundle, make_runtime(), "auto")
    later = make_runtime(driver="fake 1.1") if what == "driver" else make_runtime()
    if what == "device":
        later._info = replace(later.info, device="elsewhere")
    if what == "files":
        text = (bundle.path / CANARY).read_bytes()
        (bundle.path / CANARY).unlink()
        (bundle.path / CANARY).write_bytes(text)
    if what == "package":
        monkeypatch.setattr("lfm2_deploy.remember.version", lambda name: "99.0")
    guard(bundle, later, "auto")
    assert later.sessions


def test_always_checks_again_and_off_never(
    bundle: Bundle, make_runtime: MakeRuntime, cache: Path
) -> None:
    guard(bundle, make_runtime(), "auto")
    again, never = make_runtime(), make_runtime(_garble)
    guard(bundle, again, "always")
    assert again.sessions
    assert guard(bundle, never, "off") == ""
    assert never.sessions == []


def test_garbage_is_refused_in_one_line_that_says_what_to_do(
    bundle: Bundle, make_runtime: MakeRuntime, cache: Path
) -> None:
    runtime = make_runtime(_garble)
    with pytest.raises(CanaryError) as caught:
        guard(bundle, runtime, "auto")
    message = str(caught.value)
    for word in (
        "fake on nowhere does not compute this model",
        "limit 0.0",
        "update the driver",
        "--device cpu",
        f"lfm2-deploy inspect {quote_path(bundle.path)} --check",
        "export again",
        "LFM2_DEPLOY_CANARY=off",
    ):
        assert word in message
    assert "\n" not in message
    assert len(message.replace(str(bundle.path), "")) < 250
    assert runtime.closed


def test_processor_is_not_told_to_update_a_driver_or_to_go_to_the_processor(
    bundle: Bundle, make_runtime: MakeRuntime, cache: Path
) -> None:
    runtime = make_runtime(_garble, driver="A Processor (avx2 avx512_vnni)")
    runtime._info = replace(runtime.info, device="cpu")
    with pytest.raises(CanaryError, match="may be damaged or badly made") as caught:
        guard(bundle, runtime, "auto")
    message = str(caught.value)
    for word in ("driver", "--device", "avx2"):
        assert word not in message
    assert len(message.replace(str(bundle.path), "")) < 250


def test_logits_that_are_no_numbers_are_named_so(
    bundle: Bundle, make_runtime: MakeRuntime, cache: Path
) -> None:
    def spoil(history: tuple[int, ...], logits: FloatArray) -> FloatArray:
        return np.full_like(logits, np.nan)

    with pytest.raises(CanaryError, match="logits are NaN or infinity"):
        guard(bundle, make_runtime(spoil), "auto")


def test_device_that_failed_is_tried_again_at_every_load(
    bundle: Bundle, make_runtime: MakeRuntime, cache: Path
) -> None:
    with pytest.raises(CanaryError):
        guard(bundle, make_runtime(_garble), "auto")
    assert guard(bundle, make_runtime(), "auto") == ""


def test_doubtful_device_is_warned_of_at_every_load_and_checked_once(
    bundle: Bundle, make_runtime: MakeRuntime, cache: Path
) -> None:
    for number in range(2):
        runtime = make_runtime(_blur)
        with pytest.warns(CanaryWarning, match="less exact than is usual"):
            remark = guard(bundle, runtime, "auto")
        assert "fake on nowhere" in remark
        assert bool(runtime.sessions) is (number == 0)


def test_bundle_without_canary_loads_with_a_remark(
    bundle: Bundle, make_runtime: MakeRuntime, cache: Path
) -> None:
    files = {k: v for k, v in bundle.manifest.files.items() if k != CANARY}
    old = replace(bundle, manifest=replace(bundle.manifest, files=files))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "has no canary" in guard(old, make_runtime(), "auto")
    with pytest.raises(BundleError, match="no canary to check"):
        guard(old, make_runtime(), "always")


def test_device_that_breaks_off_is_named(
    bundle: Bundle, make_runtime: MakeRuntime, cache: Path
) -> None:
    def fail(history: tuple[int, ...], logits: FloatArray) -> FloatArray:
        raise RuntimeError("the\ndevice is lost")

    with pytest.raises(CanaryError, match=r"checked \(the device is lost\): update"):
        guard(bundle, make_runtime(fail), "auto")


def test_damaged_memory_is_as_good_as_none(
    bundle: Bundle, make_runtime: MakeRuntime, cache: Path
) -> None:
    guard(bundle, make_runtime(), "auto")
    (file,) = cache.glob("**/canary/*.json")
    for text in ("{", '{"key": 1, "finding": {}}', file.read_text().replace("passed", "fine")):
        file.write_text(text)
        later = make_runtime()
        assert guard(bundle, later, "auto") == ""
        assert later.sessions, text


def test_verdicts_of_a_bundle_are_listed_with_their_devices(
    bundle: Bundle, make_runtime: MakeRuntime, cache: Path
) -> None:
    for driver in ("fake 1.0", "fake 1.1"):
        guard(bundle, make_runtime(driver=driver), "auto")
    found = check.list_verdicts(bundle)
    assert {key["driver"] for key, _ in found} == {"fake 1.0", "fake 1.1"}
    assert {verdict.outcome for _, verdict in found} == {"passed"}


def test_mode_comes_from_the_caller_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LFM2_DEPLOY_CANARY", "Always")
    assert choose_mode(None) == "always"
    assert choose_mode("off") == "off"
    monkeypatch.delenv("LFM2_DEPLOY_CANARY")
    assert choose_mode(None) == "auto"
    with pytest.raises(GenerationError, match="canary is 'never': expected one of auto, always, "):
        choose_mode("never")
    for word in (True, False, 1, ""):
        with pytest.raises(GenerationError, match="expected one of auto, always, off"):
            choose_mode(word)  # type: ignore[arg-type]
