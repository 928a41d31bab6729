"""Reads a page as a strict reader would."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

from lfm2_deploy.compare.report import render_page
from lfm2_deploy.compare.result import Report

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """A page taken apart; raises AssertionError where its elements do not nest.

    Args:
        html: of the page.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts.append((self.tags[-1][1], data))
        elif self._open and self._open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        """What a person reads, blanks squeezed."""
        return " ".join(" ".join(self.texts).split())

    @property
    def data(self) -> Any:
        """The JSON that is in the page."""
        (found,) = [text for attributes, text in self.scripts if attributes.get("id") == "report"]
        return json.loads(found)

    def count(self, tag: str, **attributes: str) -> int:
        """How many elements have these attributes."""
        return sum(name == tag and attributes.items() <= found.items() for name, found in self.tags)


def read_page(report: Report) -> Page:
    """The page of a report."""
    return Page(render_page(report))
