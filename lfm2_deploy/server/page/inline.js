// Markdown's inline marks: a text in, DOM nodes out; linear in the text, and never HTML.
//
// One pass: finished nodes lie in a list, opening marks are remembered by their place in it. A
// closing mark wraps what lies after its opening one.

import { el } from "./dom.js";

const DEEPEST = 12; // marks within marks; browsers do not bear any depth
const LONGEST = 20_000; // characters of a paragraph
const LONGEST_ADDRESS = 2000;
const SCHEMES = ["http:", "https:", "mailto:"];
const TAGS = { "**": "strong", __: "strong", "*": "em", _: "em", "~~": "s" };
const NEXT = /[\\`*_~![\]\n]|https?:\/\//g;
const BARE = /https?:\/\/[^\s<>"'`\\]{1,2000}/y;
const FORMULAS = { "(": "\\)", "[": "\\]" };
const ESCAPABLE = /[!-/:-@[-`{-~]/;

/** @returns {string|null} an absolute address that may be followed, or null. */
export function safeAddress(text) {
  if (text.length > LONGEST_ADDRESS) return null;
  try {
    const url = new URL(text);
    return SCHEMES.includes(url.protocol) ? url.href : null;
  } catch {
    return null; // relative or broken
  }
}

/** @returns {DocumentFragment} */
export function inlineNodes(text) {
  const nodes = document.createDocumentFragment();
  // Nobody means marks in such a paragraph, and laying out ten thousands of them takes long.
  if (text.length > LONGEST) nodes.append(text);
  else appendItems(nodes, new Scanner(text).run());
  return nodes;
}

// Texts that stand side by side become one node.
function appendItems(parent, items) {
  let text = "";
  for (const { node } of items) {
    if (typeof node === "string") text += node;
    else {
      parent.append(text, node);
      text = "";
    }
  }
  parent.append(text);
}

class Scanner {
  constructor(text) {
    this.text = text;
    this.at = 0;
    this.items = []; // {node: a node or a text, depth}
    this.open = Object.fromEntries([...Object.keys(TAGS), "["].map((mark) => [mark, []]));
    this.missing = new Set(); // what does not come any more: do not look again
  }

  run() {
    while (this.at < this.text.length) {
      NEXT.lastIndex = this.at;
      const found = NEXT.exec(this.text);
      this.push(this.text.slice(this.at, found ? found.index : this.text.length));
      if (!found) break;
      this.at = found.index;
      this.read(found[0]);
    }
    return this.items;
  }

  read(mark) {
    if (mark === "\\") this.readEscape();
    else if (mark === "\n") this.pushNode(el("br"), 1);
    else if (mark === "`") this.readCode();
    else if (mark === "[" || (mark === "!" && this.text[this.at + 1] === "[")) this.openLink();
    else if (mark === "]") this.closeLink();
    else if (mark.startsWith("http")) this.readBare();
    else if (mark === "!") this.push(mark, 1);
    else this.readEmphasis(mark);
  }

  push(text, length = text.length) {
    this.at += length;
    if (text) this.items.push({ node: text, depth: 0 });
  }

  pushNode(node, length, depth = 1) {
    this.at += length;
    this.items.push({ node, depth });
  }

  readEscape() {
    const next = this.text[this.at + 1] ?? "";
    if (Object.hasOwn(FORMULAS, next) && this.readFormula(FORMULAS[next])) return;
    if (ESCAPABLE.test(next)) this.push(next, 2);
    else this.push("\\");
  }

  // LaTeX is left as it is written, with its backslashes.
  readFormula(end) {
    const to = this.missing.has(end) ? -1 : this.text.indexOf(end, this.at + 2);
    if (to < 0) {
      this.missing.add(end);
      return false;
    }
    const lines = this.text.slice(this.at, to + 2).split("\n");
    this.at = to + 2;
    lines.forEach((line, at) => {
      if (at) this.pushNode(el("br"), 0);
      this.push(line, 0);
    });
    return true;
  }

  readCode() {
    const fence = "`".repeat(countRun(this.text, this.at));
    const from = this.at + fence.length;
    const to = this.findFence(fence, from);
    if (to < 0) this.push(fence);
    else this.pushNode(el("code", { text: trimCode(this.text.slice(from, to)) }), to + fence.length - this.at);
  }

  // A run of exactly as many backticks.
  findFence(fence, from) {
    if (this.missing.has(fence)) return -1;
    for (let to = this.text.indexOf("`", from); to >= 0; to = this.text.indexOf("`", to)) {
      const run = countRun(this.text, to);
      if (run === fence.length) return to;
      to += run;
    }
    this.missing.add(fence);
    return -1;
  }

  // An image is shown as a link: nothing is loaded from elsewhere.
  openLink() {
    const mark = this.text[this.at] === "!" ? "![" : "[";
    this.open["["].push(this.items.length);
    this.push(mark);
  }

  closeLink() {
    const opened = this.open["["].pop();
    const from = this.at + 2;
    const to = this.text[this.at + 1] === "(" && opened !== undefined ? this.findEnd(from) : -1;
    const address = to < 0 ? null : safeAddress(this.text.slice(from, to).trim().split(/\s/, 1)[0]);
    if (!address || !this.wrap(opened, link(address))) this.push("]");
    else {
      this.at = to + 1;
      this.open["["].length = 0; // links do not lie in links
    }
  }

  // The ")" of an address; one pair of parentheses may lie inside.
  findEnd(from) {
    const rest = this.text.slice(from, from + LONGEST_ADDRESS);
    const length = rest.indexOf(")");
    if (length < 0) return -1;
    const nested = rest.slice(0, length).includes("(") && rest[length + 1] === ")";
    return from + length + (nested ? 1 : 0);
  }

  readBare() {
    BARE.lastIndex = this.at;
    const found = BARE.exec(this.text)?.[0].replace(/[.,;:!?)\]*_~]{1,20}$/, "") ?? "";
    const address = found && safeAddress(found);
    if (!address) return this.push(this.text.slice(this.at, this.at + 4));
    const anchor = link(address);
    anchor.textContent = found;
    return this.pushNode(anchor, found.length);
  }

  readEmphasis(character) {
    const double = character + character;
    let mark = this.text.startsWith(double, this.at) ? double : character;
    // In "***both***" the inner mark closes first.
    if (this.text.startsWith(double + character, this.at) && isLater(this.open[character], this.open[double])) mark = character;
    if (!(mark in TAGS)) return this.push(mark);
    const before = this.text[this.at - 1] ?? " ";
    const after = this.text[this.at + mark.length] ?? " ";
    const opened = this.open[mark];
    if (canClose(character, before, after) && opened.length) {
      if (this.wrap(opened.at(-1), el(TAGS[mark]))) {
        this.at += mark.length;
        return undefined;
      }
    } else if (canOpen(character, before, after)) opened.push(this.items.length);
    return this.push(mark);
  }

  // Put all after the item `from`, which is the opening mark, into `parent`.
  wrap(from, parent) {
    const inside = this.items.slice(from + 1);
    const depth = 1 + inside.reduce((most, item) => Math.max(most, item.depth), 0);
    if (depth > DEEPEST || !inside.length) {
      for (const places of Object.values(this.open)) places.length = 0; // they would be too deep, too
      return false;
    }
    appendItems(parent, inside);
    this.items.length = from;
    this.items.push({ node: parent, depth });
    for (const places of Object.values(this.open)) {
      while (places.length && places.at(-1) >= from) places.pop();
    }
    return true;
  }
}

const isLater = (places, others) => places?.length > 0 && places.at(-1) > (others.at(-1) ?? -1);

function countRun(text, at) {
  let end = at;
  while (text[end] === "`") end += 1;
  return end - at;
}


// "`` `a` ``" is how code is written that has backticks at its ends.
function trimCode(text) {
  const padded = text.startsWith(" ") && text.endsWith(" ") && text.trim() !== "";
  return (padded ? text.slice(1, -1) : text).replaceAll("\n", " ");
}

const isWord = (character) => /[\p{L}\p{N}]/u.test(character);
const canOpen = (mark, before, after) => !/\s/.test(after) && !(mark === "_" && isWord(before));
const canClose = (mark, before, after) => !/\s/.test(before) && !(mark === "_" && isWord(after));

function link(address) {
  return el("a", { href: address, title: address, target: "_blank", rel: "noopener noreferrer" });
}
