// Nodes of a conversation as the messages that the server is sent.

import { isCut } from "./tools.js";

/**
 * @param {Object[]} nodes see `nodesUpTo`
 * @param {string} system the system prompt; none where it is blank
 * @returns {Object[]}
 */
export function toMessages(nodes, system) {
  const messages = system?.trim() ? [{ role: "system", content: system }] : [];
  nodes.forEach((node, at) => {
    if (node.role === "user") messages.push({ role: "user", content: node.content });
    else if (node.role === "tool") messages.push(...node.results.map(toResult));
    else messages.push(...fromAnswer(node, nodes[at + 1]));
  });
  return messages;
}

/** @returns {string} nodes as one text, for models that continue texts. */
export const toText = (nodes) => nodes.map((node) => node.content ?? "").join("");

const NONE = "No result was given.";

// Servers refuse what is no object.
function asObject(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === "object" && value !== null && !Array.isArray(value) ? text : "{}";
  } catch {
    return "{}";
  }
}

const toResult = ({ id, content }) => ({ role: "tool", tool_call_id: id, content: content ?? NONE });

function fromAnswer(node, next) {
  const calls = (node.calls ?? []).filter((call) => !isCut(node, call)); // a half is none
  if (!calls.length) return node.content ? [{ role: "assistant", content: node.content }] : [];
  const tool_calls = calls.map(({ id, name, arguments: text }) => ({ id, type: "function", function: { name, arguments: asObject(text) } }));
  const answer = { role: "assistant", content: node.content, tool_calls };
  if (next?.role === "tool") return [answer];
  // Servers expect a result for each call, but a user may go on without.
  return [answer, ...calls.map(({ id }) => toResult({ id, content: null }))];
}
