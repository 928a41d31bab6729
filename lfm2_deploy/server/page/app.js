// Puts the page together.

import { Announcer } from "./announcer.js";
import { setKey } from "./api.js";
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { byId } from "./dom.js";
import { bindFacts, bindTheme, showEngine } from "./header.js";
import { offerUndo, tellLost, watchStorage } from "./notices.js";
import { Settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { Signs } from "./signs.js";
import { Store } from "./store.js";
import { Thread } from "./thread.js";

const store = new Store();
const chat = new Chat(store);

bindTheme();
bindFacts();
watchStorage(store);
tellLost(chat);
chat.addEventListener("engine", () => showEngine(chat));
const composer = new Composer(chat);
const thread = new Thread(chat);
const settings = new Settings(chat);
new Signs(chat, () => settings.open());
new Sidebar(chat, offerUndo);
new Announcer(chat);
bindKey();

// The address names the conversation, so a reload shows it again.
chat.addEventListener("list", () => {
  const kept = store.conversations.has(chat.conversation.id);
  history.replaceState(null, "", kept ? `#${chat.conversation.id}` : location.pathname + location.search);
});
window.addEventListener("hashchange", () => chat.open(location.hash.slice(1)));
window.addEventListener("beforeunload", () => chat.leave(false));
window.addEventListener("pagehide", () => chat.leave(true));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) chat.stop();
});

chat.open(location.hash.slice(1));
thread.scrollToEnd();
composer.focus();
chat.connect();

// Ask for the server's key, then go on with what it was asked for.
function bindKey() {
  const dialog = byId("key");
  let goOn = () => {};
  chat.addEventListener("key", (event) => {
    goOn = event.detail;
    if (!dialog.open) dialog.showModal();
  });
  byId("key-cancel").addEventListener("click", () => dialog.close());
  dialog.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    setKey(byId("key-input").value);
    byId("key-input").value = "";
    dialog.close();
    goOn();
    if (!chat.engine) chat.connect();
  });
}
