// What the page does: sends, stops, regenerates, edits, runs tools. Knows no DOM.
//
// Tells by events: "engine" (known, or gone), "open" (another conversation), "thread" (other nodes
// are shown), "node" (its `detail` has changed), "list" (of conversations), "settings", "lost"
// (`detail` was deleted in another tab) and "found", "key" (one is asked for; `detail` goes on).

import { ApiError, isHealthy, readEngine } from "./api.js";
import { answerNode } from "./answering.js";
import { Tabs } from "./tabs.js";
import { isCut, runTool } from "./tools.js";
import { ROOT, addNode, chooseNode, leafId, newConversation, nodesUpTo, setField, shownNodes, titleFrom } from "./tree.js";

const MOST_ROUNDS = 6; // of tools that run by themselves, after one message of the user
const SAVE_MS = 2000; // while an answer comes
const TOO_LONG = "This message is too long for the model's context. Edit it to shorten it.";
const ASK_AGAIN_MS = 2000; // whether the server is back, and whether another tab still answers

export class Chat extends EventTarget {
  constructor(store) {
    super();
    this.store = store;
    this.engine = null;
    this.offline = false;
    this.leaving = false;
    /** Answers that come, by conversation. @type {Map<string, {node: Object, control: AbortController}>} */
    this.runs = new Map();
    this.conversation = newConversation(store.beginning);
    this.lostId = null; // of the conversation that another tab deleted
    this.watched = new Set(); // ids of nodes that other tabs write
    this.tabs = new Tabs((id) => store.own.has(id), (id) => this.#stopNode(id));
    store.addEventListener("elsewhere", (event) => this.#follow(event.detail));
    store.addEventListener("deleted", (event) => this.#lose(event.detail));
    for (const conversation of store.conversations.values()) this.#watch(conversation);
  }

  /** Whether an answer comes in the conversation that is shown, here or in another tab. */
  get running() {
    return this.runs.has(this.conversation.id) || this.#shownElsewhere() !== undefined;
  }

  get settings() {
    return this.conversation.settings;
  }

  /** Ask what the server runs, now and, where it is gone, until it is back. */
  async connect() {
    try {
      this.engine = await readEngine();
      this.#setOffline(false);
      this.#tell("engine");
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (error.kind === "key") this.#tell("key", () => this.connect());
      else this.#setOffline(true);
    }
  }

  /** Show a conversation; a new one where there is none of this id. */
  open(id) {
    const hasBegun = this.conversation.nodes[ROOT].children.length > 0;
    const begin = () => (hasBegun ? newConversation(this.store.beginning) : this.conversation);
    this.conversation = this.store.conversations.get(id) ?? begin();
    for (const name of ["open", "thread", "list", "settings"]) this.#tell(name);
  }

  rename(id, title) {
    const conversation = this.store.conversations.get(id);
    if (conversation && title.trim()) {
      setField(conversation, "title", title.trim());
      this.store.save(conversation);
    }
    this.#tell("list");
  }

  /** @returns {function(): void} takes it back. */
  remove(id) {
    const conversation = this.store.conversations.get(id);
    this.store.remove(id); // first: what the answer still saves is for nothing
    this.runs.get(id)?.control.abort();
    if (this.conversation.id === id) this.open(null);
    else this.#tell("list");
    return () => this.restore(conversation);
  }

  /** Keep a conversation that was deleted, here or in another tab. */
  restore(conversation) {
    this.#find(conversation);
    this.open(conversation.id);
  }

  /** Change this conversation's settings. */
  changeSettings(changes) {
    setField(this.conversation, "settings", { ...this.settings, ...changes });
    if (this.conversation.nodes[ROOT].children.length) this.#save(this.conversation);
    else this.store.beginning = this.settings;
    this.#tell("settings");
  }

  /** Let new conversations begin with the settings of this one. */
  keepSettings() {
    this.store.settings = this.settings;
  }

  /** Say something and have it answered; an empty text has what is there continued. */
  send(text) {
    const conversation = this.conversation;
    if (!conversation.nodes[ROOT].children.length) this.store.beginning = null;
    if (!conversation.title) conversation.title = titleFrom(text) || "Untitled";
    const parent = leafId(conversation);
    return this.#answer(conversation, text ? addNode(conversation, parent, { role: "user", content: text }).id : parent);
  }

  stop() {
    const elsewhere = this.#shownElsewhere();
    if (elsewhere) this.tabs.stop(elsewhere.id);
    this.runs.get(this.conversation.id)?.control.abort();
  }

  /** Answer once more, beside the answer that is there. */
  regenerate(node) {
    return this.#answer(this.conversation, node.parent);
  }

  /** Try again what failed; where nothing had come, nothing of it is kept. */
  retry(node) {
    return isEmpty(node) ? this.#answer(this.conversation, node.parent, node) : this.regenerate(node);
  }

  /** Say something else instead, beside what was said. */
  edit(node, text) {
    const edited = addNode(this.conversation, node.parent, { role: "user", content: text });
    return this.#answer(this.conversation, edited.id);
  }

  /** Tell the model what its calls of tools gave. @param {Object[]} results {id, name, content} */
  giveResults(node, results, automatic = false, conversation = this.conversation) {
    const given = addNode(conversation, node.id, { role: "tool", results, automatic });
    return this.#answer(conversation, given.id);
  }

  /** Show another version of a message. */
  choose(id) {
    chooseNode(this.conversation, id);
    this.#save(this.conversation);
    this.#tell("thread");
  }

  /** Whether another tab writes this answer. */
  isElsewhere(node) {
    return node.state === "running" && !this.store.own.has(node.id);
  }

  /** Keep all that has come so far: the page may close, which breaks connections off. */
  leave(forSure) {
    this.leaving = true;
    for (const [id, { node }] of this.runs) {
      if (forSure) node.state = "stopped"; // and other tabs know
      this.#saveNode(this.store.conversations.get(id), node);
    }
  }

  async #answer(conversation, parent, again = null) {
    this.runs.get(conversation.id)?.control.abort();
    this.leaving = false; // it stayed
    // Who goes on with a conversation wants it.
    if (this.lostId === conversation.id && !conversation.nodes[parent].automatic) this.#find(conversation);
    const fields = { role: "assistant", content: "", reasoning: "", calls: [], state: "running" };
    const node = again ?? addNode(conversation, parent, fields);
    Object.assign(node, fields, { error: null, limit: conversation.settings.maxTokens ?? this.engine?.maxTokens ?? null });
    const run = { node, control: new AbortController() };
    this.runs.set(conversation.id, run);
    this.store.own.add(node.id);
    this.#saveNode(conversation, node);
    this.#tell("thread");
    this.#tell("list");
    await this.#receive(conversation, run);
    if (this.runs.get(conversation.id) === run) this.runs.delete(conversation.id);
    this.#saveNode(conversation, node);
    this.store.own.delete(node.id);
    this.#tell("node", node);
    if (node.state === "done") await this.#runTools(conversation, node);
  }

  async #receive(conversation, { node, control }) {
    let savedAt = performance.now();
    try {
      const before = nodesUpTo(conversation, node.parent);
      for await (const _ of answerNode(node, before, this.engine, conversation.settings, control.signal)) {
        this.#tell("node", node);
        if (performance.now() - savedAt > SAVE_MS) {
          this.#saveNode(conversation, node);
          savedAt = performance.now();
        }
      }
      node.state = "done";
    } catch (error) {
      this.#fail(conversation, node, error, control.signal.aborted);
    }
  }

  #fail(conversation, node, error, stopped) {
    node.state = stopped || this.leaving ? "stopped" : "failed";
    if (node.state === "stopped") return;
    if (!(error instanceof ApiError)) console.error(error); // a fault of the page
    const isFirst = nodesUpTo(conversation, node.parent).length === 1;
    const message = error.kind === "context" && isFirst ? TOO_LONG : error.message;
    node.error = { kind: error.kind ?? "broken", message };
    if (error.kind === "offline") this.#setOffline(true);
    if (error.kind === "key") this.#tell("key", () => this.retry(node));
    if (error.kind === "model") this.connect();
  }

  // Tools of the page run by themselves; where one is the user's, the user answers all.
  async #runTools(conversation, node) {
    if (node.calls.some((call) => isCut(node, call))) return;
    const enabled = conversation.settings.builtIn ?? [];
    const results = node.calls.map((call) => ({ id: call.id, name: call.name, content: runTool(call, enabled) }));
    if (!results.length || results.some((result) => result.content === null)) return;
    const nodes = nodesUpTo(conversation, node.id);
    const said = nodes.findLastIndex((one) => one.role === "user");
    if (nodes.slice(said).filter((one) => one.role === "tool").length >= MOST_ROUNDS) return;
    await this.giveResults(node, results, true, conversation);
  }

  #setOffline(offline) {
    if (this.offline === offline) return;
    this.offline = offline;
    this.#tell("engine");
    if (offline) this.#askAgain();
  }

  async #askAgain() {
    await new Promise((go) => setTimeout(go, ASK_AGAIN_MS));
    if (await isHealthy()) {
      this.offline = false;
      await this.connect();
      this.#tell("engine");
    } else this.#askAgain();
  }

  #save(conversation) {
    if (conversation?.nodes[ROOT].children.length) this.store.save(conversation);
  }

  #saveNode(conversation, node) {
    node.rev = (node.rev ?? 0) + 1;
    this.#save(conversation);
  }

  #stopNode(id) {
    for (const { node, control } of this.runs.values()) if (node.id === id) control.abort();
  }

  #shownElsewhere() {
    return shownNodes(this.conversation).find((node) => this.isElsewhere(node));
  }

  #find(conversation) {
    this.lostId = null;
    this.store.restore(conversation);
    this.#tell("found");
  }

  // Another tab changed a conversation.
  #follow(id) {
    if (this.lostId === id) this.#tell("found");
    this.#watch(this.store.conversations.get(id));
    if (id === this.conversation.id) {
      this.#tell("thread");
      this.#tell("settings");
    }
    this.#tell("list");
  }

  // Another tab deleted a conversation; what is shown stays, and an answer comes to its end.
  #lose(id) {
    const shown = this.conversation.id === id;
    if (shown || this.runs.has(id)) {
      this.lostId = id;
      this.#tell("lost", this.store.gone.get(id));
    }
    this.#tell("list");
  }

  #watch(conversation) {
    for (const node of Object.values(conversation?.nodes ?? {})) {
      if (this.isElsewhere(node) && !this.watched.has(node.id)) this.#watchNode(conversation, node);
    }
  }

  // A tab that crashed says nothing any more: its answer has stopped.
  async #watchNode(conversation, node) {
    this.watched.add(node.id);
    while (this.isElsewhere(node) && (await this.tabs.isReceived(node.id))) {
      await new Promise((go) => setTimeout(go, ASK_AGAIN_MS));
    }
    this.watched.delete(node.id);
    if (!this.isElsewhere(node)) return;
    node.state = "stopped";
    this.#saveNode(conversation, node);
    this.#tell("thread");
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

const isEmpty = (node) => !node.content && !node.reasoning && !node.calls.length;
