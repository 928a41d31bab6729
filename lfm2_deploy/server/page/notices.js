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
  const line = offer(text, "Undo", undo);
  setTimeout(() => line.remove(), UNDO_MS);
}

/** Say it where another tab deletes what is shown or answered here, and offer to keep it. */
export function tellLost(chat) {
  chat.addEventListener("open", dropOffer);
  chat.addEventListener("lost", ({ detail: conversation }) => {
    offer(`“${conversation.title}” was deleted in another tab.`, "Keep it", () => chat.restore(conversation));
  });
  chat.addEventListener("found", dropOffer);
}

// One at a time; it is about what was there before another conversation is opened.
function offer(text, label, act) {
  dropOffer();
  const button = el("button", { class: "quiet", type: "button", text: label });
  const line = notice(text, button);
  line.classList.add("offer");
  button.addEventListener("click", () => {
    line.remove();
    act();
    byId("input").focus();
  });
  return line;
}

const dropOffer = () => document.querySelector(".notice.offer")?.remove();

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
