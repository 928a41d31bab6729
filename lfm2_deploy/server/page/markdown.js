// Markdown as DOM nodes, and again as it grows: blocks that did not change keep their nodes.

import { splitBlocks } from "./blocks.js";
import { copyText, el, iconButton } from "./dom.js";
import { inlineNodes } from "./inline.js";

const DEEPEST = 8; // lists and quotes within each other

/** A part of the page that shows a text, which may grow. */
export class MarkdownView {
  constructor() {
    this.element = el("div", { class: "markdown" });
    this.shown = []; // the lines of each block
  }

  /** Show this text from now on. */
  update(text) {
    const blocks = splitBlocks(text);
    let same = 0;
    while (same < this.shown.length && this.shown[same] === blocks[same]?.raw) same += 1;
    while (this.element.childNodes.length > same) this.element.lastChild.remove();
    for (const block of blocks.slice(same)) this.element.append(render(block, 0));
    this.shown = blocks.map((block) => block.raw);
  }
}

function render(block, depth) {
  switch (block.kind) {
    case "code":
      return renderCode(block);
    case "heading":
      // The page's own headings stand above those of an answer.
      return el(`h${Math.min(block.level + 2, 6)}`, { dir: "auto" }, inlineNodes(block.text));
    case "rule":
      return el("hr");
    case "quote":
      return el("blockquote", {}, renderInside(block.text, depth));
    case "list":
      return renderList(block, depth);
    case "table":
      return renderTable(block);
    default:
      return el("p", { dir: "auto" }, inlineNodes(block.text));
  }
}

function renderInside(text, depth) {
  const nodes = document.createDocumentFragment();
  if (depth >= DEEPEST) nodes.append(el("p", { text }));
  else for (const block of splitBlocks(text)) nodes.append(render(block, depth + 1));
  return nodes;
}

function renderList(block, depth) {
  const start = block.ordered && block.start !== 1 ? block.start : null;
  const list = el(block.ordered ? "ol" : "ul", { start });
  for (const text of block.items) list.append(el("li", { dir: "auto" }, renderItem(text, depth)));
  return list;
}

// The first paragraph stands in the item itself, as in lists without blank lines.
function renderItem(text, depth) {
  const nodes = renderInside(text, depth);
  const first = nodes.firstChild;
  if (first?.tagName === "P") first.replaceWith(...first.childNodes);
  return nodes;
}

function renderTable({ head, rows, aligns }) {
  const cell = (tag) => (text, at) => el(tag, { class: aligns[at] ?? "start", dir: "auto" }, inlineNodes(text));
  const top = el("thead", {}, el("tr", {}, ...head.map(cell("th"))));
  const body = el("tbody");
  for (const row of rows) body.append(el("tr", {}, ...row.map(cell("td"))));
  return el("div", { class: "wide-table", tabindex: "0", role: "region", "aria-label": "Table" }, el("table", {}, top, body));
}

function renderCode({ language, text }) {
  const copy = iconButton("copy", "Copy code", () => copyText(text, copy));
  const bar = el("div", { class: "bar" }, el("span", { text: language.slice(0, 30) || "text" }), copy);
  return el("div", { class: "code" }, bar, el("pre", { tabindex: "0" }, el("code", { text })));
}
