"""`lfm2-deploy serve`: a program that ends well, and what it refuses to begin."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

PATIENCE = 60


@contextmanager
def started(
    program: Sequence[str], *args: object, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The program once it is ready, and the URL that it told."""
    process = subprocess.Popen(
        [*program, "serve", *map(str, args), "--port", "0", "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("ready: "), process.communicate()[1]
        yield process, line.partition("API at ")[2].partition("/v1")[0]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no such signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_program_well(
    program: Sequence[str], bundle: Path, number: signal.Signals
) -> None:
    with started(program, bundle) as (process, url):
        names = [model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]]
        assert "lfm2-demo-9m" in names
        body = {"messages": [{"role": "user", "content": "a secret"}], "max_tokens": 4}
        assert httpx.post(f"{url}/v1/chat/completions", json=body).status_code == 200
        process.send_signal(number)
        _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert "POST /v1/chat/completions 200" in told
    assert "secret" not in told
    assert "ending" not in told  # nothing was waited for
    assert "Traceback" not in told


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no such signals")
def test_second_signal_ends_at_once(program: Sequence[str], bundle: Path) -> None:
    with started(program, bundle, "--grace", "50") as (process, url):
        body = {"prompt": "x", "stream": True, "ignore_eos": True, "max_tokens": 2000}
        with httpx.stream("POST", f"{url}/v1/completions", json=body) as reply:
            lines = reply.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            assert process.stderr is not None
            while not (told := process.stderr.readline()).startswith("ending: "):
                assert told, "it did not say what it waits for"
            assert told == "ending: 1 answer runs, up to 50 s; Ctrl-C again ends at once\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0


def test_key_of_the_environment_or_a_file_is_asked_for(
    program: Sequence[str], bundle: Path, tmp_path: Path
) -> None:
    file = tmp_path / "keys.txt"
    file.write_text("# ours\nfrom-file\n")
    args = (bundle, "--api-key-file", file, "--log", "off", "--name", "mine")
    with started(program, *args, LFM2_DEPLOY_API_KEY="from-env") as (_, url):
        assert httpx.get(f"{url}/v1/models").status_code == 401
        for key in ("from-file", "from-env"):
            found = httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"})
            assert found.json()["data"][0]["id"] == "mine"


def test_damaged_bundle_ends_with_one_line(program: Sequence[str], copied_bundle: Path) -> None:
    # Its manifest is whole and so are the sizes, so that only loading finds it.
    weights = copied_bundle / "model.onnx.data"
    data = bytearray(weights.read_bytes())
    data[: 2**20] = bytes(2**20)
    weights.write_bytes(data)
    done = subprocess.run(
        [*program, "serve", str(copied_bundle), "--port", "0", "--canary", "always"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--host", "0.0.0.0"), ("0.0.0.0", "--api-key-file", "--without-key")),
        (("--precision", "int8"), ("in int4", "--precision")),
        (("--target", "npu"), ("target cpu", "npu")),
        (("--api-key", "a b"), ("key", "ASCII")),
        (("--host", "203.0.113.7", "--without-key"), ("none of this computer's", "--host 127.")),
        (("--host", "no-such.invalid", "--without-key"), ("none of this computer's", "--host")),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(
    run: Callable, bundle: Path, args: Sequence[str], words: Sequence[str]
) -> None:
    result = run("serve", bundle, *args)
    assert result.exit_code == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert all(word in errors[0] for word in words)
    assert result.stdout == ""


def test_empty_key_file_is_refused(run: Callable, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("\n# none\n")
    result = run("serve", bundle, "--api-key-file", tmp_path / "keys")
    assert result.exit_code == 1
    assert "holds no key" in result.stderr


def test_what_serving_lacks_is_told_with_how_to_get_it(
    run: Callable, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lfm2_deploy import registry

    lacking = replace(registry.SERVER, needs=("no_such_package", "nor_this_one"))
    monkeypatch.setattr(registry, "SERVER", lacking)
    told = run("serve", bundle).stderr
    assert "serving needs no_such_package, nor_this_one, which are not installed: pip" in told
    assert "(in a clone: '.[serve]')" in told


def test_address_for_other_computers_is_told(program: Sequence[str], bundle: Path) -> None:
    from lfm2_deploy.server.host import find_lan_address

    address = find_lan_address()
    with started(program, bundle, "--host", "0.0.0.0", "--without-key") as (process, url):
        process.terminate()
        told = process.communicate(timeout=PATIENCE)[1]
    port = url.rpartition(":")[2]
    line = f"http://{address}:{port}, and by a name only with --allow-host NAME"
    assert (line in told) == bool(address)


def test_port_in_use_is_refused(run: Callable, bundle: Path) -> None:
    from lfm2_deploy.server.host import listen

    taken = listen("127.0.0.1", 0)
    taken.listen()
    with taken:
        result = run("serve", bundle, "--port", taken.getsockname()[1])
    assert result.exit_code == 1
    assert "another --port" in result.stderr


def test_what_is_no_bundle_is_told_how_to_become_one(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LFM2_DEPLOY_STORE", str(tmp_path / "store"))
    assert "--target auto" in run("serve", tmp_path).stderr
    assert "--target auto" in run("serve", "synthetic:tiny-dense").stderr
    assert "store" in run("serve", "no-such-model").stderr
    for model in ("somebody/LFM2-tiny", "demo"):
        told = run("serve", model).stderr
        assert f"`lfm2-deploy pull {model}` gets it" in told
        assert "or --target auto" in told


def test_model_is_exported_once_and_then_found(program: Sequence[str], tmp_path: Path) -> None:
    from lfm2_deploy.demo import DEMO_MODEL

    store = {"LFM2_DEPLOY_STORE": str(tmp_path / "store")}
    for told in ("exported", "found"):
        with started(program, DEMO_MODEL, "--target", "cpu", **store) as (process, url):
            assert httpx.get(f"{url}/health").json()["status"] == "ready"
            process.terminate()
            notes = process.communicate(timeout=PATIENCE)[1]
        assert f"{told} lfm2-demo-9m-cpu-int4 in the store" in notes


def test_unloaded_model_of_a_server_is_not_removed(
    program: Sequence[str], run: Callable, bundle: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("LFM2_DEPLOY_STORE", str(tmp_path / "store"))
    assert run("pull", bundle, "--name", "mine").exit_code == 0
    with started(program, "mine", "--idle-unload", "1") as (_, url):
        end = time.monotonic() + PATIENCE
        while "model_loaded 0" not in httpx.get(f"{url}/metrics").text:
            assert time.monotonic() < end, "it was not unloaded"
            time.sleep(0.1)
        assert "mine is loaded by a process" in run("remove", "mine").stderr
        body = {"prompt": "x", "max_tokens": 1, "model": "mine"}
        assert httpx.post(f"{url}/v1/completions", json=body).status_code == 200
    assert run("remove", "mine").exit_code == 0


def test_demo_is_what_pull_takes_for_it_and_a_name_of_the_model(
    program: Sequence[str], tmp_path: Path
) -> None:
    store = {"LFM2_DEPLOY_STORE": str(tmp_path / "store")}
    for given in ("demo", "demo-cpu-int4"):
        with started(program, given, "--target", "auto", **store) as (_, url):
            names = [model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]]
        assert names == ["lfm2-demo-9m", "demo-cpu-int4", "demo"]


def test_auto_with_a_bundle_sees_to_its_device(program: Sequence[str], bundle: Path) -> None:
    with started(program, bundle, "--target", "auto") as (_, url):
        assert httpx.get(f"{url}/health").status_code == 200
