"""Pages of the site that lie in the root, where GitHub looks for them.

mkdocs calls `on_files`. Links of these files are written for the root; on the site their pages
stand beside those of docs/.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = ("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md")
_LINK = re.compile(r"\]\(((?:docs/)?[\w./-]+\.md)(#[\w-]+)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the root's pages, in lower case as the others."""
    for name in PAGES:
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, name.lower(), content=rewrite_links(text)))
    return files


def rewrite_links(text: str) -> str:
    """Links to docs/ and to the root's pages, as seen from docs/."""

    def point(match: re.Match[str]) -> str:
        target = match[1].removeprefix("docs/")
        moved = target.lower() if target in PAGES else target
        return f"]({'index.md' if target == 'README.md' else moved}{match[2] or ''})"

    return _LINK.sub(point, text)
