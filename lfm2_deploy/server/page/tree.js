// A conversation as a tree: what is regenerated or edited becomes a sibling, nothing is replaced.
//
// Enters: a conversation (plain data, as it is stored). Leaves: the same, changed in place.
// Knows nothing of the page, the server or the storage.

export const ROOT = "root";
const ROLES = ["user", "assistant", "tool"];

/** @returns {string} an id that no other node or conversation has. */
export function newId() {
  // crypto.randomUUID is missing where the page comes over plain http from another machine.
  const bytes = crypto.getRandomValues(new Uint8Array(9));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** @returns {Object} an empty conversation. */
export function newConversation(settings) {
  const now = Date.now();
  const root = { id: ROOT, parent: null, children: [], chosen: null };
  return { version: 1, id: newId(), title: "", created: now, changed: now, settings, nodes: { [ROOT]: root } };
}

/** Add a node after `parent`, beside those that are there, and show it. @returns {Object} it. */
export function addNode(conversation, parent, fields) {
  const node = { ...fields, id: newId(), parent, children: [], chosen: null, at: Date.now(), rev: 0 };
  conversation.nodes[node.id] = node;
  conversation.nodes[parent].children.push(node.id);
  conversation.nodes[parent].chosen = node.id;
  conversation.changed = node.at;
  return node;
}

/** @returns {boolean} whether this copy of a node was written later than the other. */
export const isNewer = (node, other) => (node.rev ?? 0) > (other.rev ?? 0);

/** Change a field of the whole conversation, so that other tabs take it over. */
export function setField(conversation, name, value) {
  conversation[name] = value;
  conversation.edited = { ...conversation.edited, [name]: Date.now() };
}

/** @returns {Object[]} the nodes that are shown, first to last. */
export function shownNodes(conversation) {
  const nodes = [];
  let id = conversation.nodes[ROOT].chosen;
  while (id) {
    nodes.push(conversation.nodes[id]);
    id = conversation.nodes[id].chosen;
  }
  return nodes;
}

/** @returns {Object[]} the nodes from the first one to `id`, which is the last of them. */
export function nodesUpTo(conversation, id) {
  const nodes = [];
  while (id !== ROOT) {
    nodes.unshift(conversation.nodes[id]);
    id = conversation.nodes[id].parent;
  }
  return nodes;
}

/** @returns {string} the id after which a new message comes. */
export const leafId = (conversation) => shownNodes(conversation).at(-1)?.id ?? ROOT;

/** @returns {{ids: string[], index: number}} a node and those beside it. */
export function siblingsOf(conversation, node) {
  const ids = conversation.nodes[node.parent].children;
  return { ids, index: ids.indexOf(node.id) };
}

/** Show a node and, below it, what was shown there last. */
export function chooseNode(conversation, id) {
  conversation.nodes[conversation.nodes[id].parent].chosen = id;
}

/** @returns {string} a title from the first words of a message. */
export function titleFrom(text) {
  const line = text.trim().split("\n", 1)[0].slice(0, 200);
  return line.length > 48 ? `${line.slice(0, 46).trimEnd()}…` : line;
}

/** @returns {boolean} whether this is a conversation: what is stored may come from anywhere. */
export function isConversation(value) {
  if (value?.version !== 1 || typeof value.id !== "string" || typeof value.title !== "string") return false;
  const nodes = value.nodes;
  if (!nodes?.[ROOT] || typeof value.settings !== "object" || value.settings === null) return false;
  const count = Object.keys(nodes).length;
  let seen = 0;
  const waiting = [ROOT];
  while (waiting.length) {
    const id = waiting.pop();
    const node = nodes[id];
    if (++seen > count || !isNode(id, node)) return false;
    if (node.children.some((child) => nodes[child]?.parent !== id)) return false;
    waiting.push(...node.children);
  }
  return true;
}

function isNode(id, node) {
  if (node?.id !== id || !Array.isArray(node.children)) return false;
  if (node.chosen !== null && !node.children.includes(node.chosen)) return false;
  if (id === ROOT) return true;
  if (node.role === "tool") return Array.isArray(node.results);
  return ROLES.includes(node.role) && typeof node.content === "string";
}
