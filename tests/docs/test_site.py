"""The site builds, needs no network, and every link leads somewhere."""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .pages import ROOT, list_pages, load_script

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
# What a browser fetches by itself: links that a reader follows are no assets.
_STYLE_ASSET = re.compile(r"""(?:\burl\(|@import)\s*["']?\s*([^"')\s;]+)""")
_ASSET = re.compile(r'<(?:script|img|iframe)[^>]*\ssrc="([^"]*)"|<link[^>]*\shref="([^"]*)"')


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site, of a copy: mkdocs warns of nothing, or this fails."""
    pytest.importorskip("material")
    folder = tmp_path_factory.mktemp("site")
    for name in ("docs", "samples", "scripts"):
        shutil.copytree(ROOT / name, folder / name)
    for file in (*ROOT.glob("*.md"), ROOT / "mkdocs.yml"):
        shutil.copy(file, folder)
    done = subprocess.run(
        # Not --quiet: warnings that are not shown are not counted.
        [sys.executable, "-m", "mkdocs", "build", "--strict"],
        cwd=folder,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\n(see nav in mkdocs.yml)"
    return folder / "site"


def test_root_pages_are_on_the_site(site: Path) -> None:
    for name in ("architecture", "contributing", "changelog"):
        assert "<h1" in (site / f"{name}.html").read_text(encoding="utf-8")


def test_pages_fetch_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    fetched = {
        asset
        for page in pages
        for found in _ASSET.findall(page.read_text(encoding="utf-8"))
        for asset in found
    }
    styles = [file.read_text(encoding="utf-8") for file in site.rglob("*.css")]
    fetched |= {asset for text in styles for asset in _STYLE_ASSET.findall(text)}
    assert len(pages) > 20
    assert len(styles) >= 2
    assert "assets/worker.js" in fetched
    assert not [asset for asset in fetched if re.match(r"(\w+:)?//", asset)]


@pytest.mark.parametrize("name", [file.name for file in (ROOT / "samples").rglob("*.py")])
def test_code_of_each_sample_is_on_the_site(site: Path, name: str) -> None:
    page = (site / "samples.html").read_text(encoding="utf-8")
    file = next((ROOT / "samples").rglob(name))
    anchor = re.sub(r"\W", "-", file.relative_to(ROOT / "samples").as_posix())
    assert f'id="{anchor}"' in page
    assert f'href="#{anchor}"' in page, "samples/README.md links to each"
    code = html.unescape(re.sub(r"<[^>]+>", "", page))
    assert file.read_text(encoding="utf-8").strip() in code


def test_guides_lead_to_samples(site: Path) -> None:
    anchors = {"tools": "tools-py", "desktop": "desktop-app-py", "embed": "embed_server-py"}
    for page, anchor in anchors.items():
        text = (site / f"{page}.html").read_text(encoding="utf-8")
        assert f'href="samples.html#{anchor}"' in text


def test_search_works_in_a_folder(site: Path) -> None:
    # A page of a folder may load scripts, and may not fetch JSON.
    assert (site / "search" / "search_index.js").read_text(encoding="utf-8").startswith("var ")
    assert "commands/chat.html" in (site / "search" / "search_index.js").read_text(encoding="utf-8")


def exists(page: Path, target: str) -> bool:
    """Whether a relative link leads somewhere: in the tree, or to a page the site adds."""
    place = (page.parent / target.partition("#")[0]).resolve()
    added = {ROOT / "docs" / name.lower() for name in load_script("mkdocs_hooks").PAGES}
    return place.exists() or place in added


@pytest.mark.parametrize("page", list_pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    pytest.importorskip("mkdocs")
    text = _CODE.sub("", page.read_text(encoding="utf-8"))
    targets = [one for one in _LINK.findall(text) if not re.match(r"\w+:|#", one)]
    assert [one for one in targets if not exists(page, one)] == []


def test_style_that_fetches_is_seen() -> None:
    text = "@import 'http://a/b.css'; a{background:url( \"//c/d.png\" )} b{mask:url(e.svg)}"
    assert _STYLE_ASSET.findall(text) == ["http://a/b.css", "//c/d.png", "e.svg"]


def test_links_of_root_pages_are_rewritten_for_the_site() -> None:
    pytest.importorskip("mkdocs")
    rewrite = load_script("mkdocs_hooks").rewrite_links
    assert rewrite("[a](docs/npu.md#x), [b](CONTRIBUTING.md)") == (
        "[a](npu.md#x), [b](contributing.md)"
    )
    assert rewrite("[c](README.md) [d](https://a.b/c.md)") == "[c](index.md) [d](https://a.b/c.md)"
