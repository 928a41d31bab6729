// The panel: system prompt, sampling, tools of the conversation that is shown. What is changed
// holds from the next message on.

import { byId, el, fitHeight, icon, iconButton } from "./dom.js";
import { NUMBERS, faultOf, readNumber } from "./sampling.js";
import { BUILT_IN, readTools } from "./tools.js";

const UNSET = { temperature: "model's", topP: "off", minP: "off", maxTokens: "no limit", seed: "random" };
const EXAMPLE = `[{
  "name": "get_weather",
  "description": "The weather in a city.",
  "parameters": {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"]
  }
}]`;

export class Settings {
  constructor(chat) {
    this.chat = chat;
    this.dialog = byId("settings");
    byId("open-settings").append(icon("settings"));
    byId("open-settings").addEventListener("click", () => this.open());
    // A click beside the panel closes it.
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
  }

  open() {
    const writes = this.chat.engine?.chat === false;
    const parts = [this.#head(), writes ? null : this.#system(), this.#sampling(), writes ? null : this.#tools(), this.#scope()];
    this.dialog.replaceChildren(el("div", { class: "panel" }, ...parts.filter(Boolean)));
    this.dialog.showModal();
    this.dialog.querySelectorAll("textarea").forEach(fitHeight);
  }

  #change(changes) {
    this.chat.changeSettings(changes);
    this.#showScope();
  }

  #head() {
    const close = iconButton("close", "Close", () => this.dialog.close());
    const row = el("div", { class: "row" }, el("h2", { id: "settings-title", text: "Settings" }), close);
    return el("div", {}, row, el("p", { class: "small", text: "They hold for this conversation, from its next message on." }));
  }

  #system() {
    const area = this.#area("system", { rows: "3", placeholder: "Such as: Answer briefly.", "aria-labelledby": "system-title" });
    return el("section", {}, el("h3", { id: "system-title", text: "System prompt" }), area);
  }

  #area(name, props) {
    const area = el("textarea", props);
    area.value = this.chat.settings[name] ?? "";
    area.addEventListener("input", () => {
      fitHeight(area);
      this.#change({ [name]: area.value });
    });
    return area;
  }

  #sampling() {
    const fields = NUMBERS.map((number) => new Field(number, this.chat, (changes) => this.#change(changes)));
    const clear = el("button", { class: "quiet", type: "button", text: "Use the model's defaults" });
    clear.addEventListener("click", () => fields.forEach((field) => field.clear()));
    return el("section", {}, el("h3", { text: "Sampling" }), el("div", { class: "fields" }, ...fields.map((field) => field.element)), clear);
  }

  #tools() {
    const title = el("h3", { text: "Tools" });
    if (this.chat.engine?.tools === false) {
      return el("section", {}, title, el("p", { class: "small", text: "This model's chat template takes no tools." }));
    }
    const trouble = el("p", { class: "wrong", role: "status" });
    const area = this.#area("tools", { rows: "6", class: "mono", placeholder: EXAMPLE, spellcheck: "false", "aria-label": "Your tools, as JSON" });
    const check = () => {
      trouble.textContent = readTools(area.value, this.chat.settings.builtIn).error;
    };
    const boxes = Object.entries(BUILT_IN).map(([name, tool]) => this.#builtIn(name, tool, check));
    area.addEventListener("input", check);
    check();
    const about = "Your own, as JSON schemas of functions. When the model calls one, you type its result.";
    return el("section", {}, title, ...boxes, el("p", { class: "small", text: about }), area, trouble);
  }

  #builtIn(name, tool, check) {
    const box = el("input", { type: "checkbox", checked: (this.chat.settings.builtIn ?? []).includes(name) });
    box.addEventListener("change", () => {
      const others = (this.chat.settings.builtIn ?? []).filter((one) => one !== name);
      this.#change({ builtIn: box.checked ? [...others, name] : others });
      check();
    });
    return el("label", { class: "check" }, box, el("span", { text: tool.label }), el("span", { class: "small", text: "runs in this page" }));
  }

  #scope() {
    this.told = el("p", { class: "small", role: "status" });
    this.keep = el("button", { class: "quiet", type: "button", text: "Use for new conversations" });
    this.keep.addEventListener("click", () => {
      this.chat.keepSettings();
      this.#showScope();
    });
    this.#showScope();
    return el("section", {}, el("h3", { text: "New conversations" }), this.keep, this.told);
  }

  #showScope() {
    if (!this.told) return;
    const kept = this.chat.store.settings;
    const same = bare(kept) === bare(this.chat.settings);
    const none = bare(kept) === "[]" ? "the model's own settings" : "other settings";
    this.keep.disabled = same;
    this.told.textContent = `New conversations begin with ${same ? "these" : none}.`;
  }
}

// A number: its field, and what is wrong with what stands in it.
class Field {
  constructor(number, chat, change) {
    Object.assign(this, { number, chat, change });
    const { name, label, hint, whole } = number;
    const own = chat.engine?.defaults[name] ?? (name === "maxTokens" ? chat.engine?.maxTokens : null);
    const placeholder = own === null || own === undefined ? UNSET[name] : String(own);
    const describes = { "aria-describedby": `hint-${name} fault-${name}` };
    this.input = el("input", { inputmode: whole ? "numeric" : "decimal", autocomplete: "off", placeholder, ...describes });
    this.input.value = chat.settings[name] ?? "";
    this.input.addEventListener("input", () => this.#read());
    this.fault = el("span", { class: "wrong", id: `fault-${name}`, role: "status" });
    const about = el("span", { class: "small", id: `hint-${name}`, text: hint });
    this.element = el("label", {}, el("span", { text: label }), this.input, about, this.fault);
    this.#check();
  }

  clear() {
    this.input.value = "";
    this.#read();
  }

  #read() {
    this.change({ [this.number.name]: readNumber(this.number, this.input.value, this.chat.engine) });
    this.#check();
  }

  #check() {
    this.fault.textContent = faultOf(this.number, this.chat.settings[this.number.name], this.chat.engine);
    this.input.setAttribute("aria-invalid", this.fault.textContent !== "");
  }
}

// Settings as a text that is the same where they mean the same.
function bare(settings) {
  const isSet = ([, value]) => value !== null && value !== undefined && value.length !== 0;
  return JSON.stringify(Object.entries(settings).filter(isSet).sort());
}
