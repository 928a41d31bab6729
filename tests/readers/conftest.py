"""Bundles for other programs, and those programs; what cannot be had here is "NOT RUN"."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from lfm2_deploy import export
from lfm2_deploy.bundle import Bundle
from lfm2_deploy.demo import DEMO_MODEL

from .browser_reader import BrowserReader, find_chromium
from .js_package import NotRunError, install_js_package
from .local_site import serve_folders
from .node_reader import NodeReader

JsBundleOf = Callable[[str, str], Bundle]


@pytest.fixture(scope="session")
def js_bundle_of(
    checkpoints: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> JsBundleOf:
    """A bundle that transformers.js reads, given "demo", "dense" or "moe" and a precision."""
    root = tmp_path_factory.mktemp("js-bundles")
    sources = {**checkpoints, "demo": DEMO_MODEL}

    @functools.cache
    def make(kind: str, precision: str) -> Bundle:
        place = root / f"{kind}-{precision}"
        return export(str(sources[kind]), place, precision=precision, io=["transformersjs"])

    return make


@pytest.fixture(scope="session")
def js_package() -> Path:
    """The folder whose node_modules hold transformers.js."""
    try:
        return install_js_package()
    except NotRunError as why:
        pytest.skip(f"NOT RUN: {why}")


@pytest.fixture(scope="session")
def node(js_package: Path) -> NodeReader:
    """transformers.js in Node."""
    return NodeReader(js_package)


@pytest.fixture(scope="module")
def site(js_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address of a server that has the package, and the folder whose bundles it serves."""
    bundles = tmp_path_factory.mktemp("served")
    folders = {
        "bundles": bundles,
        "node_modules": js_package / "node_modules",
        "tests": Path(__file__).parent,
    }
    with serve_folders(folders) as address:
        yield address, bundles


# Playwright keeps an event loop in the main thread while it runs, which tests elsewhere that
# call asyncio.run cannot bear: so it ends with each file.
@pytest.fixture(scope="module")
def chromium(request: Any) -> Iterator[Callable[..., Any]]:
    """Starts Chromium without a window, with further flags."""
    why = "NOT RUN: pip install playwright"
    playwright = pytest.importorskip("playwright.sync_api", reason=why)
    program = find_chromium(shutil.which)
    if program is None:
        pytest.skip("NOT RUN: there is no Chromium here; on Debian apt-get install chromium")
    with playwright.sync_playwright() as running:
        yield functools.partial(running.chromium.launch, executable_path=program)


@pytest.fixture(scope="module")
def browser_with(
    site: tuple[str, Path], chromium: Callable[..., Any]
) -> Iterator[Callable[..., BrowserReader]]:
    """transformers.js in Chromium, on a device."""
    readers: dict[str, BrowserReader] = {}

    def open_reader(device: str) -> BrowserReader:
        if device not in readers:
            readers[device] = BrowserReader.open(chromium, device, *site)
        return readers[device]

    yield open_reader
    for reader in readers.values():
        reader.close()
