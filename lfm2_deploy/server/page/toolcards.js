// The calls of tools in an answer: what the model wants, and what it gets for it.

import { branchSwitch } from "./branches.js";
import { el, fitHeight, focusMessage, icon, iconButton } from "./dom.js";
import { isCut, prettyArguments, runTool } from "./tools.js";
import { leafId } from "./tree.js";

const SKIPPED = "No result: the conversation went on without one.";
const CUT = {
  length: "Cut at the most tokens before its end, so it cannot be answered. Allow more tokens, then regenerate.",
  stopped: "Stopped before its end, so it cannot be answered.",
};

export class ToolCards {
  constructor(chat, node) {
    this.chat = chat;
    this.node = node;
    this.element = el("div", { class: "calls" });
    this.drawn = "";
  }

  /** @param {Object|undefined} next the node after it, which may be of results */
  update(next) {
    const { calls, state } = this.node;
    const given = next?.role === "tool" ? next : null;
    const drawn = JSON.stringify([calls, state === "running", next?.id, given && this.#siblings(given)]);
    if (drawn === this.drawn) return; // what is being typed stays
    this.drawn = drawn;
    const isCutOff = calls.some((call) => isCut(this.node, call));
    if (next || state === "running" || isCutOff || !calls.length) this.#show(given, next);
    else this.#askForResults(calls.map((call) => this.#preset(call)));
  }

  #siblings(given) {
    return this.chat.conversation.nodes[given.parent].children.length;
  }

  #show(given, next) {
    const last = this.node.calls.length - 1;
    const actions = (at) => (given && at === last ? this.#actions(given) : null);
    const below = (call, at) => {
      if (isCut(this.node, call)) return remark(this.node.finish === "length" ? CUT.length : CUT.stopped);
      return next && !given ? remark(SKIPPED) : resultOf(call, given, actions(at));
    };
    this.element.replaceChildren(...this.node.calls.map((call, at) => card(call, below(call, at))));
  }

  #actions(given) {
    const texts = this.node.calls.map((call) => given.results.find((one) => one.id === call.id)?.content ?? null);
    const edit = iconButton("edit", "Change results", () => this.#askForResults(texts, true));
    return el("span", { class: "meta" }, branchSwitch(this.chat, given), edit);
  }

  // Where one tool is the user's and another the page's, the page fills its own in.
  #preset(call) {
    return runTool(call, this.chat.settings.builtIn ?? []) ?? "";
  }

  #askForResults(texts, focus = false) {
    const { calls } = this.node;
    const boxes = calls.map((call, at) => new ResultBox(call, texts[at]));
    const send = el("button", { class: "solid", type: "submit", text: calls.length > 1 ? "Send results" : "Send result" });
    const form = el("form", { onsubmit: (event) => this.#send(event, boxes) }, ...calls.map((call, at) => card(call, boxes[at].element)), el("div", { class: "row end" }, send));
    form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
    this.element.replaceChildren(form);
    for (const box of boxes) fitHeight(box.area);
    if (focus) boxes[0].area.focus();
  }

  #send(event, boxes) {
    event.preventDefault();
    const results = this.node.calls.map(({ id, name }, at) => ({ id, name, content: boxes[at].value }));
    this.chat.giveResults(this.node, results);
    focusMessage(leafId(this.chat.conversation));
  }
}

function card(call, ...below) {
  const name = el("div", { class: "name" }, icon("tool"), el("strong", { text: call.name || "…" }));
  return el("div", { class: "card" }, name, el("pre", { tabindex: "0", text: prettyArguments(call.arguments) }), ...below);
}

function resultOf(call, given, actions) {
  const result = given?.results.find((one) => one.id === call.id);
  if (!result) return null;
  const label = given.automatic ? "Result, from this page" : "Result";
  const isMissing = result.content === null;
  const line = el("div", { class: "row" }, el("span", { class: "small", text: isMissing ? "No result" : label }), actions);
  const text = isMissing ? null : el("pre", { tabindex: "0", text: prettyArguments(result.content) });
  return el("div", { class: "result" }, line, text);
}

const remark = (text) => el("div", { class: "result" }, el("p", { class: "small", text }));

// What the user says that a call gave, or that it gave nothing.
class ResultBox {
  /** @param {string|null} text null for no result */
  constructor(call, text) {
    const hint = `What ${call.name} gives: text or JSON`;
    this.area = el("textarea", { rows: "2", required: true, placeholder: hint, "aria-label": hint, spellcheck: "false" });
    this.area.value = text ?? "";
    this.area.addEventListener("input", () => fitHeight(this.area));
    this.none = el("input", { type: "checkbox", checked: text === null });
    this.none.addEventListener("change", () => this.#follow());
    const label = el("label", { class: "check" }, this.none, el("span", { class: "small", text: "No result" }));
    this.element = el("div", {}, this.area, label);
    this.#follow();
  }

  get value() {
    return this.none.checked ? null : this.area.value;
  }

  #follow() {
    this.area.disabled = this.none.checked;
  }
}
