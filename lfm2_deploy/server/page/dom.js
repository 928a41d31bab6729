// Building DOM nodes. Text is only ever set as text: nothing here parses HTML.

/**
 * Make an element.
 *
 * @param {string} tag
 * @param {Object} [props] attributes; `class`, `text`, and listeners as `onclick` and the like.
 *   false, null and undefined leave an attribute out.
 * @param {...(Node|string|null|false)} children
 * @returns {HTMLElement}
 */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "text") node.textContent = value;
    else if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children) if (child !== null && child !== false) node.append(child);
  return node;
}

/** @returns {HTMLElement} the element with this id, which index.html has. */
export const byId = (id) => document.getElementById(id);

// 24 x 24, drawn with strokes.
const PATHS = {
  menu: "M4 7h16M4 12h16M4 17h16",
  settings: "M4 7h9M19 7h1M4 17h1M11 17h9M16 4.5v5M8 14.5v5",
  system: "M4 5h16v11H4zM9 20h6M12 16v4",
  light: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.4 1.4M17.6 17.6 19 19M5 19l1.4-1.4M17.6 6.4 19 5",
  dark: "M20 14.5A8.5 8.5 0 0 1 9.5 4 8.5 8.5 0 1 0 20 14.5z",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  down: "M12 5v14M6 13l6 6 6-6",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  done: "M5 13l4 4L19 7",
  again: "M20 11a8 8 0 1 0-2.3 6.3M20 5v6h-6",
  edit: "M4 20h4L19 9l-4-4L4 16zM13.5 6.5l4 4",
  remove: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  save: "M12 4v11M7 10.5l5 5 5-5M5 20h14",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  close: "M6 6l12 12M18 6 6 18",
  tool: "M14.5 6.5a4 4 0 0 0-5.3 5.2L4 17l3 3 5.3-5.2a4 4 0 0 0 5.2-5.3L15 12l-3-3z",
};

/** @returns {SVGElement} a drawing that takes the colour of the text around it. */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(space, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

/** @returns {HTMLButtonElement} a button that is a drawing, with a name for those who hear it. */
export function iconButton(name, label, onclick, props = {}) {
  const shown = { class: "icon", type: "button", "aria-label": label, title: label };
  return el("button", { ...shown, onclick, ...props }, icon(name));
}

/** Copy text, and show on the button that it was copied. */
export async function copyText(text, button) {
  const done = await writeClipboard(text);
  const before = [...button.childNodes];
  button.replaceChildren(done ? icon("done") : icon("close"));
  button.classList.add("told");
  setTimeout(() => {
    button.replaceChildren(...before);
    button.classList.remove("told");
  }, 1500);
}

async function writeClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text);
  }
}

// Outside of localhost and https browsers have no navigator.clipboard.
function copyBySelection(text) {
  const focused = document.activeElement;
  const area = el("textarea", { class: "unseen" });
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return done;
}

/** Put the focus where a message is: the button that had it is gone. */
export function focusMessage(id) {
  document.querySelector(`[data-node="${id}"]`)?.focus({ preventScroll: true });
}

/** Let a text area be as high as its text; style.css bounds it. */
export function fitHeight(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}
