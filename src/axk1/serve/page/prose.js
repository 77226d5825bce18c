/**
 * Markdown that grows: blocks that are finished stay as they are, only the open end is drawn again, at most once a
 * frame, and no frame works longer than a few milliseconds. A long text that comes at once is drawn over several.
 */

import { CodeBlock } from "./code.js";
import { h } from "./dom.js";
import { findReferences, parse, render } from "./markdown.js";

const WORK = 8; // milliseconds of a frame
const WINDOW = 4000; // characters that are looked at, at first
const DEFINITION = /^ {0,3}\[[^\]]+\]:/m;
const waiting = new Set();
let frame = 0;

function schedule(prose) {
  waiting.add(prose);
  frame ||= requestAnimationFrame(work);
}

/** Draws what is waiting, until the time of this frame is used up. */
function work() {
  const end = performance.now() + WORK;
  frame = 0;
  for (const prose of waiting) {
    let more = true;
    while (more && performance.now() < end && performance.now() >= prose.pause) more = prose.step();
    if (!more) waiting.delete(prose);
  }
  if (waiting.size) frame = requestAnimationFrame(work);
}

/** A text's elements, below `element`. */
export class Prose {
  #text = "";
  #done = false;
  #at = 0; // characters that are finished
  #seen = 0; // characters that are drawn
  #window = WINDOW;
  #inList = false; // whether the end goes on with the list that the finished part ends with
  #references = {};
  #open = null; // the block of code at the end, while it grows
  #codes = []; // blocks that want colours
  #tail = h("div", { class: "tail" });

  /** When the end may be drawn again: one that takes long is drawn less often. */
  pause = 0;

  constructor(element) {
    this.element = element;
    element.append(this.#tail);
  }

  /** The text so far; `done` when nothing follows. */
  set(given, done) {
    const text = given.replace(/\r\n?/g, "\n");
    if (!text.startsWith(this.#text.slice(0, this.#at))) this.#reset();
    else if (done && !this.#done && DEFINITION.test(text)) this.#reset(); // it may hold for what was drawn before it
    if (!text.startsWith(this.#text)) this.#seen = 0;
    this.#text = text;
    this.#done = done;
    if (done) this.#references = findReferences(text);
    schedule(this);
  }

  #reset() {
    this.element.replaceChildren(this.#tail);
    this.#tail.replaceChildren();
    this.#at = this.#seen = 0;
    this.#inList = false;
    this.#open = null;
    this.#codes = [];
  }

  /** One piece of work; whether there is more. */
  step() {
    if (this.#at < this.#text.length && (this.#seen < this.#text.length || this.#done)) return this.#draw();
    const code = this.#codes[0];
    if (!code) return false;
    if (!code.colour(code !== this.#open)) this.#codes.shift();
    return this.#codes.length > 0;
  }

  #draw() {
    const rest = this.#text.slice(this.#at);
    const whole = rest.length <= this.#window;
    const piece = whole ? rest : rest.slice(0, rest.lastIndexOf("\n", this.#window) + 1 || this.#window);
    const ended = whole && this.#done;
    const tokens = parse(piece, this.#references);
    const cut = ended ? { token: tokens.length, line: Infinity } : findCut(tokens);
    if (cut) this.#finish(tokens, cut, piece);
    else if (!whole) this.#window *= 2;
    if (cut || !whole) return true;
    const begun = performance.now();
    this.#drawTail(tokens, piece);
    const took = performance.now() - begun;
    this.pause = took > WORK ? begun + 5 * took : 0;
    this.#seen = this.#text.length;
    return this.#codes.length > 0;
  }

  /** Takes the blocks before the cut into the finished part. */
  #finish(tokens, { token, line, inList }, piece) {
    const done = inList ? [...tokens.slice(0, token), tokens.at(-1)] : tokens.slice(0, token);
    const same = done.length === 1 && done[0].type === "fence" && done[0].info === this.#open?.info;
    const code = same ? this.#open : null;
    if (code) this.#want(code, code.update(done[0].content) || true);
    this.#append(code ? fragmentOf(code.element) : this.#fill(render(done), true));
    this.#open = null;
    this.#tail.replaceChildren();
    this.#at += line === Infinity ? piece.length : offset(piece, line);
    this.#inList = Boolean(inList);
    this.#window = WINDOW;
  }

  #append(nodes) {
    const last = this.#tail.previousElementSibling;
    const first = nodes.firstElementChild;
    if (this.#inList && last && first && last.tagName === first.tagName) {
      last.append(...first.children);
      first.remove();
    }
    this.#tail.before(nodes);
  }

  #drawTail(tokens, piece) {
    const [fence] = tokens;
    if (tokens.length === 1 && fence.type === "fence" && !isClosed(fence, piece)) {
      this.#growCode(fence);
      return;
    }
    this.#open = null;
    this.#tail.replaceChildren(this.#fill(render(tokens), false));
    this.#tail.classList.toggle("continued", this.#inList);
  }

  #growCode(fence) {
    if (this.#open?.info !== fence.info) { // the first look may have seen a part of the language's name
      this.#open = new CodeBlock(fence.info);
      this.#tail.replaceChildren(this.#open.element);
    }
    this.#want(this.#open, this.#open.update(fence.content));
  }

  /** Makes blocks of code of the fragment's `pre` elements, which get colours if they are there to stay. */
  #fill(fragment, stay) {
    for (const pre of fragment.querySelectorAll("pre")) {
      const code = new CodeBlock(/language-(\S+)/.exec(pre.firstElementChild?.className)?.[1] ?? "");
      this.#want(code, code.update(pre.textContent) && stay);
      pre.replaceWith(code.element);
    }
    return fragment;
  }

  #want(code, colours) {
    if (colours && !this.#codes.includes(code)) this.#codes.push(code);
  }
}

/** Where the last block begins, or in a lone list its last item: what is before it can no longer change. */
function findCut(tokens) {
  const starts = tokens.flatMap((token, at) => (token.level === 0 && token.nesting >= 0 && token.map ? [at] : []));
  const last = starts.at(-1);
  if (starts.length > 1) return { token: last, line: tokens[last].map[0] };
  if (!starts.length || !tokens[0].type.endsWith("_list_open")) return null;
  const item = tokens.findLastIndex((token) => token.type === "list_item_open" && token.level === 1);
  return item > 1 ? { token: item, line: tokens[item].map[0], inList: true } : null;
}

function fragmentOf(element) {
  const fragment = new DocumentFragment();
  fragment.append(element);
  return fragment;
}

/** Where a line begins. */
function offset(text, line) {
  let at = 0;
  for (let passed = 0; passed < line; passed++) at = text.indexOf("\n", at) + 1;
  return at;
}

function isClosed(fence, piece) {
  const lines = piece.trimEnd().split("\n");
  return (
    lines.length > 1 &&
    lines.at(-1).trim().startsWith(fence.markup) &&
    !fence.content.trimEnd().endsWith(lines.at(-1).trim())
  );
}
