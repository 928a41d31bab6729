// Answers for those who hear the page: sentence by sentence, not token by token.

import { byId, el } from "./dom.js";
import { numbersOf } from "./answer.js";

const MOST = 30; // sentences kept in the log
const SENTENCE_END = /[.!?:](?=\s)|\n/g;

export class Announcer {
  constructor(chat) {
    this.root = byId("announcer");
    this.node = null;
    this.told = 0;
    chat.addEventListener("node", (event) => this.#hear(event.detail, chat));
  }

  /** Say this when the voice is free. */
  say(text) {
    this.root.append(el("p", { text }));
    while (this.root.children.length > MOST) this.root.firstChild.remove();
  }

  #hear(node, chat) {
    if (node.id !== this.node?.id) {
      if (!(node.id in chat.conversation.nodes)) return; // of another conversation
      this.node = node;
      this.told = 0;
      this.done = false;
    }
    this.#sayText(node);
    if (node.state === "running" || this.done) return;
    this.done = true;
    for (const call of node.calls) this.say(`The model calls ${call.name}.`);
    this.say(node.error?.message ?? `End of the answer. ${numbersOf(node, chat.engine?.contextLength).join(", ")}`);
  }

  #sayText(node) {
    const rest = node.content.slice(this.told);
    const ends = [...rest.matchAll(SENTENCE_END)];
    const length = node.state === "running" ? (ends.at(-1)?.index ?? -1) + 1 : rest.length;
    const text = rest.slice(0, length).trim();
    this.told += length;
    if (text) this.say(text);
  }
}
