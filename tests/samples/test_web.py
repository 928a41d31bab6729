"""The web sample: served as its README says, in Chromium; its script in Node."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lfm2_deploy
from lfm2_deploy.demo import DEMO_MODEL

from ..readers.browser_reader import find_chromium  # noqa: TID252
from ..readers.js_package import NotRunError, install_js_package  # noqa: TID252
from .test_samples import SAMPLES, run_server

WEB = SAMPLES / "web"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sample with its package and a bundle beside it."""
    try:
        package = install_js_package()
    except NotRunError as why:
        pytest.skip(f"NOT RUN: {why}")
    place = tmp_path_factory.mktemp("sample") / "web"
    shutil.copytree(WEB, place, ignore=shutil.ignore_patterns("node_modules", "bundle"))
    (place / "node_modules").symlink_to(package / "node_modules")
    lfm2_deploy.export(str(DEMO_MODEL), place / "bundle", precision="int4", io=["transformersjs"])
    return place


@pytest.fixture
def page(folder: Path) -> Iterator[Any]:
    """The sample, opened in Chromium without a window."""
    why = "NOT RUN: pip install playwright"
    playwright = pytest.importorskip("playwright.sync_api", reason=why)
    program = find_chromium(shutil.which)
    if program is None:
        pytest.skip("NOT RUN: there is no Chromium here; on Debian apt-get install chromium")
    server = ["-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder)]
    with run_server(*server) as url, playwright.sync_playwright() as running:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = running.chromium.launch(executable_path=program, args=flags)
        opened, asked = browser.new_page(color_scheme="light"), list[str]()
        opened.on("request", lambda request: asked.append(request.url))
        opened.goto(url)
        yield opened
        browser.close()
    assert [address for address in asked if not address.startswith((url, "blob:"))] == []


def test_page_answers_and_says_how_fast(page: Any) -> None:
    page.get_by_role("button").click()
    page.wait_for_function("document.querySelector('#state').textContent.includes('tokens on')")
    state = page.locator("#state").inner_text()
    assert re.fullmatch(r"[1-9]\d* tokens on wasm, \d+\.\d a second", state)
    assert len(page.locator("#answer").inner_text().split()) >= 3
    assert page.get_by_role("button").is_enabled()


def test_device_that_is_not_there_is_told_and_the_page_goes_on(page: Any) -> None:
    page.get_by_label("Device").select_option("webgpu")
    page.get_by_role("button").click()
    page.wait_for_function("document.querySelector('#state').textContent.includes('not work')")
    assert page.get_by_role("button").is_enabled()


def test_device_that_computes_long_prompts_wrongly_is_refused(folder: Path) -> None:
    # A model that says of every token how long the prompt is, and one that does not.
    script = """
      import { checkPrompts } from './check.js';
      class Tensor { constructor(type, data, dims) { this.dims = dims; } }
      const model = (fault) => async ({ input_ids: { dims: [, length] } }) => ({
        logits: { tolist: () => [Array(length).fill([1, -8, 4 + fault * length])] },
      });
      await checkPrompts(model(0), Tensor);
      for (const fault of [0.1, NaN]) {
        const checked = checkPrompts(model(fault), Tensor);
        await checked.then(() => process.exit(2), (error) => console.log(error.message));
      }
    """
    command = ["node", "--input-type=module", "-e", script]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("computes long prompts wrongly; choose WebAssembly") == 2


def test_check_lets_a_right_device_pass(folder: Path) -> None:
    script = """
      import { AutoModelForCausalLM, env, Tensor } from '@huggingface/transformers';
      import { checkPrompts } from './check.js';
      env.allowRemoteModels = false;
      const model = await AutoModelForCausalLM.from_pretrained(process.cwd() + '/bundle');
      await checkPrompts(model, Tensor);
    """
    command = ["node", "--input-type=module", "-e", script]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_script_in_node_continues_a_prompt(folder: Path) -> None:
    done = run_script(folder, str(folder / "bundle"), "It was")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"It was .+\n", done.stdout, re.DOTALL)
    assert len(done.stdout.split()) >= 5


def test_script_without_arguments_says_how_to_run_it(folder: Path) -> None:
    done = run_script(folder)
    assert done.returncode == 1
    assert done.stderr.startswith("usage: node samples/web/generate.mjs BUNDLE")


def test_web_sample_has_at_most_40_lines_a_file_and_the_tested_package() -> None:
    for file in (*WEB.glob("*.js"), *WEB.glob("*.mjs"), WEB / "index.html"):
        assert len(file.read_text().splitlines()) <= 40
    pinned = '"@huggingface/transformers": "4.3.2"'
    for package in (WEB, Path(__file__).parents[1] / "readers"):
        assert pinned in (package / "package.json").read_text()


def run_script(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = ["node", str(folder / "generate.mjs"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
