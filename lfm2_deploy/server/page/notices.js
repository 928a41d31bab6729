// Lines above the message box: what the user should know, or can take back.

import { byId, el, iconButton } from "./dom.js";

const UNDO_MS = 10_000;
const STORAGE = {
  blocked: "This browser keeps no data for this page: conversations are lost when it closes.",
  full: "The browser's storage is full: what is new is lost when this page closes. Delete conversations, or export them first.",
};

/** Show a line that can be closed. @returns {HTMLElement} */
export function notice(text, ...more) {
  const close = iconButton("close", "Close", () => line.remove());
  const line = el("div", { class: "notice", role: "status" }, el("span", { text }), ...more, close);
  byId("notices").append(line);
  return line;
}

/** Offer for a while to take back what was done. */
export function offerUndo(text, undo) {
  document.querySelector(".notice.undo")?.remove();
  const button = el("button", { class: "quiet", type: "button", text: "Undo" });
  const line = notice(text, button);
  line.classList.add("undo");
  button.addEventListener("click", () => {
    undo();
    line.remove();
  });
  setTimeout(() => line.remove(), UNDO_MS);
}

/** Say it where conversations cannot be kept. */
export function watchStorage(store) {
  let line = null;
  const show = () => {
    line?.remove();
    line = store.trouble && notice(STORAGE[store.trouble]);
  };
  store.addEventListener("trouble", show);
  show();
}
