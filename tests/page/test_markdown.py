"""Answers as DOM nodes: what Markdown means, and that hostile texts are only texts."""

from __future__ import annotations

import re
from typing import Any

from .fake_server import FakeServer, say
from .person import Person

# The text is shown as it grows, too, as an answer is; both ways must give the same nodes.
RENDER = """async (text) => {
  const { MarkdownView } = await import("./markdown.js");
  const whole = new MarkdownView();
  whole.update(text);
  const grown = new MarkdownView();
  for (let end = 1; end <= text.length; end += 1) grown.update(text.slice(0, end));
  return [whole.element.innerHTML, grown.element.innerHTML];
}"""
TIME = """async (texts) => {
  const { MarkdownView } = await import("./markdown.js");
  return texts.map((text) => {
    const view = new MarkdownView();
    document.body.append(view.element);
    const began = performance.now();
    view.update(text);
    view.element.offsetHeight; // lay it out
    view.element.remove();
    return (performance.now() - began) / 1000;
  });
}"""


def _html(person: Person, text: str) -> str:
    whole, grown = person.run(RENDER, text)
    assert whole == grown
    bare = re.sub(r' (?:dir|tabindex|role|aria-label|target|rel|title)="[^"]*"', "", whole)
    return re.sub(r"<button.*?</button>", "", bare)


CASES = [
    ("a\nb\n\nc", "<p>a<br>b</p><p>c</p>"),
    ("**b** *i* __b__ _i_ ~~s~~", "<p><strong>b</strong> <em>i</em> <strong>b</strong> "
     "<em>i</em> <s>s</s></p>"),
    ("***both***", "<p><strong><em>both</em></strong></p>"),
    ("snake_case_name 2 * 3 * 4", "<p>snake_case_name 2 * 3 * 4</p>"),
    ("`a*b*` ``c`d``", "<p><code>a*b*</code> <code>c`d</code></p>"),
    (r"\*plain\*", "<p>*plain*</p>"),
    (r"so \(a^2 * b_1*\) is *i*", r"<p>so \(a^2 * b_1*\) is <em>i</em></p>"),
    ("\\[\na _b_\n\\]", r"<p>\[<br>a _b_<br>\]</p>"),
    (r"\(open and \[ open", "<p>(open and [ open</p>"),
    ("# T\n### U", "<h3>T</h3><h5>U</h5>"),
    ("- a\n- b\n  - c", "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul>"),
    ("3. a\n\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
    ("1. a\n   ```\n   x\n   ```", '<ol><li>a<div class="code"><div class="bar"><span>text'
     "</span></div><pre><code>x</code></pre></div></li></ol>"),
    ("> q\n> r", "<blockquote><p>q<br>r</p></blockquote>"),
    ("---", "<hr>"),
    ("```py\na < b\n", '<div class="code"><div class="bar"><span>py</span></div><pre><code>'
     "a &lt; b\n</code></pre></div>"),
    ("[x](https://a.org/b_(c))", '<p><a href="https://a.org/b_(c)">x</a></p>'),
    ("see https://a.org/x.", '<p>see <a href="https://a.org/x">https://a.org/x</a>.</p>'),
    ("![cat](https://a.org/c.png)", '<p><a href="https://a.org/c.png">cat</a></p>'),
    ("|a|b|\n|-|-:|\n|1|2|", '<div class="wide-table"><table><thead><tr><th class="start">a'
     '</th><th class="end">b</th></tr></thead><tbody><tr><td class="start">1</td>'
     '<td class="end">2</td></tr></tbody></table></div>'),
]  # fmt: skip


def test_markdown_becomes_nodes(person: Person) -> None:
    assert [(text, _html(person, text)) for text, _ in CASES] == CASES


HOSTILE = """<script>window.hit = 1</script> <img src=x onerror="window.hit = 1">

[a](javascript:alert(1)) [b](data:text/html,x) [c](vbscript:x) [d](//evil.example/x)
[e](JaVaScRiPt:alert(1)) [f](https://ok.example/"onmouseover="hit) <a href="javascript:1">g</a>

![i](http://evil.example/track.png) <iframe src="https://evil.example"></iframe>

```"><script>window.hit = 1</script>
</code></pre><script>window.hit = 1</script>
```

| <b>h</b> | [x](javascript:1) |
|---|---|
| <svg onload=hit> | </td><script>1</script> |
"""


def test_hostile_answer_is_only_text(person: Person, server: FakeServer) -> None:
    server.replies.append(say(HOSTILE))
    person.say("<img src=x onerror=1>")
    found = "#thread :is(script, img, iframe, b, [onerror], [onload], [onmouseover])"
    assert person.page.locator(found).count() == 0
    links: list[Any] = person.run(
        "[...document.querySelectorAll('#thread a')].map((a) => [a.href, a.rel, a.target])"
    )
    assert {tuple(rest) for _, *rest in links} == {("noopener noreferrer", "_blank")}
    hosts = [href.split("/")[:3] for href, *_ in links]
    assert hosts == [
        ["https:", "", "ok.example"],
        ["http:", "", "evil.example"],
        ["https:", "", "evil.example"],
    ]
    assert "<script>window.hit = 1</script>" in person.answers[0]
    assert person.run("window.hit") is None
    assert person.run("document.title").startswith("LFM2")


PIECES = ["*", "**a ", "_a *b ", "[", "[a](", "![", "`", "`a``b", "> ", "- ", "        - a\n", "|",
          "|-", "|a|\n|-|\n", "http://", "\\", "~", "~~~ ", "# ", "1. a\n", "*(*a*)*", "<b>", "-- ",
          "\n", "\t", "((((", "[a](http://b.c)", "**a**\n\n"]  # fmt: skip


def test_huge_answers_are_drawn_in_time(person: Person) -> None:
    huge = [piece * (50_000 // len(piece)) + "x`" for piece in PIECES]
    seconds = dict(zip(PIECES, person.run(TIME, huge), strict=True))
    # Below 0.5 s each on two idle cores; read again and again, any of them takes minutes.
    assert {piece: taken for piece, taken in seconds.items() if taken > 5} == {}


def test_copy_button_copies_the_code(make_person: Any, server: FakeServer) -> None:
    person: Person = make_person(permissions=["clipboard-read", "clipboard-write"])
    person.open()
    server.replies.append(say("```js\nlet a = 1;\n```"))
    person.say("Code?")
    person.press("Copy code")
    person.page.locator("button.told").wait_for()
    assert person.run("navigator.clipboard.readText()") == "let a = 1;"


def test_blocks_that_did_not_change_keep_their_nodes(person: Person) -> None:
    same = person.run("""async () => {
      const { MarkdownView } = await import("./markdown.js");
      const view = new MarkdownView();
      view.update("one\\n\\ntwo");
      const first = view.element.firstChild;
      view.update("one\\n\\ntwo and more\\n\\nthree");
      return [first === view.element.firstChild, view.element.children.length];
    }""")
    assert same == [True, 3]
