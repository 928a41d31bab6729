// The server's API. Every name of a field of it stands in this file and nowhere else.
//
// Enters: messages, settings, tools. Leaves: plain events, in the order of the stream:
//   {kind: "text" | "reasoning", text}
//   {kind: "call", index, id, name, arguments}    pieces of a call; join what has one index
//   {kind: "finish", reason}
//   {kind: "usage", usage: {promptTokens, completionTokens, reusedTokens, tokensPerSecond}}

import { tellRefusal } from "./refusals.js";
import { readEvents } from "./sse.js";

const KEY = "lfm2.api-key";
let key = readKey();

function readKey() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return ""; // storage is blocked
  }
}

/** Send this API key from now on; it is kept until the tab closes. */
export function setKey(value) {
  key = value;
  try {
    sessionStorage.setItem(KEY, value);
  } catch {
    // It holds until the page closes.
  }
}

/** What went wrong. `kind`: "offline", "busy", "key", "context", "model", "refused" or "broken". */
export class ApiError extends Error {
  constructor(kind, message) {
    super(message);
    this.kind = kind;
  }
}

/** @returns {Promise<Object>} what the page needs to know of the engine. */
export async function readEngine() {
  const response = await ask("v1/engine").catch((error) => {
    if (error.kind === "refused") return null; // another server that speaks OpenAI's API
    throw error;
  });
  const told = response ? await response.json() : {};
  const { temperature = null, top_p: topP = null, min_p: minP = null } = told.defaults ?? {};
  return {
    model: told.model ?? (await readModels())[0] ?? "model",
    device: told.device ?? "",
    runtime: told.runtime ?? "",
    driver: told.driver ?? "",
    precision: told.precision ?? "",
    contextLength: told.context_length ?? null,
    maxTokens: told.max_tokens ?? null,
    notes: told.notes ?? [],
    tools: told.supports_tools ?? true,
    chat: told.has_chat_template ?? true,
    defaults: { temperature, topP, minP },
  };
}

async function readModels() {
  const { data } = await (await ask("v1/models")).json();
  return data.map((model) => model.id);
}

/** @returns {Promise<boolean>} whether the server answers. */
export async function isHealthy() {
  try {
    return (await fetch(place("health"))).ok;
  } catch {
    return false;
  }
}

/** Answer a conversation. @yields events, see above. */
export async function* streamChat(model, messages, settings, tools, signal) {
  const body = { model, messages, ...sampling(settings), ...STREAMED };
  if (tools.length) body.tools = tools;
  for await (const chunk of stream("v1/chat/completions", body, signal)) {
    const choice = chunk.choices?.[0];
    if (choice?.delta) yield* readDelta(choice.delta);
    yield* readEnd(chunk, choice);
  }
}

/** Continue a text. @yields events, see above. */
export async function* streamCompletion(model, prompt, settings, signal) {
  const body = { model, prompt, ...sampling(settings), ...STREAMED };
  for await (const chunk of stream("v1/completions", body, signal)) {
    const choice = chunk.choices?.[0];
    if (choice?.text) yield { kind: "text", text: choice.text };
    yield* readEnd(chunk, choice);
  }
}

const STREAMED = { stream: true, stream_options: { include_usage: true } };

// What is not set is the model's own choice.
function sampling(settings) {
  const fields = {
    temperature: settings.temperature,
    top_p: settings.topP,
    min_p: settings.minP,
    max_tokens: settings.maxTokens,
    seed: settings.seed,
  };
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => typeof value === "number"));
}

function* readDelta(delta) {
  if (delta.reasoning_content) yield { kind: "reasoning", text: delta.reasoning_content };
  if (delta.content) yield { kind: "text", text: delta.content };
  for (const call of delta.tool_calls ?? []) {
    const { name = "", arguments: piece = "" } = call.function ?? {};
    yield { kind: "call", index: call.index ?? 0, id: call.id ?? "", name, arguments: piece };
  }
}

function* readEnd(chunk, choice) {
  if (choice?.finish_reason) yield { kind: "finish", reason: choice.finish_reason };
  if (chunk.usage) yield { kind: "usage", usage: readUsage(chunk.usage) };
}

function readUsage(usage) {
  const more = usage.x_lfm2 ?? {};
  return {
    promptTokens: usage.prompt_tokens ?? 0,
    completionTokens: usage.completion_tokens ?? 0,
    reusedTokens: more.reused_tokens ?? usage.prompt_tokens_details?.cached_tokens ?? 0,
    tokensPerSecond: more.tokens_per_second ?? null,
  };
}

// Relative, so that the page also works below a path of a proxy.
const place = (path) => new URL(path, document.baseURI);

async function ask(path, body, signal) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    const method = body ? "POST" : "GET";
    response = await fetch(place(path), { method, headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError("offline", "The server does not answer. Is lfm2-deploy serve still running?");
  }
  if (!response.ok) throw await readRefusal(response);
  return response;
}

async function* stream(path, body, signal) {
  const response = await ask(path, body, signal);
  let whole = false;
  try {
    for await (const data of readEvents(response.body)) {
      whole = data === "[DONE]";
      if (whole) return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw explain(chunk.error, 500);
      yield chunk;
    }
  } catch (error) {
    if (error instanceof ApiError || signal.aborted) throw error;
    throw new ApiError("offline", "The connection to the server broke while it answered.");
  }
  if (!whole) throw new ApiError("offline", "The server ended its answer early.");
}

async function readRefusal(response) {
  const told = await response.json().catch(() => ({}));
  return explain(told.error ?? { message: told.detail }, response.status, response.headers.get("Retry-After"));
}

function explain(error, status, retryAfter = null) {
  const said = typeof error?.message === "string" ? error.message : `The server answered with status ${status}.`;
  const message = tellRefusal({ ...error, message: said.slice(0, 500) });
  if (status === 401) return new ApiError("key", "The server asks for an API key.");
  if (status === 429 || error?.code === "queue_full") {
    const wait = retryAfter ? ` in ${retryAfter} s` : " in a moment";
    return new ApiError("busy", `The server is busy: too many requests wait. Try again${wait}.`);
  }
  if (error?.code === "context_length_exceeded") {
    // Of a first message, chat.js says it otherwise.
    const advice = "Edit an earlier message to shorten it, or begin a new conversation.";
    return new ApiError("context", `This conversation no longer fits the model's context. ${advice}`);
  }
  if (error?.code === "model_not_found") return new ApiError("model", "The server runs another model by now. Try again to ask that one.");
  return new ApiError(status < 500 ? "refused" : "broken", message);
}
