"""transformers.js in Chromium: a page that imports the package from a local server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfm2_deploy.bundle import Bundle

_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
# Nothing but the page may use the network; containers have no user namespaces for a sandbox.
_FLAGS = ("--no-sandbox", "--disable-background-networking", "--disable-component-update")
_FLAGS += ("--disable-sync", "--no-first-run")
# Without a GPU, Chromium computes WebGPU by SwiftShader, which it carries.
_BY_DEVICE = {
    "wasm": ("--disable-gpu",),
    "webgpu": ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"),
}
_CALL = """async (job) => {
  const library = await import('/node_modules/@huggingface/transformers/dist/transformers.min.js');
  const { CALLS } = await import('/tests/greedy.mjs');
  const { env } = library;
  Object.assign(env, { allowRemoteModels: false, allowLocalModels: true });
  env.localModelPath = '/bundles/';
  // One thread: several spin, and on a busy machine that takes many times as long.
  env.backends.onnx.wasm.numThreads = 1;
  // Else the runtime comes from a CDN.
  env.backends.onnx.wasm.wasmPaths = '/node_modules/onnxruntime-web/dist/';
  return CALLS[job.call](library, job);
}"""
_ADAPTER = """async () => {
  const adapter = await navigator.gpu?.requestAdapter();
  return adapter ? `${adapter.info.vendor} ${adapter.info.architecture}` : null;
}"""


def find_chromium(which: Callable[[str], str | None]) -> str | None:
    """The browser's program, or None."""
    return next(filter(None, map(which, _NAMES)), None)


@dataclass(frozen=True, slots=True)
class BrowserReader:
    """Calls the functions of greedy.mjs in a page.

    Args:
        browser: Chromium, as playwright has it.
        page: one on the local server.
        device: what transformers.js is asked for: "wasm" or "webgpu".
        bundles: the folder that the server shows as /bundles.
        addresses: all that the page asked for.
        url: of the server.
    """

    browser: Any
    page: Any
    device: str
    bundles: Path
    addresses: list[str]
    url: str

    @classmethod
    def open(
        cls, launch: Callable[..., Any], device: str, url: str, bundles: Path
    ) -> BrowserReader:
        """Start a browser and open a page of the server."""
        browser = launch(args=[*_FLAGS, *_BY_DEVICE[device]])
        page, addresses = browser.new_page(), list[str]()
        page.on("request", lambda request: addresses.append(request.url))
        page.goto(url)
        return cls(browser, page, device, bundles, addresses, url)

    def find_adapter(self) -> str | None:
        """Vendor and architecture of the WebGPU adapter, or None where there is none."""
        found: str | None = self.page.evaluate(_ADAPTER)
        return found

    def call(self, name: str, bundle: Bundle, **words: Any) -> Any:
        """What a function of greedy.mjs gives for a bundle."""
        served = self.bundles / bundle.path.name
        if not served.exists():
            served.symlink_to(bundle.path)
        job = {"call": name, "folder": served.name, "device": self.device, **words}
        found = self.page.evaluate(_CALL, job)
        elsewhere = [url for url in self.addresses if not url.startswith((f"{self.url}/", "blob:"))]
        assert elsewhere == []
        return found

    def close(self) -> None:
        """End the browser."""
        self.browser.close()
