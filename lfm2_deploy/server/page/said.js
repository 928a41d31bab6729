// A message of the user, and its editing.

import { branchSwitch } from "./branches.js";
import { copyText, el, fitHeight, focusMessage, iconButton } from "./dom.js";
import { leafId, siblingsOf } from "./tree.js";

export class SaidView {
  constructor(chat, node) {
    this.chat = chat;
    this.node = node;
    this.element = el("article", { class: "said", tabindex: "-1", "data-node": node.id });
    this.edits = false;
  }

  update() {
    const shown = JSON.stringify(siblingsOf(this.chat.conversation, this.node));
    if (this.edits || shown === this.shown) return;
    this.shown = shown;
    this.#show();
  }

  #show() {
    const { chat, node } = this;
    const copy = iconButton("copy", "Copy message", () => copyText(node.content, copy));
    const edit = iconButton("edit", "Edit message", () => this.#edit());
    const text = el("div", { class: "text", dir: "auto", text: node.content });
    const actions = [branchSwitch(chat, node), copy, edit].filter(Boolean);
    this.element.replaceChildren(el("h2", { class: "unseen", text: "You" }), text, el("div", { class: "meta" }, ...actions));
  }

  #edit() {
    this.edits = true;
    const area = el("textarea", { "aria-label": "Edit message", oninput: () => fitHeight(area) });
    area.value = this.node.content;
    const cancel = el("button", { class: "quiet", type: "button", text: "Cancel", onclick: () => this.#leave() });
    const send = el("button", { class: "solid", type: "submit", text: "Send" });
    const form = el("form", { class: "edit", onsubmit: (event) => this.#send(event, area.value) }, area, el("div", { class: "row end" }, cancel, send));
    form.addEventListener("keydown", (event) => this.#press(event, form, area));
    this.element.replaceChildren(form);
    fitHeight(area);
    area.focus();
  }

  #press(event, form, area) {
    if (event.key === "Escape") {
      event.stopPropagation(); // it must not stop an answer
      this.#leave();
    } else if (event.key === "Enter" && event.target === area && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  }

  #send(event, text) {
    event.preventDefault();
    if (!text.trim()) return;
    this.edits = false;
    this.#show(); // as the version that it stays
    this.chat.edit(this.node, text);
    focusMessage(leafId(this.chat.conversation));
  }

  #leave() {
    this.edits = false;
    this.#show();
    this.element.querySelector("[aria-label='Edit message']").focus();
  }
}
