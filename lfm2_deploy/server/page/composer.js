// The box for messages, its button, and how full the context is.

import { byId, fitHeight, icon } from "./dom.js";
import { isCut } from "./tools.js";
import { shownNodes } from "./tree.js";

const DRAFT = "lfm2.draft";

export class Composer {
  constructor(chat) {
    this.chat = chat;
    this.input = byId("input");
    this.button = byId("send");
    this.input.value = readDraft();
    this.input.addEventListener("input", () => this.#typed());
    this.input.addEventListener("keydown", (event) => this.#press(event));
    byId("composer").addEventListener("submit", (event) => this.#submit(event));
    for (const name of ["thread", "node", "engine"]) chat.addEventListener(name, () => this.update());
    fitHeight(this.input);
    this.update();
  }

  get #writes() {
    return this.chat.engine?.chat === false;
  }

  /** Follow what the chat does. */
  update() {
    const { running } = this.chat;
    if (this.button.dataset.running !== String(running)) {
      this.button.dataset.running = running;
      this.button.setAttribute("aria-label", running ? "Stop" : "Send");
      this.button.title = running ? "Stop (Esc)" : "Send (Enter)";
      this.button.replaceChildren(icon(running ? "stop" : "send"));
    }
    this.button.disabled = !running && !this.#canSend();
    this.input.placeholder = this.#writes ? "Text to continue" : "Write a message";
    const waits = this.#callsWait() && "Calls wait for results; a message goes on without them";
    const usual = "Enter sends, Shift+Enter begins a line";
    byId("hint").textContent = running ? "Esc stops" : waits || usual;
    byId("hint").className = running || waits ? "" : "usual"; // gives way to signs.js
    this.#showContext();
  }

  focus() {
    this.input.focus();
  }

  // A base model may go on without more text.
  #canSend() {
    return this.input.value.trim() !== "" || (this.#writes && shownNodes(this.chat.conversation).length > 0);
  }

  #callsWait() {
    const last = shownNodes(this.chat.conversation).at(-1);
    return Boolean(last?.calls?.length) && !last.calls.some((call) => isCut(last, call));
  }

  #typed() {
    fitHeight(this.input);
    keepDraft(this.input.value);
    this.update();
  }

  #press(event) {
    // While an input method composes a character, Enter is its own.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!this.chat.running) this.#send(); // otherwise the text waits
  }

  #submit(event) {
    event.preventDefault();
    if (this.chat.running) this.chat.stop();
    else this.#send();
  }

  #send() {
    if (!this.#canSend()) return;
    const text = this.#writes ? this.input.value : this.input.value.trim();
    this.input.value = "";
    this.#typed();
    this.chat.send(text);
    this.focus();
  }

  #showContext() {
    const total = this.chat.engine?.contextLength;
    const usage = shownNodes(this.chat.conversation).findLast((node) => node.usage)?.usage;
    byId("context").hidden = !total || !usage;
    if (!total || !usage) return;
    const used = usage.promptTokens + usage.completionTokens;
    const meter = byId("meter");
    meter.setAttribute("aria-valuemax", total);
    meter.setAttribute("aria-valuenow", Math.min(used, total));
    meter.classList.toggle("high", used > 0.85 * total);
    meter.firstElementChild.style.width = `${Math.min(100, (100 * used) / total)}%`;
    byId("used").textContent = `${used.toLocaleString("en")} of ${total.toLocaleString("en")} tokens`;
  }
}

// A text that is being typed outlives a reload.
function readDraft() {
  try {
    return sessionStorage.getItem(DRAFT) ?? "";
  } catch {
    return ""; // storage is blocked
  }
}

function keepDraft(text) {
  try {
    sessionStorage.setItem(DRAFT, text);
  } catch {
    // It stays in the box.
  }
}
