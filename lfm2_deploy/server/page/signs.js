// Below the message box: which settings this conversation has, and which of them cannot be used.

import { byId } from "./dom.js";
import { NUMBERS, faultOf } from "./sampling.js";
import { readTools, toolsOf } from "./tools.js";

export class Signs {
  /** @param {function(): void} open opens the settings */
  constructor(chat, open) {
    this.chat = chat;
    byId("signs").addEventListener("click", open);
    for (const name of ["settings", "engine"]) chat.addEventListener(name, () => this.update());
    this.update();
  }

  update() {
    const { settings, engine } = this.chat;
    const faults = findFaults(settings, engine);
    const texts = faults.length ? faults : describe(settings, engine);
    const button = byId("signs");
    button.hidden = !texts.length;
    button.textContent = texts.join(" · ");
    button.classList.toggle("wrong", faults.length > 0);
    button.title = texts.length ? "Settings of this conversation" : "";
  }
}

function describe(settings, engine) {
  const signs = [];
  if (engine?.chat !== false && settings.system?.trim()) signs.push("System prompt");
  const count = takesTools(engine) ? toolsOf(settings).length : 0;
  if (count) signs.push(count === 1 ? "1 tool" : `${count} tools`);
  for (const { name, label } of NUMBERS) {
    if (typeof settings[name] === "number") signs.push(`${label} ${settings[name]}`);
  }
  return signs;
}

function findFaults(settings, engine) {
  const numbers = NUMBERS.filter((number) => faultOf(number, settings[number.name], engine));
  const faults = numbers.map(({ label, name }) => `${label} “${String(settings[name]).slice(0, 20)}” is not used`);
  if (takesTools(engine) && readTools(settings.tools, settings.builtIn).error) faults.push("Your tools are not sent: they have a mistake");
  return faults;
}

const takesTools = (engine) => engine?.chat !== false && engine?.tools !== false;
