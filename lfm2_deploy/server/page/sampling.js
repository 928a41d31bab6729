// The numbers of the settings: what each may be, and reading what was typed.
//
// A setting is a number, null where the model's own holds, or, as a text, what was typed and
// cannot be used: it stays in its field and is not sent.

export const NUMBERS = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, hint: "0 always takes the likeliest token" },
  { name: "topP", label: "Top p", min: 0, max: 1, hint: "of the likeliest tokens, this share" },
  { name: "minP", label: "Min p", min: 0, max: 1, hint: "drops tokens less likely than this part of the likeliest" },
  { name: "maxTokens", label: "Most tokens", min: 1, max: Number.MAX_SAFE_INTEGER, whole: true, hint: "of one answer" },
  { name: "seed", label: "Seed", min: 0, max: Number.MAX_SAFE_INTEGER, whole: true, hint: "the same seed gives the same answer" },
];

/** @returns {number|string|null} a setting, of what was typed. */
export function readNumber(number, text, engine) {
  const typed = text.trim();
  if (!typed) return null;
  const value = Number(typed.replace(",", "."));
  return faultOf(number, value, engine) ? typed : value;
}

/** @returns {string} why a setting cannot be used, or "". */
export function faultOf({ name, min, max, whole }, value, engine) {
  if (value === null || value === undefined) return "";
  const most = (name === "maxTokens" && engine?.maxTokens) || max;
  const isGood = typeof value === "number" && value >= min && value <= most && (!whole || Number.isInteger(value));
  if (isGood) return "";
  const kind = whole ? "a whole number" : "a number";
  const limit = most.toLocaleString("en");
  return `Not used: must be ${kind} ${most === Number.MAX_SAFE_INTEGER ? `from ${min} on` : `from ${min} to ${limit}`}.`;
}
