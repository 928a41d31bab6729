"""The page as a whole: nothing from outside, nothing hostile, all figures in it."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from lfm2_deploy.compare.report import render_page, write_page
from lfm2_deploy.compare.result_json import describe, read_report

from .made_up import make_hostile, make_report
from .pages import Page, read_page

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"' onload=alert(1) x='",
    "<!-- <script>",
    "{{ 7 * 7 }} {% raw %}",
    "]]></svg></title></style><b>",
    "\x00\x08\x1b[31m\x7f",
    "\u202eright to left\u2066\u200b\ufeff",
    "half a pair: \ud83d, and \udcff",
    "שלום عليكم 你好 é 🙂",
    "W" * 5000,
]


def test_page_holds_every_section_of_four_subjects() -> None:
    page = read_page(make_report())
    ids = [
        attributes["id"] for tag, attributes in page.tags if tag == "section" and "id" in attributes
    ]
    assert ids == ["figures", "divergence", "states", "worst", "greedy", "cost", "origin"]
    for name in ("cpu-int8", "cpu-int4", "npu-int4", "directml-int4"):
        assert name in page.text
    # Four of KL divergence, two of states, one of rounding.
    assert page.count("figure") == 7


def test_page_refers_to_nothing_outside() -> None:
    page = read_page(make_report())
    loading = {"src", "href", "srcset", "data", "action", "poster", "background"}
    assert not [(tag, a) for tag, a in page.tags if loading & a.keys()]
    assert not {"link", "img", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    assert "url(" not in page.html
    assert "@import" not in page.html
    assert not re.search(r"https?://", page.html)


def test_policy_allows_the_one_script_and_nothing_else() -> None:
    page = read_page(make_report())
    policy = next(
        a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"
    )
    ours = [text for attributes, text in page.scripts if "type" not in attributes]
    assert len(ours) == 1
    digest = base64.b64encode(hashlib.sha256(ours[0].encode()).digest()).decode()
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in policy


def test_every_figure_is_in_the_page_as_json() -> None:
    report = make_report(("fp32", "int4", "npu", "broken", "failed"))
    data = read_page(report).data
    assert data == json.loads(json.dumps(describe(report)))
    assert read_report(data) == report


def test_page_tells_how_to_read_its_json(tmp_path: Path) -> None:
    """The lines of Python in the page are run as they stand there."""
    page = tmp_path / "report.html"
    write_page(make_report(("int4",)), page)
    (shown,) = re.findall(r"import json, re\n.*?(?=</code>)", page.read_text("utf-8"), re.S)
    code = shown.replace("&lt;", "<").replace("&gt;", ">").replace("report.html", page.as_posix())
    names: dict[str, object] = {}
    exec(code, names)
    assert names["report"] == json.loads(json.dumps(describe(make_report(("int4",)))))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_changes_no_element_and_is_encodable(text: str) -> None:
    html = render_page(make_hostile(text))
    html.encode("utf-8")
    plain, hostile = read_page(make_hostile("plain")), Page(html)
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    names = [sorted(a) for _, a in hostile.tags]
    assert names == [sorted(a) for _, a in plain.tags]
    assert hostile.data["subjects"][0]["worst"][0]["context"] == text


def test_nothing_invisible_is_printed() -> None:
    html = render_page(make_hostile("\x00\x1b\u202e\u2066\u200b\ufeff\ud800"))
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff]", html
    )
    assert "⟨U+202E⟩" in html
    assert "⟨U+D800⟩" in html


@pytest.mark.parametrize(
    ("kinds", "most"),
    [(("int8", "int4", "npu", "broken"), 300_000), (("int4",), 120_000)],
)
def test_page_is_small_enough_to_attach(kinds: tuple[str, ...], most: int) -> None:
    assert len(render_page(make_report(kinds)).encode()) < most


def test_page_is_the_same_for_the_same_report() -> None:
    assert render_page(make_report()) == render_page(make_report())


@pytest.mark.parametrize(
    "kinds", [("failed",), ("failed", "failed"), ("npu",), ("int4",) * 12, ("fp32", "failed")]
)
def test_page_of_any_subjects_can_be_read(kinds: tuple[str, ...]) -> None:
    page = read_page(make_report(kinds))
    assert "nan%" not in page.html
    assert ("the device was lost" in page.text) == ("failed" in kinds)


def test_page_of_one_window_has_no_chart_by_window() -> None:
    report = make_report(("int4",))
    assert "By window of the text" in read_page(report).text
    one = replace(report, protocol=replace(report.protocol, windows=1))
    assert "By window of the text" not in read_page(one).text


def test_existing_page_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text("old" * 100_000)
    write_page(make_report(("int4",)), file)
    assert file.read_text(encoding="utf-8") == render_page(make_report(("int4",)))


def find_chromium() -> str | None:
    return next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )


@pytest.mark.skipif(find_chromium() is None, reason="not run: there is no Chromium here")
def test_browser_runs_the_script_and_reads_hostile_text_as_text(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    write_page(make_hostile("</script><script>document.title='broken into'</script>"), file)
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'user'}",
    ]
    command = [find_chromium() or "", *options, "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    dom = Page(done.stdout.replace("<!DOCTYPE html>", "<!doctype html>"))
    # The script made headings into buttons and showed the one that saves.
    assert dom.count("button") == len([a for t, a in dom.tags if t == "th" and "title" in a]) + 1
    assert not [a for t, a in dom.tags if t == "button" and "hidden" in a]
    assert "<title>broken into" not in done.stdout


def test_page_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "report.html"
    file.write_text("old")

    def fill_disk(path: Path, data: bytes) -> int:
        with path.open("wb") as half:
            half.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill_disk)
    with pytest.raises(OSError, match="No space left") as caught:
        write_page(make_report(), file)
    assert caught.value.filename == str(file)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_speeds_say_how_often_and_beside_what_they_were_measured() -> None:
    report = make_report()
    page = render_page(report)
    assert "; medians of 3 rounds." in page
    assert "cores busy" not in page.partition('id="report"')[0]
    once = tuple(
        replace(one, cost=one.cost and replace(one.cost, rounds=1)) for one in report.subjects
    )
    page = render_page(replace(report, subjects=once, busy_cores=1.5))
    assert "; measured once. Note: other programs kept 1.5 cores busy" in page
    assert "medians" not in page.partition('id="cost"')[2].partition("</section>")[0]
