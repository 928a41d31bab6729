// What tabs of this page tell each other: whether an answer still comes somewhere, and to stop it.

const PATIENCE_MS = 1000; // a tab that is busy answers late

export class Tabs {
  /**
   * @param {function(string): boolean} isMine whether this tab receives the answer
   * @param {function(string): void} stop stops it, where it is this tab's
   */
  constructor(isMine, stop) {
    this.isMine = isMine;
    this.stopMine = stop;
    this.asked = new Map(); // by id, what is called when a tab says that it is its own
    this.channel = new BroadcastChannel("lfm2");
    this.channel.addEventListener("message", (event) => this.#hear(event.data));
  }

  /** @returns {Promise<boolean>} whether another tab receives the answer of this id. */
  isReceived(id) {
    return new Promise((tell) => {
      this.asked.set(id, () => tell(true));
      this.channel.postMessage({ kind: "whose", id });
      setTimeout(() => tell(false), PATIENCE_MS);
    });
  }

  /** Have the tab stop that receives this answer. */
  stop(id) {
    this.channel.postMessage({ kind: "stop", id });
  }

  #hear({ kind, id }) {
    if (kind === "whose" && this.isMine(id)) this.channel.postMessage({ kind: "mine", id });
    else if (kind === "mine") this.asked.get(id)?.();
    else if (kind === "stop") this.stopMine(id);
  }
}
