// What the page does: sends, stops, regenerates, edits, runs tools. Knows no DOM.
//
// Tells by events: "engine" (known, or gone), "thread" (other nodes are shown), "node" (its
// `detail` has changed), "list" (of conversations), "key" (one is asked for; `detail` goes on).

import { ApiError, isHealthy, readEngine } from "./api.js";
import { answerNode } from "./answering.js";
import { runTool } from "./tools.js";
import { ROOT, addNode, chooseNode, leafId, newConversation, nodesUpTo, removeLeaf, titleFrom } from "./tree.js";

const MOST_ROUNDS = 6; // of tools that run by themselves, after one message of the user
const SAVE_MS = 2000; // while an answer comes
const ASK_AGAIN_MS = 2000; // whether the server is back

export class Chat extends EventTarget {
  constructor(store) {
    super();
    this.store = store;
    this.engine = null;
    this.offline = false;
    this.leaving = false;
    /** Answers that come, by conversation. @type {Map<string, {node: Object, control: AbortController}>} */
    this.runs = new Map();
    this.conversation = newConversation(store.settings);
    store.addEventListener("elsewhere", (event) => this.#follow(event.detail));
  }

  get running() {
    return this.runs.has(this.conversation.id);
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
    this.conversation = this.store.conversations.get(id) ?? newConversation(this.store.settings);
    this.#tell("thread");
    this.#tell("list");
  }

  rename(id, title) {
    const conversation = this.store.conversations.get(id);
    conversation.title = title.trim() || conversation.title;
    this.store.save(conversation);
    this.#tell("list");
  }

  /** @returns {function(): void} takes it back. */
  remove(id) {
    const conversation = this.store.conversations.get(id);
    this.runs.get(id)?.control.abort();
    this.store.remove(id);
    if (this.conversation.id === id) this.open(null);
    else this.#tell("list");
    return () => {
      this.store.save(conversation);
      this.open(id);
    };
  }

  changeSettings(changes) {
    this.conversation.settings = { ...this.settings, ...changes };
    this.store.settings = this.settings;
    this.#save(this.conversation);
  }

  /** Say something and have it answered; an empty text has what is there continued. */
  send(text) {
    const conversation = this.conversation;
    if (!conversation.title) conversation.title = titleFrom(text) || "Untitled";
    const parent = leafId(conversation);
    return this.#answer(conversation, text ? addNode(conversation, parent, { role: "user", content: text }).id : parent);
  }

  stop() {
    this.runs.get(this.conversation.id)?.control.abort();
  }

  /** Answer once more, beside the answer that is there. */
  regenerate(node) {
    return this.#answer(this.conversation, node.parent);
  }

  /** Try again what failed; where nothing had come, nothing of it is kept. */
  retry(node) {
    if (isEmpty(node)) removeLeaf(this.conversation, node);
    return this.regenerate(node);
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

  /** Keep all that has come so far: the page may close, which breaks connections off. */
  leave() {
    this.leaving = true;
    for (const id of this.runs.keys()) this.#save(this.store.conversations.get(id));
  }

  async #answer(conversation, parent) {
    this.runs.get(conversation.id)?.control.abort();
    this.leaving = false; // it stayed
    const fields = { role: "assistant", content: "", reasoning: "", calls: [], state: "running" };
    const node = addNode(conversation, parent, fields);
    const run = { node, control: new AbortController() };
    this.runs.set(conversation.id, run);
    this.#save(conversation);
    this.#tell("thread");
    this.#tell("list");
    await this.#receive(conversation, run);
    if (this.runs.get(conversation.id) === run) this.runs.delete(conversation.id);
    this.#save(conversation);
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
          this.#save(conversation);
          savedAt = performance.now();
        }
      }
      node.state = "done";
    } catch (error) {
      this.#fail(node, error, control.signal.aborted);
    }
  }

  #fail(node, error, stopped) {
    node.state = stopped || this.leaving ? "stopped" : "failed";
    if (node.state === "stopped") return;
    if (!(error instanceof ApiError)) console.error(error); // a fault of the page
    node.error = { kind: error.kind ?? "broken", message: error.message };
    if (error.kind === "offline") this.#setOffline(true);
    if (error.kind === "key") this.#tell("key", () => this.retry(node));
  }

  // Tools of the page run by themselves; where one is the user's, the user answers all.
  async #runTools(conversation, node) {
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

  // Another tab changed a conversation.
  #follow(id) {
    if (id === this.conversation.id && !this.running) this.open(id);
    else this.#tell("list");
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

const isEmpty = (node) => !node.content && !node.reasoning && !node.calls.length;
