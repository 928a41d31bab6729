// Two copies of one conversation become one: tabs write the same conversation, each by what it knows.
//
// Nodes are only ever added. What changes in a node has one writer, which counts `rev` up; the
// title and the settings have the time of their last change in `edited`.

import { isNewer } from "./tree.js";

const FIELDS = ["title", "settings"];

/**
 * Bring into `mine`, in place, what `theirs` knows beyond it. What `mine` shows stays shown.
 *
 * @param {Object} theirs another copy, which is not used any more
 * @param {Set<string>} own ids of nodes that are being written here
 * @returns {boolean} whether `mine` knows something that `theirs` does not
 */
export function merge(mine, theirs, own) {
  let ahead = Object.keys(mine.nodes).some((id) => !(id in theirs.nodes));
  for (const node of Object.values(theirs.nodes)) ahead = mergeNode(mine, node, own) || ahead;
  joinChildren(mine);
  for (const name of FIELDS) {
    const [here, there] = [mine.edited?.[name] ?? 0, theirs.edited?.[name] ?? 0];
    if (here > there) ahead = true;
    if (there <= here) continue;
    mine[name] = theirs[name];
    mine.edited = { ...mine.edited, [name]: there };
  }
  mine.changed = Math.max(mine.changed, theirs.changed);
  return ahead;
}

function mergeNode(mine, node, own) {
  const here = mine.nodes[node.id];
  if (!here) {
    mine.nodes[node.id] = node;
    return false;
  }
  here.chosen ??= node.chosen;
  if (!isNewer(node, here)) return isNewer(here, node);
  if (own.has(node.id)) {
    here.rev = node.rev + 1; // another took its writer for dead
    return true;
  }
  const { children, chosen } = here;
  for (const name of Object.keys(here)) delete here[name];
  Object.assign(here, node, { children, chosen });
  return false;
}

function joinChildren(conversation) {
  const nodes = Object.values(conversation.nodes);
  for (const node of nodes) node.children = [];
  nodes.sort((a, b) => (a.at ?? 0) - (b.at ?? 0) || (a.id < b.id ? -1 : 1));
  for (const node of nodes) conversation.nodes[node.parent]?.children.push(node.id);
}
