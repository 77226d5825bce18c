/**
 * Markdown to elements that can do nothing: HTML in it is text, what markdown-it writes is sanitised, pictures are
 * links, and links lead to the web or to mail, in a window of their own.
 */

import { h } from "./dom.js";
import { mathPlugin, renderMath } from "./math.js";
import { t } from "./i18n.js";
import DOMPurify from "./vendor/purify.mjs";
import markdownIt from "./vendor/markdown-it.mjs";

const SAFE = {
  ALLOWED_TAGS: [
    "a",
    "blockquote",
    "br",
    "code",
    "div",
    "em",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "hr",
    "li",
    "ol",
    "p",
    "pre",
    "s",
    "span",
    "strong",
    "table",
    "tbody",
    "td",
    "th",
    "thead",
    "tr",
    "ul",
  ],
  ALLOWED_ATTR: ["class", "href", "start", "title"],
  ALLOWED_URI_REGEXP: /^(?:https?:\/\/|mailto:)/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

const md = markdownIt({ html: false, linkify: true, maxNesting: 50 }).use(mathPlugin);
md.linkify.set({ fuzzyLink: false, fuzzyEmail: false, fuzzyIP: false });
md.renderer.rules.image = (tokens, at) => {
  const source = tokens[at].attrGet("src");
  return `<a href="${md.utils.escapeHtml(source)}">${md.utils.escapeHtml(tokens[at].content || source)}</a>`;
};
for (const name of ["th_open", "td_open"]) md.renderer.rules[name] = renderCell;

/** Inline styles are forbidden by the page's policy: alignment is a class. */
function renderCell(tokens, at, options, _env, self) {
  const side = /right|center/.exec(tokens[at].attrGet("style") ?? "");
  tokens[at].attrs = side ? [["class", side[0]]] : null;
  return self.renderToken(tokens, at, options);
}

/** The tokens of `text`; `references` are the link definitions that hold for it. */
export function parse(text, references) {
  return md.parse(text, { references: { ...references } });
}

/** The link definitions of a whole text. */
export function findReferences(text) {
  const env = {};
  md.block.parse(text, md, env, []);
  return env.references ?? {};
}

/** A fragment for tokens of `parse`. Blocks of code are `pre > code`, for whoever asked. */
export function render(tokens) {
  const fragment = sanitise(md.renderer.render(tokens, md.options, {}));
  renderMath(fragment);
  for (const link of fragment.querySelectorAll("a[href]")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
    link.title ||= link.getAttribute("href");
  }
  for (const table of fragment.querySelectorAll("table")) {
    const frame = h("div", { class: "wide", role: "region", tabindex: "0", "aria-label": t("table") });
    table.replaceWith(frame);
    frame.append(table);
  }
  return fragment;
}

/** `html` as a fragment of harmless elements. */
export function sanitise(html) {
  return DOMPurify.sanitize(html, SAFE);
}
