/** Blocks of code: a head with language and copy, and colours, of which a frame never makes more than a piece. */

import { copy, h, icon } from "./dom.js";
import { t } from "./i18n.js";
import { sanitise } from "./markdown.js";
import hljs from "./vendor/highlight.mjs";

const PIECE = 3000;
const GROWTH = 1.25;

/** A block of code that may still grow. Its text stands in pieces of whole lines, which are coloured one by one. */
export class CodeBlock {
  #code = h("code");
  #text = "";
  #pieces = [];
  #language;

  constructor(info) {
    this.info = info;
    const name = info.trim().split(/\s+/)[0] ?? "";
    this.#language = hljs.getLanguage(name) ? name : null;
    const label = h("span", {}, t("copy"));
    const button = h(
      "button",
      { type: "button", class: "quiet text", onclick: () => this.#copy(label) },
      icon("copy"),
      label,
    );
    const body = h("pre", { tabindex: "0", role: "region", "aria-label": t("code", { language: name }) }, this.#code);
    this.element = h(
      "div",
      { class: "code" },
      h("div", { class: "head" }, h("span", {}, name || t("codePlain")), button),
      body,
    );
  }

  /** Shows `text`, which begins with what is shown already; whether there is a piece to colour. */
  update(text) {
    if (!text.startsWith(this.#text)) this.#clear();
    for (let rest = text.slice(this.#text.length); rest;) {
      const piece = this.#open();
      const room = PIECE - piece.text.length;
      const cut = rest.length > room ? rest.indexOf("\n", Math.max(room, 0)) + 1 || rest.length : rest.length;
      piece.text += rest.slice(0, cut);
      piece.element.append(rest.slice(0, cut));
      rest = rest.slice(cut);
    }
    this.#text = text;
    return this.#waiting(false) !== undefined;
  }

  #clear() {
    this.#code.replaceChildren();
    this.#pieces = [];
    this.#text = "";
  }

  #open() {
    const last = this.#pieces.at(-1);
    if (last && (last.text.length < PIECE || !last.text.endsWith("\n"))) return last;
    const piece = { text: "", coloured: 0, element: h("span") };
    this.#pieces.push(piece);
    this.#code.append(piece.element);
    return piece;
  }

  /** Colours one piece that has none or has grown enough (`all`: at all); whether there was one. */
  colour(all) {
    const piece = this.#waiting(all);
    if (!piece) return false;
    piece.coloured = piece.text.length;
    const { value } = hljs.highlight(piece.text, { language: this.#language, ignoreIllegals: true });
    piece.element.replaceChildren(sanitise(value));
    return true;
  }

  #waiting(all) {
    if (!this.#language) return undefined;
    return this.#pieces.find(
      ({ text, coloured }) =>
        text.length <= 2 * PIECE && (text.length > coloured * GROWTH || (all && text.length > coloured)),
    );
  }

  async #copy(label) {
    await copy(this.#text);
    label.textContent = t("copied");
    setTimeout(() => (label.textContent = t("copy")), 1500);
  }
}
