// One answer: the server's events are gathered in a node, with the times that the page measures.

import { streamChat, streamCompletion } from "./api.js";
import { toMessages, toText } from "./messages.js";
import { toolsOf } from "./tools.js";

/**
 * Fill a node with the answer to those before it.
 *
 * @param {Object} node gets content, reasoning, calls, finish, usage, and times in seconds:
 *   firstToken, thought; rate in tokens/s, and `rateEstimated` where the page counted.
 * @param {Object[]} before see `nodesUpTo`
 * @yields {void} after each change
 */
export async function* answerNode(node, before, engine, settings, signal) {
  const began = performance.now();
  let first = null;
  let pieces = 0; // nearly the number of tokens
  for await (const event of askFor(before, engine, settings, signal)) {
    const now = performance.now();
    if (["text", "reasoning", "call"].includes(event.kind)) {
      first ??= now;
      pieces += 1;
      node.firstToken = (first - began) / 1000;
      if (!node.content && !node.calls.length && node.reasoning) node.thought = (now - first) / 1000;
      if (pieces > 1 && now > first) node.rate = ((pieces - 1) * 1000) / (now - first);
      node.rateEstimated = true;
    }
    gather(node, event);
    yield;
  }
}

function askFor(before, engine, settings, signal) {
  const model = engine?.model ?? "";
  if (engine?.chat === false) return streamCompletion(model, toText(before), settings, signal);
  const tools = engine?.tools === false ? [] : toolsOf(settings);
  return streamChat(model, toMessages(before, settings.system), settings, tools, signal);
}

function gather(node, event) {
  if (event.kind === "text") node.content += event.text;
  else if (event.kind === "reasoning") node.reasoning += event.text;
  else if (event.kind === "finish") node.finish = event.reason;
  else if (event.kind === "call") gatherCall(node.calls, event);
  else {
    node.usage = event.usage;
    node.rate = event.usage.tokensPerSecond ?? node.rate;
    node.rateEstimated = event.usage.tokensPerSecond === null;
  }
}

function gatherCall(calls, event) {
  calls[event.index] ??= { id: "", name: "", arguments: "" };
  const call = calls[event.index];
  call.id ||= event.id || `call_${event.index}`;
  call.name += event.name;
  call.arguments += event.arguments;
}
