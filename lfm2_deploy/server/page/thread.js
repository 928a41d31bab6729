// The messages that are shown, kept in step with the conversation, and scrolled along.

import { AnswerView } from "./answer.js";
import { byId, el, icon } from "./dom.js";
import { SaidView } from "./said.js";
import { shownNodes } from "./tree.js";

const NEAR_END_PX = 60;
const EXAMPLES = {
  chat: [
    "Explain in three sentences why the sky is blue.",
    "Write a short, friendly note that moves a meeting to Thursday.",
    "Compare tea and coffee in a small table.",
  ],
  text: [
    "Once upon a time, in a village by the sea,",
    "The three most important rules of writing are",
    "Dear Sir, I write to you today because",
  ],
};

export class Thread {
  constructor(chat) {
    this.chat = chat;
    this.root = byId("thread");
    this.scroller = byId("scroller");
    this.down = byId("down");
    this.down.append(icon("down"));
    this.down.addEventListener("click", () => this.scrollToEnd());
    this.follows = true; // the end, as it moves
    this.top = 0;
    this.views = new Map();
    this.waiting = false;
    this.scroller.addEventListener("scroll", () => this.#look(), { passive: true });
    new ResizeObserver(() => this.#keepUp()).observe(this.root);
    new ResizeObserver(() => this.#keepUp()).observe(this.scroller);
    chat.addEventListener("thread", () => this.render());
    chat.addEventListener("node", () => this.#renderSoon());
    chat.addEventListener("engine", () => this.render());
  }

  /** Show the nodes of the conversation that are to be shown. */
  render() {
    const conversation = this.chat.conversation;
    if (conversation !== this.conversation) {
      this.views.clear();
      this.conversation = conversation;
      this.follows = true;
    }
    const nodes = shownNodes(conversation);
    const shown = nodes.filter((node) => node.role !== "tool");
    const elements = shown.map((node) => this.#viewOf(node).element);
    this.#place(nodes.length ? elements : [this.#welcome()]);
    this.#update(nodes);
  }

  scrollToEnd() {
    this.follows = true;
    this.#keepUp();
  }

  #viewOf(node) {
    if (!this.views.has(node.id)) {
      const View = node.role === "user" ? SaidView : AnswerView;
      this.views.set(node.id, new View(this.chat, node));
    }
    return this.views.get(node.id);
  }

  // Only what differs is moved: an element that stays keeps its focus and its selection.
  #place(elements) {
    elements.forEach((element, at) => {
      if (this.root.children[at] !== element) this.root.insertBefore(element, this.root.children[at] ?? null);
    });
    while (this.root.children.length > elements.length) this.root.lastChild.remove();
  }

  #update(nodes) {
    nodes.forEach((node, at) => {
      if (node.role !== "tool") this.views.get(node.id).update(nodes[at + 1]);
    });
  }

  // At most once a frame, however fast the tokens come.
  #renderSoon() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.#renderEnd();
    });
  }

  // While an answer comes, nothing above it changes.
  #renderEnd() {
    const nodes = shownNodes(this.chat.conversation);
    const at = nodes.findLastIndex((node) => node.role === "assistant");
    this.views.get(nodes[at]?.id)?.update(nodes[at + 1]);
  }

  #look() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    // New messages may be there already while the scrolling to the ones before is told.
    if (scrollHeight - scrollTop - clientHeight < NEAR_END_PX) this.follows = true;
    else if (scrollTop < this.top) this.follows = false;
    this.top = scrollTop;
    this.down.hidden = this.follows;
  }

  #keepUp() {
    if (this.follows) this.scroller.scrollTop = this.scroller.scrollHeight;
    this.#look();
  }

  #welcome() {
    const { engine } = this.chat;
    const writes = engine?.chat === false;
    const about = writes
      ? "This is a base model: it does not chat, it continues what you write."
      : "What you write goes to this server and nowhere else; conversations stay in this browser.";
    const examples = EXAMPLES[writes ? "text" : "chat"].map((text) =>
      el("button", { type: "button", text, onclick: () => this.chat.send(text) }),
    );
    const title = writes ? "Begin a text" : "What is on your mind?";
    return el("section", { class: "welcome" }, el("h1", { text: title }), el("p", { text: `You talk to ${engine?.model ?? "a model"}. ${about}` }), el("div", { class: "examples" }, ...examples));
  }
}
