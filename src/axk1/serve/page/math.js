/** Formulas: a plugin that finds them in Markdown, and their MathML. `$` alone is a price, not a formula. */

const LONGEST = 5000;
const PAIRS = [
  ["\\(", "\\)", false],
  ["\\[", "\\]", true],
  ["$$", "$$", true],
];

/** Lets markdown-it read `\(x\)`, `\[x\]` and `$$x$$` as a span or a block of class "math" that holds the source. */
export function mathPlugin(md) {
  md.inline.ruler.before("escape", "math", readInline);
  md.block.ruler.before("fence", "math_block", readBlock, { alt: ["paragraph", "reference", "blockquote", "list"] });
  const source = (token) => md.utils.escapeHtml(token.content);
  md.renderer.rules.math = (tokens, at) =>
    `<span class="math${tokens[at].block ? " display" : ""}">${source(tokens[at])}</span>`;
  md.renderer.rules.math_block = (tokens, at) => `<div class="math display">${source(tokens[at])}</div>\n`;
}

function readInline(state, silent) {
  const pair = PAIRS.find(([open]) => state.src.startsWith(open, state.pos));
  if (!pair) return false;
  const [open, close, block] = pair;
  const start = state.pos + open.length;
  const end = state.src.indexOf(close, start);
  if (end < 0 || end >= state.posMax || !state.src.slice(start, end).trim()) return false;
  if (!silent) Object.assign(state.push("math", "", 0), { content: state.src.slice(start, end), block });
  state.pos = end + close.length;
  return true;
}

/** A formula that begins a line and ends one; it has no empty lines, as in LaTeX. */
function readBlock(state, startLine, endLine, silent) {
  const begin = state.bMarks[startLine] + state.tShift[startLine];
  const pair = PAIRS.find(([open, , block]) => block && state.src.startsWith(open, begin));
  if (!pair) return false;
  const [open, close] = pair;
  for (let line = startLine; line < endLine && !state.isEmpty(line); line++) {
    const text = state.src.slice(line === startLine ? begin + open.length : state.bMarks[line], state.eMarks[line]);
    const at = text.indexOf(close);
    if (at < 0) continue;
    if (text.slice(at + close.length).trim()) return false;
    if (silent) return true;
    const end = line === startLine ? begin + open.length + at : state.bMarks[line] + at;
    const token = state.push("math_block", "", 0);
    Object.assign(token, {
      content: state.src.slice(begin + open.length, end),
      map: [startLine, line + 1],
      block: true,
    });
    state.line = line + 1;
    return true;
  }
  return false;
}

/** Replaces the source in every element of class "math" below `root` by its MathML; what is no formula stays text. */
export function renderMath(root) {
  for (const element of root.querySelectorAll(".math")) {
    const source = element.textContent;
    if (!globalThis.temml || source.length > LONGEST) continue;
    const display = element.classList.contains("display");
    try {
      // nodes, not HTML: nothing is parsed again; no links, no pictures (trust), no endless macros
      globalThis.temml.render(source, element, {
        displayMode: display,
        trust: false,
        maxExpand: 500,
        throwOnError: true,
      });
      if (display) element.tabIndex = 0; // it can be scrolled where it is wide
    } catch {
      element.textContent = source;
      element.classList.add("source");
    }
  }
}
