"""What mkdocs does besides: pages that lie outside docs/, and search without a network.

Contributing, Architecture and Changelog lie where GitHub looks for them, and samples/ has a page
with its files' code. Links in them are written for their folders; on the site their pages stand
beside those of docs/, and links to samples lead to that page. The plugin `offline` has every
page fetch a script from unpkg.com; assets/worker.js does what it does.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

ROOT = Path(__file__).parents[1]
PAGES = ("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md")
SAMPLES = "samples.md"
_FETCHED, _OWN = "https://unpkg.com/iframe-worker/shim", "assets/worker.js"
# Files beside docs/, which the site has not: their names stay, and on GitHub they are links.
_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[\w./-]+\)")
_SAMPLE = re.compile(r"\]\(\.\./samples/([\w./-]+)\)")
# Files whose code is shown, and what it is coloured as.
_LANGUAGES = {".py": "python", ".js": "js", ".mjs": "js", ".html": "html"}
_LINK = re.compile(r"\]\(((?:docs/)?[\w./-]+\.md)(#[\w-]+)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the root's pages, in lower case as the others."""
    for name in PAGES:
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, name.lower(), content=rewrite_links(text)))
    files.append(File.generated(config, SAMPLES, content=write_samples(ROOT / "samples")))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to samples to their page, and take those out that lead out of the site."""
    in_docs_folder = "/" not in page.file.src_uri
    if not in_docs_folder or page.file.src_uri == SAMPLES:
        return markdown
    return _OUTSIDE.sub(r"\1", _SAMPLE.sub(lambda m: f"]({link_sample(m[1])})", markdown))


def on_post_page(output: str, *, page: Page, config: MkDocsConfig) -> str:
    """Let a page take the script from the site."""
    return output.replace(_FETCHED, get_relative_url(_OWN, page.url))


def on_post_template(output_content: str, *, template_name: str, config: MkDocsConfig) -> str:
    """The same for 404.html, whose paths begin at the root."""
    return output_content.replace(_FETCHED, f"/{_OWN}")


def write_samples(folder: Path) -> str:
    """The page of samples: their README, then the code of each."""
    names = [
        file.relative_to(folder).as_posix()
        for file in sorted(folder.rglob("*"))
        if file.suffix in _LANGUAGES and not {"node_modules", "bundle"} & set(file.parts)
    ]
    text = (folder / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\]\(([\w/]+\.(?:py|m?js|html))\)", lambda m: f"]({link_sample(m[1])})", text)
    parts = [text.replace("](../docs/", "](")]
    for name in sorted(names, key=lambda name: ("/" in name, name)):
        code = (folder / name).read_text(encoding="utf-8")
        language = _LANGUAGES[Path(name).suffix]
        parts.append(f"## {name} {{ #{_name_anchor(name)} }}\n\n```{language}\n{code}```\n")
    return "\n".join(parts)


def link_sample(name: str) -> str:
    """Where a file of samples/ stands on the site."""
    return SAMPLES if name == "README.md" else f"{SAMPLES}#{_name_anchor(name)}"


def _name_anchor(name: str) -> str:
    return re.sub(r"\W", "-", name)


def rewrite_links(text: str) -> str:
    """Links to docs/ and to the root's pages, as seen from docs/."""

    def point(match: re.Match[str]) -> str:
        target = match[1].removeprefix("docs/")
        moved = target.lower() if target in PAGES else target
        return f"]({'index.md' if target == 'README.md' else moved}{match[2] or ''})"

    return _LINK.sub(point, text)
