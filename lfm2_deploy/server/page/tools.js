// Tools that a model may call: two that run in this page, and those that a user describes.

import { calculate } from "./calculator.js";

const NAME = /^[A-Za-z0-9_-]{1,64}$/; // as the server has it

/** Of the page's own tools: what the model is told, and what is done. */
export const BUILT_IN = {
  get_current_time: {
    label: "Current time",
    schema: {
      name: "get_current_time",
      description: "The current date and time.",
      parameters: {
        type: "object",
        properties: { timezone: { type: "string", description: "An IANA name such as Europe/Paris; the user's own if left out." } },
      },
    },
    run: ({ timezone }) => tellTime(timezone),
  },
  calculate: {
    label: "Calculator",
    schema: {
      name: "calculate",
      description: "The value of an arithmetic expression.",
      parameters: {
        type: "object",
        properties: { expression: { type: "string", description: "Such as 2 * (3 + 4) ^ 2 or sqrt(2)." } },
        required: ["expression"],
      },
    },
    run: ({ expression }) => JSON.stringify({ value: calculate(String(expression ?? "")) }),
  },
};

function tellTime(timezone) {
  const zone = timezone || Intl.DateTimeFormat().resolvedOptions().timeZone;
  const now = new Date();
  const style = { dateStyle: "full", timeStyle: "long", timeZone: zone };
  return JSON.stringify({ timezone: zone, time: new Intl.DateTimeFormat("en-GB", style).format(now), utc: now.toISOString() });
}

/**
 * Run a tool of the page.
 *
 * @returns {string|null} its result, or what was wrong, for the model; null for another's tool.
 */
export function runTool(call, enabled) {
  const tool = enabled.includes(call.name) && Object.hasOwn(BUILT_IN, call.name) ? BUILT_IN[call.name] : null;
  if (!tool) return null;
  try {
    return tool.run(JSON.parse(call.arguments || "{}") ?? {});
  } catch (error) {
    return JSON.stringify({ error: error.message });
  }
}

/**
 * Read what a user pasted: one tool or an array, as OpenAI's objects or bare schemas of functions.
 *
 * @param {string[]} [enabled] names of the page's own tools that are on
 * @returns {{tools: Object[], error: string}}
 */
export function readTools(text, enabled = []) {
  if (!text?.trim()) return { tools: [], error: "" };
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    return { tools: [], error: `This is not JSON: ${error.message}` };
  }
  const given = [value].flat();
  const names = [...enabled];
  for (const [at, tool] of given.entries()) {
    const error = faultOf(tool, names);
    if (error) return { tools: [], error: `Tool ${at + 1} ${error}` };
    names.push((tool.function ?? tool).name);
  }
  return { tools: given.map((tool) => asTool(tool.function ?? tool)), error: "" };
}

// What the server would refuse. @returns {string} "" where nothing is wrong
function faultOf(tool, names) {
  const schema = tool?.function ?? tool;
  if ((tool?.type ?? "function") !== "function" && tool.function) return `has the type "${tool.type}": only functions can be called.`;
  if (typeof schema?.name !== "string" || !schema.name) return 'has no "name".';
  const { name, description, parameters, strict } = schema;
  const shown = name.slice(0, 70);
  if (!NAME.test(name)) return `has the name "${shown}": 1 to 64 letters, digits, "_" and "-" are allowed.`;
  if (names.includes(name)) return `has the name "${shown}", as another tool has.`;
  if (!["string", "undefined"].includes(typeof description) && description !== null) return `("${shown}"): "description" must be a text.`;
  if (!["boolean", "undefined"].includes(typeof strict) && strict !== null) return `("${shown}"): "strict" must be true or false.`;
  return isSchema(parameters) ? "" : `("${shown}"): "parameters" must be a schema with "type": "object".`;
}

function isSchema(parameters) {
  if (parameters === null || parameters === undefined) return true;
  const { type = "object", properties = {}, required = [] } = parameters;
  const isFlat = isObject(parameters) && type === "object" && isObject(properties);
  const areSchemas = isFlat && Object.values(properties).every((one) => isObject(one) || typeof one === "boolean");
  return areSchemas && Array.isArray(required) && required.every((one) => typeof one === "string");
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const asTool = (schema) => ({ type: "function", function: schema });

/** @returns {Object[]} the tools that a conversation's settings name, for the server. */
export function toolsOf(settings) {
  const own = (settings.builtIn ?? []).filter((name) => Object.hasOwn(BUILT_IN, name));
  return [...own.map((name) => asTool(BUILT_IN[name].schema)), ...readTools(settings.tools, own).tools];
}

/** @returns {boolean} whether a call has no end: the answer stopped in the middle of it. */
export function isCut(node, call) {
  const whole = node.state === "done" && node.finish !== "length";
  return !whole && node.state !== "running" && !isJson(call.arguments);
}

function isJson(text) {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

/** @returns {string} arguments as a reader likes them; as they came where they are no JSON. */
export function prettyArguments(text) {
  try {
    return JSON.stringify(JSON.parse(text || "{}"), null, 2);
  } catch {
    return text;
  }
}
