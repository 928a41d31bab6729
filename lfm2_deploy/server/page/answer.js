// An answer of the model: reasoning, text, calls of tools, what went wrong, and its numbers.

import { branchSwitch } from "./branches.js";
import { copyText, el, focusMessage, iconButton } from "./dom.js";
import { MarkdownView } from "./markdown.js";
import { ToolCards } from "./toolcards.js";
import { leafId, siblingsOf } from "./tree.js";

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
    const props = { class: "answer", tabindex: "-1", "data-node": node.id };
    this.element = el("article", props, title, ...parts, this.trouble, this.meta);
  }

  /** Show what the node holds by now. @param {Object|undefined} next the node after it */
  update(next) {
    const { node } = this;
    this.element.classList.toggle("running", node.state === "running");
    this.element.classList.toggle("waiting", node.state === "running" && node.firstToken === undefined);
    this.element.setAttribute("aria-busy", node.state === "running");
    this.reasoning.update();
    this.text.update(node.content);
    this.cards.update(next);
    this.#showTrouble();
    this.#showMeta();
  }

  #showTrouble() {
    const { node, chat } = this;
    this.trouble.hidden = !node.error;
    if (!node.error || this.told === node.error.message) return;
    this.told = node.error.message;
    const again = el("button", { class: "quiet", type: "button", text: "Try again", onclick: () => this.#again(() => chat.retry(node)) });
    const fails = ["context"].includes(node.error.kind); // it would fail again
    this.trouble.replaceChildren(el("p", { text: node.error.message }), ...(fails ? [] : [again]));
  }

  #again(begin) {
    begin();
    focusMessage(leafId(this.chat.conversation));
  }

  #showMeta() {
    const { node, chat } = this;
    const facts = chat.isElsewhere(node) ? ["comes in another tab"] : numbersOf(node, chat.engine?.contextLength);
    // What is shown already stays, and with it the focus.
    const shown = JSON.stringify([node.state, Boolean(node.content), siblingsOf(chat.conversation, node), facts]);
    if (shown === this.shownMeta) return;
    this.shownMeta = shown;
    const numbers = el("span", { class: "numbers" });
    facts.forEach((text, at) => numbers.append(at ? " · " : "", el("span", { text })));
    if (node.state === "running") {
      this.meta.replaceChildren(numbers);
      return;
    }
    const copy = node.content && iconButton("copy", "Copy answer", () => copyText(node.content, copy));
    const again = !node.error && iconButton("again", "Regenerate", () => this.#again(() => chat.regenerate(node)));
    this.meta.replaceChildren(...[copy, again, branchSwitch(chat, node), numbers].filter(Boolean));
  }
}

// Why an answer ended before its end. @returns {string}
function cutBy({ limit, usage }, contextLength) {
  const whole = usage && usage.promptTokens + usage.completionTokens;
  if (limit && usage && usage.completionTokens >= limit) return `cut at ${limit.toLocaleString("en")} tokens`;
  if (whole && contextLength && whole >= contextLength - 1) return "cut: the context is full";
  return "cut at the most tokens allowed";
}

/** @returns {string[]} speed and the like, such as "34.2 tok/s" and "first token 0.21 s". */
export function numbersOf(node, contextLength) {
  const { rate, rateEstimated, firstToken, usage, finish, state } = node;
  const parts = [];
  if (state === "stopped") parts.push("stopped");
  if (finish === "length") parts.push(cutBy(node, contextLength));
  if (rate) parts.push(`${rateEstimated ? "≈ " : ""}${rate.toFixed(1)} tok/s`);
  if (firstToken !== undefined) parts.push(`first token ${firstToken.toFixed(2)} s`);
  if (usage?.reusedTokens) parts.push(`${usage.reusedTokens.toLocaleString("en")} tokens reused`);
  return parts;
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
    const whole = thought < 0.1 ? "Thought briefly" : `Thought for ${thought.toFixed(1)} s`;
    this.summary.textContent = thinks ? `Thinking… ${thought.toFixed(0)} s` : whole;
    this.text.update(reasoning);
  }
}
