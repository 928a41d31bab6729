// The calls of tools in an answer: what the model wants, and what it gets for it.

import { el, fitHeight, icon, iconButton } from "./dom.js";
import { branchSwitch } from "./branches.js";
import { prettyArguments, runTool } from "./tools.js";

export class ToolCards {
  constructor(chat, node) {
    this.chat = chat;
    this.node = node;
    this.element = el("div", { class: "calls" });
    this.drawn = "";
  }

  /** @param {Object|null} given the node of results, where there is one that is shown */
  update(given) {
    const { calls, state } = this.node;
    const drawn = JSON.stringify([calls, state === "running", given?.id, given && this.#siblings(given)]);
    if (drawn === this.drawn) return; // what is being typed stays
    this.drawn = drawn;
    this.given = given;
    if (given || state === "running" || !calls.length) this.#show(given);
    else this.#askForResults(calls.map((call) => this.#preset(call)));
  }

  #siblings(given) {
    return this.chat.conversation.nodes[given.parent].children.length;
  }

  #show(given) {
    const last = this.node.calls.length - 1;
    const actions = (at) => (given && at === last ? this.#actions(given) : null);
    const cards = this.node.calls.map((call, at) => card(call, resultOf(call, given, actions(at))));
    this.element.replaceChildren(...cards);
  }

  #actions(given) {
    const texts = this.node.calls.map((call) => given.results.find((one) => one.id === call.id)?.content ?? "");
    const edit = iconButton("edit", "Change results", () => this.#askForResults(texts, true));
    return el("span", { class: "meta" }, branchSwitch(this.chat, given), edit);
  }

  // Where one tool is the user's and another the page's, the page fills its own in.
  #preset(call) {
    return runTool(call, this.chat.settings.builtIn ?? []) ?? "";
  }

  #askForResults(texts, focus = false) {
    const { calls } = this.node;
    const boxes = calls.map((call, at) => resultBox(call, texts[at]));
    const send = el("button", { class: "solid", type: "submit", text: calls.length > 1 ? "Send results" : "Send result" });
    const form = el("form", { onsubmit: (event) => this.#send(event, boxes) }, ...calls.map((call, at) => card(call, boxes[at])), el("div", { class: "row end" }, send));
    form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
    this.element.replaceChildren(form);
    boxes.forEach(fitHeight);
    if (focus) boxes[0].focus();
  }

  #send(event, boxes) {
    event.preventDefault();
    const results = this.node.calls.map(({ id, name }, at) => ({ id, name, content: boxes[at].value }));
    this.chat.giveResults(this.node, results);
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
  const line = el("div", { class: "row" }, el("span", { class: "small", text: label }), actions);
  return el("div", { class: "result" }, line, el("pre", { tabindex: "0", text: prettyArguments(result.content) }));
}

function resultBox(call, text) {
  const hint = `What ${call.name} gives: text or JSON`;
  const box = el("textarea", { rows: "2", required: true, placeholder: hint, "aria-label": hint, spellcheck: "false" });
  box.value = text;
  box.addEventListener("input", () => fitHeight(box));
  return box;
}
