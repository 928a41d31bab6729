// Conversations in localStorage, one key each, so that two tabs do not overwrite each other's.
//
// Storage may be blocked or full: then the page works on in memory and says so.

import { isConversation } from "./tree.js";

const PREFIX = "lfm2.conversation.";
const SETTINGS = "lfm2.settings";

export class Store extends EventTarget {
  constructor() {
    super();
    /** @type {Map<string, Object>} */
    this.conversations = new Map();
    this.storage = openStorage();
    /** null, "blocked" or "full" */
    this.trouble = this.storage ? null : "blocked";
    for (const name of this.storage ? Object.keys(this.storage) : []) this.#read(name);
    window.addEventListener("storage", (event) => this.#hear(event));
  }

  /** @returns {Object[]} newest first. */
  list() {
    return [...this.conversations.values()].sort((a, b) => b.changed - a.changed);
  }

  /** Keep a conversation. One without messages is not worth keeping. */
  save(conversation) {
    this.conversations.set(conversation.id, conversation);
    this.#write(PREFIX + conversation.id, conversation);
  }

  remove(id) {
    this.conversations.delete(id);
    this.storage?.removeItem(PREFIX + id);
    if (this.trouble === "full") this.#tell(null);
  }

  /** @returns {Object} the settings that a new conversation begins with. */
  get settings() {
    const kept = parse(this.storage?.getItem(SETTINGS));
    return typeof kept === "object" && kept !== null ? kept : {};
  }

  set settings(settings) {
    this.#write(SETTINGS, settings);
  }

  #write(name, value) {
    if (!this.storage) return;
    try {
      this.storage.setItem(name, JSON.stringify(value));
      if (this.trouble) this.#tell(null);
    } catch {
      this.#tell("full");
    }
  }

  #tell(trouble) {
    this.trouble = trouble;
    this.dispatchEvent(new Event("trouble"));
  }

  #read(name) {
    if (!name.startsWith(PREFIX)) return;
    const value = parse(this.storage.getItem(name));
    if (!isConversation(value) || PREFIX + value.id !== name) return;
    for (const node of Object.values(value.nodes)) {
      if (node.state === "running") node.state = "stopped"; // by closing the page
    }
    this.conversations.set(value.id, value);
  }

  // Another tab wrote.
  #hear(event) {
    if (event.storageArea !== this.storage || !event.key?.startsWith(PREFIX)) return;
    const id = event.key.slice(PREFIX.length);
    if (event.newValue === null) this.conversations.delete(id);
    else this.#read(event.key);
    this.dispatchEvent(new CustomEvent("elsewhere", { detail: id }));
  }
}

function openStorage() {
  try {
    const probe = "lfm2.probe";
    localStorage.setItem(probe, "");
    localStorage.removeItem(probe);
    return localStorage;
  } catch (error) {
    // A full storage can still be read and emptied.
    return error.name === "QuotaExceededError" ? localStorage : null;
  }
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // not ours, or cut
  }
}
