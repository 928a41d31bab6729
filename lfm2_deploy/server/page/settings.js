// The panel: system prompt, sampling, tools. Changes hold from the next message on.

import { byId, el, fitHeight, icon, iconButton } from "./dom.js";
import { BUILT_IN, readTools } from "./tools.js";

const NUMBERS = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.05, hint: "0 always takes the likeliest token" },
  { name: "topP", label: "Top p", min: 0.01, max: 1, step: 0.01, hint: "of the likeliest tokens, this share" },
  { name: "minP", label: "Min p", min: 0, max: 1, step: 0.01, hint: "drops tokens less likely than this part of the likeliest" },
  { name: "maxTokens", label: "Most tokens", min: 1, step: 1, hint: "of one answer" },
  { name: "seed", label: "Seed", min: 0, step: 1, hint: "the same seed gives the same answer" },
];
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
    const parts = [this.#head(), writes ? null : this.#system(), this.#sampling(), writes ? null : this.#tools()];
    this.dialog.replaceChildren(el("div", { class: "panel" }, ...parts.filter(Boolean)));
    this.dialog.showModal();
    this.dialog.querySelectorAll("textarea").forEach(fitHeight);
  }

  #head() {
    const close = iconButton("close", "Close", () => this.dialog.close());
    return el("div", { class: "row" }, el("h2", { id: "settings-title", text: "Settings" }), close);
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
      this.chat.changeSettings({ [name]: area.value });
    });
    return area;
  }

  #sampling() {
    const fields = NUMBERS.map((number) => this.#number(number));
    const cleared = Object.fromEntries(NUMBERS.map(({ name }) => [name, null]));
    const clear = el("button", { class: "quiet", type: "button", text: "Use the model's defaults", onclick: () => {
      this.chat.changeSettings(cleared);
      for (const input of this.dialog.querySelectorAll("input[type=number]")) input.value = "";
    } });
    return el("section", {}, el("h3", { text: "Sampling" }), el("div", { class: "fields" }, ...fields), clear);
  }

  #number({ name, label, hint, ...limits }) {
    const own = this.chat.engine?.defaults[name];
    const placeholder = own === null || own === undefined ? UNSET[name] : String(own);
    const input = el("input", { type: "number", placeholder, inputmode: "decimal", "aria-describedby": `hint-${name}`, ...limits });
    input.value = this.chat.settings[name] ?? "";
    input.addEventListener("input", () => {
      const ok = input.checkValidity() || input.validity.stepMismatch;
      if (ok) this.chat.changeSettings({ [name]: input.value === "" ? null : input.valueAsNumber });
    });
    return el("label", {}, el("span", { text: label }), input, el("span", { class: "small", id: `hint-${name}`, text: hint }));
  }

  #tools() {
    const title = el("h3", { text: "Tools" });
    if (this.chat.engine?.tools === false) {
      return el("section", {}, title, el("p", { class: "small", text: "This model's chat template takes no tools." }));
    }
    const boxes = Object.entries(BUILT_IN).map(([name, tool]) => this.#builtIn(name, tool));
    const trouble = el("p", { class: "wrong", role: "status" });
    const area = this.#area("tools", { rows: "6", class: "mono", placeholder: EXAMPLE, spellcheck: "false", "aria-label": "Your tools, as JSON" });
    const check = () => {
      trouble.textContent = readTools(area.value).error;
    };
    area.addEventListener("input", check);
    check();
    const about = "Your own, as JSON schemas of functions. When the model calls one, you type its result.";
    return el("section", {}, title, ...boxes, el("p", { class: "small", text: about }), area, trouble);
  }

  #builtIn(name, tool) {
    const box = el("input", { type: "checkbox", checked: (this.chat.settings.builtIn ?? []).includes(name) });
    box.addEventListener("change", () => {
      const others = (this.chat.settings.builtIn ?? []).filter((one) => one !== name);
      this.chat.changeSettings({ builtIn: box.checked ? [...others, name] : others });
    });
    return el("label", { class: "check" }, box, el("span", { text: tool.label }), el("span", { class: "small", text: "runs in this page" }));
  }
}
