// Markdown's blocks: a text in, a list of blocks out. Inline marks are inline.js's business.
//
// Every reader takes (lines, at) and returns a block with `end`, the line after it, or null.
// All of them are linear in the text: answers may be hostile, and are read again as they grow. So
// no pattern has two parts that could share a run of characters.

const FENCE = /^\s*(`{3,}|~{3,})/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(\S.*)$/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const QUOTE = /^ {0,3}> ?/;
const MARKER = /^( *)([-*+]|\d{1,9}[.)])(?: +|$)/;
const DELIMITERS = /^[ \t|:-]+$/;
const MOST_COLUMNS = 40;

/**
 * @param {string} text
 * @returns {Object[]} blocks with `kind`, `raw` (their lines) and what the kind has.
 */
export function splitBlocks(text) {
  const lines = text.split(/\r\n?|\n/).map(expandTabs);
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (lines[at].trim() === "") {
      at += 1;
      continue;
    }
    const block = readSpecial(lines, at) ?? readParagraph(lines, at);
    blocks.push({ ...block, raw: lines.slice(at, block.end).join("\n") });
    at = block.end;
  }
  return blocks;
}

function readSpecial(lines, at) {
  for (const read of [readFence, readHeading, readRule, readQuote, readList, readTable]) {
    const block = read(lines, at);
    if (block) return block;
  }
  return null;
}

const expandTabs = (line) => (line.startsWith("\t") ? line.replace(/^\t+/, (tabs) => "    ".repeat(tabs.length)) : line);
const indentOf = (line) => line.length - line.trimStart().length;

function readFence(lines, at) {
  const found = FENCE.exec(lines[at]);
  const rest = found && lines[at].slice(found[0].length);
  if (!found || (found[1][0] === "`" && rest.includes("`"))) return null;
  const indent = indentOf(lines[at]);
  let end = at + 1;
  while (end < lines.length && !closesFence(lines[end], found[1])) end += 1;
  const inside = lines.slice(at + 1, end).map((line) => line.slice(Math.min(indent, indentOf(line))));
  return { kind: "code", language: rest.trim().split(/\s/, 1)[0], text: inside.join("\n"), end: Math.min(end + 1, lines.length) };
}

function closesFence(line, fence) {
  const text = line.trim();
  return text.length >= fence.length && text[0] === fence[0] && text === fence[0].repeat(text.length);
}

function readHeading(lines, at) {
  const found = HEADING.exec(lines[at]);
  return found && { kind: "heading", level: found[1].length, text: found[2], end: at + 1 };
}

const readRule = (lines, at) => (RULE.test(lines[at]) ? { kind: "rule", end: at + 1 } : null);

function readQuote(lines, at) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  if (end === at) return null;
  const text = lines.slice(at, end).map((line) => line.replace(QUOTE, "")).join("\n");
  return { kind: "quote", text, end };
}

function readMarker(line) {
  const found = MARKER.exec(line);
  if (!found || RULE.test(line)) return null;
  const ordered = found[2].length > 1;
  // After a marker text begins within four columns; more would be code, which nobody means.
  const content = Math.min(found[0].length, found[1].length + found[2].length + 4);
  return { indent: found[1].length, content, ordered, number: Number.parseInt(found[2], 10) };
}

function readList(lines, at) {
  const first = readMarker(lines[at]);
  if (!first) return null;
  const items = [];
  let marker = first;
  let end = at;
  while (marker) {
    const item = readItem(lines, end, marker);
    items.push(item.text);
    end = item.end;
    const next = skipBlank(lines, end);
    marker = next < lines.length ? readMarker(lines[next]) : null;
    if (marker && (marker.ordered !== first.ordered || Math.abs(marker.indent - first.indent) > 1)) marker = null;
    if (marker) end = next;
  }
  return { kind: "list", ordered: first.ordered, start: first.number, items, end };
}

function readItem(lines, at, marker) {
  const texts = [lines[at].slice(marker.content)];
  let end = at + 1;
  for (let next = end; next < lines.length; next = end) {
    next = skipBlank(lines, end);
    if (next >= lines.length || !belongs(lines[next], marker, next > end)) break;
    while (end++ < next) texts.push("");
    texts.push(lines[next].slice(Math.min(indentOf(lines[next]), marker.content)));
  }
  return { text: texts.join("\n"), end };
}

// Whether a line continues an item: by its indent, or as the rest of the paragraph before it.
function belongs(line, marker, afterBlank) {
  const indent = indentOf(line);
  if (indent >= marker.content) return true;
  const own = readMarker(line);
  if (own) return own.indent > marker.indent + 1 || (own.indent > marker.indent && own.ordered !== marker.ordered);
  return !afterBlank && !startsBlock(line);
}

function skipBlank(lines, at) {
  while (at < lines.length && lines[at].trim() === "") at += 1;
  return at;
}

const startsBlock = (line) => FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line);

function readTable(lines, at) {
  const below = lines[at + 1] ?? "";
  if (![lines[at], below].every((line) => line.includes("|"))) return null;
  if (!below.includes("-") || !DELIMITERS.test(below)) return null;
  const head = splitCells(lines[at]);
  const marks = splitCells(below);
  if (head.length !== marks.length || head.length > MOST_COLUMNS) return null;
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|") && lines[end].trim() !== "") end += 1;
  const rows = lines.slice(at + 2, end).map((line) => splitCells(line).slice(0, head.length));
  return { kind: "table", head, rows, aligns: marks.map(readAlign), end };
}

function readAlign(mark) {
  if (mark.endsWith(":")) return mark.startsWith(":") ? "center" : "end";
  return "start";
}

function splitCells(line) {
  const text = line.trim().replace(/^\|/, "");
  const cells = [""];
  let inCode = false;
  for (let at = 0; at < text.length; at += 1) {
    if (text[at] === "\\" && text[at + 1] === "|") at += 1;
    else if (text[at] === "`") inCode = !inCode;
    else if (text[at] === "|" && !inCode) {
      cells.push("");
      continue;
    }
    cells[cells.length - 1] += text[at];
  }
  if (cells.length > 1 && cells.at(-1).trim() === "") cells.pop();
  return cells.map((cell) => cell.trim());
}

function readParagraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() !== "" && !interrupts(lines, end)) end += 1;
  return { kind: "paragraph", text: lines.slice(at, end).map((line) => line.trim()).join("\n"), end };
}

// A number in running text must not begin a list, unless it is the first of one.
function interrupts(lines, at) {
  if (startsBlock(lines[at]) || readTable(lines, at)) return true;
  const marker = readMarker(lines[at]);
  return marker !== null && (!marker.ordered || marker.number === 1) && lines[at].trim().length > 2;
}
