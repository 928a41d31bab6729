// Arithmetic of a text, without eval: a parser of one function for each level of precedence.

const FUNCTIONS = ["abs", "ceil", "cos", "exp", "floor", "log", "log10", "log2", "max", "min", "round", "sin", "sqrt", "tan"];
const CONSTANTS = { pi: Math.PI, e: Math.E };
const LONGEST = 500; // characters; also bounds how deep parentheses go
const TOKEN = /\s*(?:(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?)|([a-z]\w*)|(\*\*|[-+*/%^(),×÷−]))/iy;
const SAME = { "**": "^", "×": "*", "÷": "/", "−": "-" };

/**
 * @param {string} text such as "2 * (3 + 4) ^ 2" or "sqrt(2)"
 * @returns {number}
 * @throws {Error} in one line, what could not be read.
 */
export function calculate(text) {
  if (text.length > LONGEST) throw new Error(`the expression has more than ${LONGEST} characters`);
  const tokens = split(text);
  const value = readSum(tokens);
  if (tokens.length) throw new Error(`expected an operator before "${tokens[0]}"`);
  if (!Number.isFinite(value)) throw new Error("the result is not a finite number");
  return value;
}

function split(text) {
  const tokens = [];
  const end = text.trimEnd().length;
  TOKEN.lastIndex = 0;
  while (TOKEN.lastIndex < end) {
    const from = TOKEN.lastIndex;
    const found = TOKEN.exec(text);
    if (!found) throw new Error(`cannot read "${text.slice(from, from + 20).trim()}"`);
    tokens.push(found[1] ?? found[2]?.toLowerCase() ?? SAME[found[3]] ?? found[3]);
  }
  return tokens;
}

function readSum(tokens) {
  let value = readProduct(tokens);
  while (tokens[0] === "+" || tokens[0] === "-") {
    value = tokens.shift() === "+" ? value + readProduct(tokens) : value - readProduct(tokens);
  }
  return value;
}

function readProduct(tokens) {
  let value = readSigned(tokens);
  while (["*", "/", "%"].includes(tokens[0])) {
    const operator = tokens.shift();
    const right = readSigned(tokens);
    if (operator !== "*" && right === 0) throw new Error("division by zero");
    if (operator === "*") value *= right;
    else value = operator === "/" ? value / right : value % right;
  }
  return value;
}

function readSigned(tokens) {
  if (tokens[0] === "-") return -readSigned(drop(tokens));
  if (tokens[0] === "+") return readSigned(drop(tokens));
  return readPower(tokens);
}

function drop(tokens) {
  tokens.shift();
  return tokens;
}

function readPower(tokens) {
  const base = readValue(tokens);
  return tokens[0] === "^" ? base ** readSigned(drop(tokens)) : base;
}

function readValue(tokens) {
  const token = tokens.shift();
  if (token === undefined) throw new Error("the expression ends too early");
  if (/^[\d.]/.test(token)) return Number(token);
  if (token === "(") {
    const value = readSum(tokens);
    close(tokens);
    return value;
  }
  if (Object.hasOwn(CONSTANTS, token)) return CONSTANTS[token];
  if (FUNCTIONS.includes(token) && tokens[0] === "(") return callFunction(token, drop(tokens));
  throw new Error(`cannot read "${token}"; functions: ${FUNCTIONS.join(", ")}`);
}

function callFunction(name, tokens) {
  const values = [readSum(tokens)];
  while (tokens[0] === ",") values.push(readSum(drop(tokens)));
  close(tokens);
  return Math[name](...values);
}

function close(tokens) {
  if (tokens.shift() !== ")") throw new Error("a closing parenthesis is missing");
}
