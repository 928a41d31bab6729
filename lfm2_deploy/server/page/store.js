// Conversations in localStorage, one key each; what two tabs write of one is merged.
//
// A conversation that was deleted leaves a mark, so that no other tab writes it again.
// Tells by events: "elsewhere" and "deleted" (by another tab; `detail` is the id), "trouble":
// storage may be blocked or full, and then the page works on in memory.

import { merge } from "./merge.js";
import { isConversation } from "./tree.js";

const PREFIX = "lfm2.conversation.";
const DELETED = "lfm2.deleted.";
const SETTINGS = "lfm2.settings";
const BEGINNING = "lfm2.beginning"; // settings of the conversation that has not begun
const MARK_MS = 30 * 24 * 3600 * 1000; // no tab stays open for longer

export class Store extends EventTarget {
  constructor() {
    super();
    /** @type {Map<string, Object>} */
    this.conversations = new Map();
    /** Ids of nodes that this tab writes. @type {Set<string>} */
    this.own = new Set();
    this.deleted = new Set();
    this.gone = new Map(); // what this tab knew of those that other tabs deleted
    this.storage = openStorage();
    /** null, "blocked" or "full" */
    this.trouble = this.storage ? null : "blocked";
    const names = this.storage ? Object.keys(this.storage) : [];
    for (const name of names) if (name.startsWith(DELETED)) this.#forget(name);
    for (const name of names) if (name.startsWith(PREFIX)) this.#read(name.slice(PREFIX.length));
    window.addEventListener("storage", (event) => this.#hear(event));
  }

  /** @returns {Object[]} newest first. */
  list() {
    return [...this.conversations.values()].sort((a, b) => b.changed - a.changed);
  }

  /** Keep a conversation, unless it was deleted. One without messages is not worth keeping. */
  save(conversation) {
    const { id } = conversation;
    if (this.isDeleted(id)) return;
    this.conversations.set(id, conversation);
    const kept = this.#parse(id);
    if (kept) merge(conversation, kept, this.own);
    this.#write(PREFIX + id, conversation);
  }

  remove(id) {
    this.deleted.add(id);
    this.conversations.delete(id);
    this.storage?.removeItem(PREFIX + id);
    this.#write(DELETED + id, Date.now());
    if (this.trouble === "full") this.#tell(null);
  }

  /** Keep a conversation although it was deleted. */
  restore(conversation) {
    this.deleted.delete(conversation.id);
    this.storage?.removeItem(DELETED + conversation.id);
    this.save(conversation);
  }

  isDeleted(id) {
    return this.deleted.has(id) || (this.storage?.getItem(DELETED + id) ?? null) !== null;
  }

  /** @returns {Object} the settings that new conversations begin with. */
  get settings() {
    return asObject(parse(this.storage?.getItem(SETTINGS)));
  }

  set settings(settings) {
    this.#write(SETTINGS, settings);
  }

  /** @returns {Object} those of the conversation that has not begun yet; a reload keeps them. */
  get beginning() {
    const kept = this.storage && parse(sessionStorage.getItem(BEGINNING));
    return kept ? asObject(kept) : this.settings;
  }

  set beginning(settings) {
    try {
      sessionStorage.setItem(BEGINNING, JSON.stringify(settings));
    } catch {
      // They hold until the page closes.
    }
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

  #parse(id) {
    const value = parse(this.storage?.getItem(PREFIX + id));
    return isConversation(value) && value.id === id ? value : null;
  }

  // @returns {boolean} whether this tab knows more than what is stored.
  #read(id) {
    const kept = this.isDeleted(id) ? null : this.#parse(id);
    if (!kept) return false;
    const mine = this.conversations.get(id) ?? this.gone.get(id) ?? kept;
    this.conversations.set(id, mine);
    return mine !== kept && merge(mine, kept, this.own);
  }

  // Of a mark that is old enough, or of a conversation that a full storage left behind.
  #forget(name) {
    const at = Number(this.storage.getItem(name));
    if (Date.now() - at > MARK_MS) this.storage.removeItem(name);
    else this.storage.removeItem(PREFIX + name.slice(DELETED.length));
  }

  // Another tab wrote.
  #hear({ storageArea, key, newValue }) {
    if (storageArea !== this.storage) return;
    if (key?.startsWith(DELETED) && newValue === null) this.deleted.delete(key.slice(DELETED.length));
    else if (key?.startsWith(DELETED)) this.#lose(key.slice(DELETED.length));
    if (!key?.startsWith(PREFIX)) return;
    const id = key.slice(PREFIX.length);
    if (newValue === null) {
      this.#lose(id); // a full storage takes no mark
      return;
    }
    // Both wrote at once: what the other had not heard of is written again.
    if (this.#read(id)) this.save(this.conversations.get(id));
    this.dispatchEvent(new CustomEvent("elsewhere", { detail: id }));
  }

  #lose(id) {
    const conversation = this.conversations.get(id);
    this.deleted.add(id);
    if (!conversation) return;
    this.gone.set(id, conversation);
    this.conversations.delete(id);
    this.dispatchEvent(new CustomEvent("deleted", { detail: id }));
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

const asObject = (value) => (typeof value === "object" && value !== null ? value : {});

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // not ours, or cut
  }
}
