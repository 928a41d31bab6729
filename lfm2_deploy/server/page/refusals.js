// What a server says of a request that it refuses, in the words of this page.

const LABELS = {
  temperature: "Temperature",
  top_p: "Top p",
  min_p: "Min p",
  max_tokens: "Most tokens",
  max_completion_tokens: "Most tokens",
  seed: "Seed",
};
const PHRASES = [
  [/^input should be less than or equal to (.+)$/i, "must be at most $1"],
  [/^input should be greater than or equal to (.+)$/i, "must be at least $1"],
  [/^input should be less than (.+)$/i, "must be less than $1"],
  [/^input should be greater than (.+)$/i, "must be more than $1"],
  [/^input should be a valid integer.*$/i, "must be a whole number"],
  [/^input should be a valid number.*$/i, "must be a number"],
  [/^input should be a valid string.*$/i, "must be a text"],
  [/^input should be (.+)$/i, "must be $1"],
  [/^string should match pattern.*$/i, "must have 1 to 64 letters, digits, “_” and “-”"],
];

/** @returns {string} one or two sentences. @param {Object} error of the API: message, param */
export function tellRefusal({ message, param }) {
  const path = typeof param === "string" ? param.split(".") : [];
  const said = message.startsWith(`${param}: `) ? message.slice(param.length + 2) : message;
  const label = Object.hasOwn(LABELS, path[0]) ? LABELS[path[0]] : null;
  if (label) return `${join(label, said)} Change it in the settings.`;
  const tool = path[0] === "tools" && /^\d+$/.test(path[1]) ? Number(path[1]) : null;
  if (tool !== null) return `${join(`Tool ${tool + 1}: ${path.at(-1)}`, said)} Correct it in the settings.`;
  const counted = /^tool (\d+)\b(.*)$/s.exec(said); // servers count from 0
  if (counted) return `${end(`Tool ${Number(counted[1]) + 1}${counted[2]}`)} Correct it in the settings.`;
  return said.slice(0, 1).toUpperCase() + said.slice(1);
}

function join(name, said) {
  for (const [pattern, words] of PHRASES) {
    if (pattern.test(said)) return end(`${name} ${said.replace(pattern, words)}`);
  }
  return end(`${name}: ${said}`);
}

const end = (text) => (/[.!?]$/.test(text) ? text : `${text}.`);
