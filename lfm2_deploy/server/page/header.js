// What answers and where it runs; and light or dark.

import { byId, el, icon } from "./dom.js";

export function showEngine(chat) {
  const { engine, offline } = chat;
  byId("dot").className = offline ? "gone" : engine ? "there" : "";
  byId("model").textContent = engine?.model ?? (offline ? "No server" : "Connecting…");
  byId("device").textContent = offline ? "gone; retries by itself" : [engine?.device, engine?.precision].filter(Boolean).join(" · ");
  document.body.classList.toggle("continues", engine?.chat === false);
  document.title = engine ? `${engine.model} · lfm2-deploy` : "lfm2-deploy";
  byId("facts").replaceChildren(...(engine ? facts(engine) : []));
}

function facts(engine) {
  const context = engine.contextLength && `${engine.contextLength.toLocaleString("en")} tokens`;
  const rows = [
    ["Model", engine.model],
    ["Device", engine.device],
    ["Runtime", engine.runtime],
    ["Driver", engine.driver],
    ["Precision", engine.precision],
    ["Context", context],
    ...engine.notes.map((note) => ["Note", String(note)]),
  ];
  return rows.filter(([, value]) => value).flatMap(([name, value]) => [el("dt", { text: name }), el("dd", { text: value })]);
}

/** Let the theme's button go round; theme.js has the choice. */
export function bindTheme() {
  const button = byId("theme");
  const draw = () => {
    const name = window.lfm2Theme.choice;
    button.replaceChildren(icon(name));
    const label = `Theme: ${name === "system" ? "as the system" : name}`;
    button.setAttribute("aria-label", label);
    button.title = label;
  };
  button.addEventListener("click", () => window.lfm2Theme.next());
  window.addEventListener("lfm2-theme", draw);
  draw();
}

/** Close the engine's facts by a click elsewhere or by Escape. */
export function bindFacts() {
  const details = byId("engine");
  document.addEventListener("click", (event) => {
    if (!details.contains(event.target)) details.open = false;
  });
  details.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !details.open) return;
    event.stopPropagation();
    details.open = false;
    details.firstElementChild.focus();
  });
}
