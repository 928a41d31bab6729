// "‹ 2/3 ›": the versions of a message.

import { el, iconButton } from "./dom.js";
import { siblingsOf } from "./tree.js";

/** @returns {HTMLElement|null} null where there is one version only. */
export function branchSwitch(chat, node) {
  const { ids, index } = siblingsOf(chat.conversation, node);
  if (ids.length < 2) return null;
  const go = (step) => () => {
    chat.choose(ids[index + step]);
    focusSwitch(ids[index + step], step);
  };
  const count = el("span", { class: "count", "aria-hidden": "true", text: `${index + 1}/${ids.length}` });
  const spoken = el("span", { class: "unseen", text: `Version ${index + 1} of ${ids.length}` });
  const left = iconButton("left", "Previous version", go(-1), { disabled: index === 0 });
  const right = iconButton("right", "Next version", go(1), { disabled: index === ids.length - 1 });
  return el("span", { class: "branches", "data-version": node.id }, left, count, spoken, right);
}

// The buttons were drawn anew: whoever uses the keyboard goes on where he was.
function focusSwitch(id, step) {
  const [left, right] = document.querySelectorAll(`.branches[data-version="${id}"] button`);
  const [wanted, other] = step < 0 ? [left, right] : [right, left];
  (wanted?.disabled ? other : wanted)?.focus();
}
