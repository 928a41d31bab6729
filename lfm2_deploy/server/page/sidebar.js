// The list of conversations.

import { byId, el, icon, iconButton } from "./dom.js";

const NARROW = window.matchMedia("(max-width: 52rem)");

export class Sidebar {
  /** @param {function(string, function): void} offer shows a line with a way to take back */
  constructor(chat, offer) {
    this.chat = chat;
    this.offer = offer;
    this.list = byId("conversations");
    byId("menu").append(icon("menu"));
    byId("menu").addEventListener("click", () => this.#toggle());
    byId("close").append(icon("close"));
    byId("close").addEventListener("click", () => this.#close());
    byId("shade").addEventListener("click", () => this.#setOpen(false));
    byId("new").addEventListener("click", () => this.#open(null));
    byId("sidebar").addEventListener("keydown", (event) => this.#press(event));
    NARROW.addEventListener("change", () => this.#setOpen(!NARROW.matches));
    chat.addEventListener("list", () => this.render());
    this.#setOpen(!NARROW.matches);
    this.render();
  }

  render() {
    if (this.list.querySelector("input")) return; // a title is being typed
    const focused = this.#focused();
    const items = this.chat.store.list().map((conversation) => this.#item(conversation));
    const none = el("li", { class: "none", text: "None yet" });
    this.list.replaceChildren(...(items.length ? items : [none]));
    if (focused) this.#focus(focused.id, focused.at);
  }

  // The buttons are drawn anew: the focus stays on the same one.
  #focused() {
    const item = document.activeElement?.closest("#conversations li[data-id]");
    const at = item && [...item.querySelectorAll("button")].indexOf(document.activeElement);
    return item && { id: item.dataset.id, at };
  }

  #focus(id, at = 0) {
    this.list.querySelectorAll(`li[data-id="${id}"] button`)[at]?.focus();
  }

  #item(conversation) {
    const { id, title } = conversation;
    const current = id === this.chat.conversation.id;
    const open = el("button", { class: "title", type: "button", "aria-current": current, title, onclick: () => this.#open(id) }, title);
    const rename = iconButton("edit", `Rename ${title}`, () => this.#rename(item, conversation));
    const save = iconButton("save", `Export ${title} as JSON`, () => exportJson(conversation));
    const remove = iconButton("remove", `Delete ${title}`, () => this.#remove(conversation));
    const item = el("li", { class: current ? "current" : null, "data-id": id }, open, el("span", { class: "actions" }, rename, save, remove));
    return item;
  }

  #open(id) {
    this.chat.open(id);
    if (NARROW.matches) this.#setOpen(false);
    byId("input").focus();
  }

  #rename(item, { id, title }) {
    const input = el("input", { "aria-label": "Title", maxlength: "200" });
    let byKey = false;
    input.value = title;
    input.addEventListener("keydown", (event) => {
      if (event.key === "Escape") input.value = title;
      if (event.key !== "Enter" && event.key !== "Escape") return;
      event.stopPropagation();
      event.preventDefault(); // it would press the button that gets the focus
      byKey = true;
      input.blur();
    });
    const keep = () => {
      item.replaceChildren();
      if (input.value !== title) this.chat.rename(id, input.value);
      else this.render();
      if (byKey) this.#focus(id);
    };
    input.addEventListener("blur", keep, { once: true });
    item.replaceChildren(input);
    input.select();
  }

  // The focus goes on to the conversation that takes this one's place.
  #remove({ id, title }) {
    const ids = this.chat.store.list().map((one) => one.id);
    const at = ids.indexOf(id);
    const undo = this.chat.remove(id);
    this.offer(`Deleted “${title}”.`, undo);
    const neighbour = ids[at + 1] ?? ids[at - 1];
    if (neighbour) this.#focus(neighbour);
    else byId("new").focus();
  }

  #press(event) {
    if (event.key !== "Escape" || !NARROW.matches) return;
    event.stopPropagation();
    this.#close();
  }

  #close() {
    this.#setOpen(false);
    byId("menu").focus();
  }

  #toggle() {
    this.#setOpen(byId("sidebar").hidden);
    if (NARROW.matches) byId("new").focus();
  }

  // On a narrow screen it lies over the rest, which then cannot be reached.
  #setOpen(open) {
    byId("sidebar").hidden = !open;
    byId("menu").setAttribute("aria-expanded", open);
    byId("shade").hidden = !(open && NARROW.matches);
    byId("main").inert = open && NARROW.matches;
  }
}

function exportJson(conversation) {
  const file = new Blob([JSON.stringify(conversation, null, 2)], { type: "application/json" });
  const href = URL.createObjectURL(file);
  const name = conversation.title.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40) || "conversation";
  el("a", { href, download: `${name}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000);
}
