"""Every sample runs as its docstring says, on the demo model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import lfm2_deploy
from lfm2_deploy.demo import DEMO_MODEL

SAMPLES = Path(__file__).parents[2] / "samples"
# {bundle}, {other} of another precision and {embeds} that takes embeddings are folders; {server}
# is where one is served.
ARGUMENTS = {
    "generate.py": ["{bundle}", "It was"],
    "stream_chat.py": ["{bundle}", "He went up to the city."],
    "batch.py": ["{bundle}", "It was", "The Secretary of the Treasury"],
    "tools.py": ["{bundle}", "How warm is it in Rome?"],
    "structured.py": ["{bundle}", "He sold me two horses."],
    "image_prompt.py": ["{embeds}", "He looked at <image> and said"],
    "compare_devices.py": ["{bundle}@cpu", "{other}@cpu"],
    "langchain_client.py": ["{server}", "How warm is it in Rome?"],
}
# What else they need than the tests themselves.
NEEDS = {"langchain_client.py": "langchain_openai", "desktop/app.py": "PySide6"}
# What they print on these arguments.
PRINTED = {
    "generate.py": r"It was .+",
    "stream_chat.py": r".+\n\[\d+ tokens, (stop|length)\]\n",
    "batch.py": r"It was .+\n\[\d+ tokens, (stop|length)\]\n\nThe Secretary of the Treasury.+",
    "tools.py": (
        r'get_weather\({"city": "(Paris|Rome)"}\) gives {"city": "\1", "celsius": (16|24)}\n.+'
    ),
    "structured.py": r"A sale of [1-9]\d? x (horse|house|ship) to .+, from {.+}\n",
    "image_prompt.py": r"He looked at <image> and said \[16 rows\]:.+\n",
    "compare_devices.py": (
        r"held against .+ at \d{3,} places of a text:\n.+: on .+\n"
        r"  the same next token at \d\d\.\d%\n  KL divergence 0\.\d{5} nats\n"
    ),
}
# These go on until they are stopped, and have tests of their own.
LASTING = {"embed_server.py"}
DESKTOP = {f"desktop/{file.name}" for file in (SAMPLES / "desktop").glob("*.py")}
# A limit that the sample has not, and in which no call ends.
CUT_CALL = """
import runpy, sys
from lfm2_deploy import Engine

generate = Engine.generate
Engine.generate = lambda self, words, **more: generate(self, words, **{**more, "max_new_tokens": 9})
sys.argv[:] = sys.argv[1:]
runpy.run_path(sys.argv[0])
"""


def test_samples_folder_has_arguments_for_each_file() -> None:
    assert {file.name for file in SAMPLES.glob("*.py")} == set(ARGUMENTS) | LASTING


@pytest.mark.parametrize("name", sorted({*ARGUMENTS, *LASTING, *DESKTOP}))
def test_sample_has_at_most_40_lines_and_is_listed(name: str) -> None:
    assert len((SAMPLES / name).read_text().splitlines()) <= 40
    assert f"[{name}]({name})" in (SAMPLES / "README.md").read_text()


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("samples") / "other"
    return lfm2_deploy.export(str(DEMO_MODEL), out, precision="int8").path


@pytest.fixture(scope="session")
def embeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("samples") / "embeds"
    return lfm2_deploy.export(str(DEMO_MODEL), out, inputs_embeds=True, canary=False).path


@pytest.mark.parametrize("name", sorted(set(ARGUMENTS) - set(NEEDS)))
def test_sample_on_demo_model_prints_what_it_is_for(
    name: str, bundle: Path, other: Path, embeds: Path
) -> None:
    places = {"bundle": bundle, "other": other, "embeds": embeds}
    words = [word.format(**places) for word in ARGUMENTS[name]]
    printed = run_sample(name, *words)
    assert re.fullmatch(PRINTED[name], printed, re.DOTALL), printed
    assert len(printed.split()) >= 5


def test_call_that_was_cut_is_told_in_one_line(bundle: Path) -> None:
    words = [word.format(bundle=bundle) for word in ARGUMENTS["tools.py"]]
    command = [sys.executable, "-c", CUT_CALL, str(SAMPLES / "tools.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert re.fullmatch(r"the call was cut \(length\): .+\n", done.stderr), done.stderr


@pytest.mark.parametrize("name", sorted({*ARGUMENTS, *LASTING, "desktop/app.py"}))
def test_sample_without_arguments_says_how_to_run_it(name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"not run: {NEEDS[name]} is not installed")
    done = start_sample(name)
    assert done.returncode == 1
    assert f"python samples/{name} " in done.stderr
    assert "Traceback" not in done.stderr


def test_comparison_that_cannot_run_is_one_line(bundle: Path) -> None:
    done = start_sample("compare_devices.py", f"{bundle}@cpu", f"{bundle}@npu")
    assert done.returncode == 1
    assert "cannot run on 'npu'" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_langchain_calls_a_tool_of_a_served_model(bundle: Path) -> None:
    pytest.importorskip("langchain_openai", reason="not run: langchain-openai is not installed")
    command = ["-m", "lfm2_deploy", "serve", str(bundle), "--port", "0"]
    with run_server(*command) as url:
        name = "langchain_client.py"
        text = run_sample(name, *(word.format(server=url) for word in ARGUMENTS[name]))
    assert re.match(r"get_weather\(\{'city': '(Paris|Rome)'\}\) gives (16|24) degrees\n", text)


def test_embedded_server_has_its_own_paths_and_ours(bundle: Path) -> None:
    with run_server(str(SAMPLES / "embed_server.py"), str(bundle), "0") as url:
        assert len(read(f"{url}/haiku?about=rain").split()) >= 5
        assert json.loads(read(f"{url}/llm/v1/models"))["data"][0]["id"] == bundle.name
        assert "/llm/v1" in json.loads(read(url)).values()
        assert "<html" in read(f"{url}/llm/")


def start_sample(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SAMPLES / name), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def run_sample(name: str, *words: str) -> str:
    done = start_sample(name, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def run_server(*command: str) -> Iterator[str]:
    """A server on a free port; its address, which it tells."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen([sys.executable, *command], **both, text=True, env=environment) as server:
        assert server.stdout is not None
        said = ""
        for line in server.stdout:
            said += line
            if found := re.search(r"http://127\.0\.0\.1:[1-9]\d*", line):
                break
        else:
            pytest.fail(said)
        try:
            wait_for(f"{found[0]}/")
            yield found[0]
        finally:
            server.terminate()
            server.stdout.read()


def wait_for(url: str) -> None:
    """20 s are for a machine that is busy with other things."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            read(url)
        except urllib.error.HTTPError:
            return
        except urllib.error.URLError:
            time.sleep(0.05)
        else:
            return


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.read().decode()
