// An answer of the model: reasoning, text, calls of tools, what went wrong, and its numbers.

import { branchSwitch } from "./branches.js";
import { copyText, el, iconButton } from "./dom.js";
import { MarkdownView } from "./markdown.js";
import { ToolCards } from "./toolcards.js";

export class AnswerView {
  constructor(chat, node) {
    this.chat = chat;
    this.node = node;
    this.reasoning = new ReasoningView(node);
    this.text = chat.engine?.chat === false ? new PlainView() : new MarkdownView();
    this.cards = new ToolCards(chat, node);
    this.trouble = el("div", { class: "trouble", hidden: true });
    this.meta = el("div", { class: "meta" });
    const parts = [this.reasoning, this.text, this.cards].map((part) => part.element);
    const title = el("h2", { class: "unseen", text: "Answer" });
    this.element = el("article", { class: "answer" }, title, ...parts, this.trouble, this.meta);
  }

  /** Show what the node holds by now. @param {Object|null} given results of its calls */
  update(given) {
    const { node } = this;
    this.element.classList.toggle("running", node.state === "running");
    this.element.classList.toggle("waiting", node.state === "running" && node.firstToken === undefined);
    this.element.setAttribute("aria-busy", node.state === "running");
    this.reasoning.update();
    this.text.update(node.content);
    this.cards.update(given);
    this.#showTrouble();
    this.#showMeta();
  }

  #showTrouble() {
    const { node, chat } = this;
    this.trouble.hidden = !node.error;
    if (!node.error || this.trouble.childNodes.length) return;
    const again = el("button", { class: "quiet", type: "button", text: "Try again", onclick: () => chat.retry(node) });
    this.trouble.append(el("p", { text: node.error.message }));
    if (node.error.kind !== "context") this.trouble.append(again); // there it would fail again
  }

  #showMeta() {
    const { node, chat } = this;
    if (node.state === "running") {
      this.meta.replaceChildren(el("span", { class: "numbers", text: describeNumbers(node) }));
      return;
    }
    const copy = node.content && iconButton("copy", "Copy answer", () => copyText(node.content, copy));
    const again = !node.error && iconButton("again", "Regenerate", () => chat.regenerate(node));
    const numbers = el("span", { class: "numbers", text: describeNumbers(node) });
    this.meta.replaceChildren(...[copy, again, branchSwitch(chat, node), numbers].filter(Boolean));
  }
}

/** @returns {string} speed and the like, such as "34.2 tok/s · first token 0.21 s". */
export function describeNumbers({ rate, rateEstimated, firstToken, usage, finish, state }) {
  const parts = [];
  if (state === "stopped") parts.push("stopped");
  if (finish === "length") parts.push("cut at the most tokens allowed");
  if (rate) parts.push(`${rateEstimated ? "≈ " : ""}${rate.toFixed(1)} tok/s`);
  if (firstToken !== undefined) parts.push(`first token ${firstToken.toFixed(2)} s`);
  if (usage?.reusedTokens) parts.push(`${usage.reusedTokens.toLocaleString("en")} tokens reused`);
  return parts.join(" · ");
}

// What models that continue texts write is no Markdown.
class PlainView {
  constructor() {
    this.element = el("div", { class: "plain" });
  }

  update(text) {
    this.element.textContent = text.replace(/^ /, ""); // it stands on a line of its own
  }
}

class ReasoningView {
  constructor(node) {
    this.node = node;
    this.summary = el("summary");
    this.text = new MarkdownView();
    this.element = el("details", { class: "reasoning", hidden: true }, this.summary, this.text.element);
  }

  update() {
    const { reasoning, content, calls, thought = 0, state } = this.node;
    this.element.hidden = !reasoning;
    if (!reasoning) return;
    const thinks = state === "running" && !content && !calls.length;
    this.element.classList.toggle("thinks", thinks);
    this.summary.textContent = thinks ? `Thinking… ${thought.toFixed(0)} s` : `Thought for ${thought.toFixed(1)} s`;
    this.text.update(reasoning);
  }
}
