/** The conversation as it is shown: its messages, and scrolling that follows the text until the reader scrolls up. */

import { path } from "./conversation.js";
import { byId, h } from "./dom.js";
import { t } from "./i18n.js";
import { Answer, Question } from "./message.js";

const NEAR = 80; // pixels from the end that count as the end

/** Draws `app.conversation`. */
export class ChatView {
  #views = new Map();
  #scroller = byId("scroll");
  #messages = byId("messages");
  #newest = byId("newest");
  #follows = true;

  constructor(app) {
    this.app = app;
    this.#scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.#newest.addEventListener("click", () => this.toEnd());
    const resized = new ResizeObserver(() => this.#follow()); // once a frame, when its layout is known anyway
    for (const element of [this.#scroller, this.#messages]) resized.observe(element);
  }

  /** Draws the whole branch that is shown. */
  render() {
    for (const view of this.#views.values()) view.close?.();
    const nodes = path(this.app.conversation);
    this.#views = new Map(nodes.map((node) => [node.id, this.#make(node)]));
    const views = [...this.#views.values()].map((view) => view.element);
    this.#messages.replaceChildren(...(views.length ? views : [this.#welcome()]));
    document.body.classList.toggle("empty", !views.length);
  }

  /** Draws one message, if it is shown. */
  update(node) {
    this.#views.get(node.id)?.update();
  }

  /** Begins to edit the message `node`. */
  edit(node) {
    this.#views.get(node.id)?.edit();
  }

  /** Scrolls to the end and follows. */
  toEnd() {
    this.#follows = true;
    this.#newest.hidden = true;
    this.#follow();
  }

  #make(node) {
    return node.role === "user" ? new Question(node, this.app) : new Answer(node, this.app);
  }

  #follow() {
    if (this.#follows) this.#scroller.scrollTop = this.#scroller.scrollHeight;
  }

  #scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.#scroller;
    this.#follows = scrollHeight - scrollTop - clientHeight < NEAR;
    this.#newest.hidden = this.#follows;
  }

  #welcome() {
    const examples = ["example.sum", "example.story", "example.who"].map((key) =>
      h("button", { type: "button", class: "example", onclick: () => this.app.send(t(key)) }, t(key)),
    );
    return h(
      "section",
      { class: "welcome" },
      h("h2", {}, t("welcome", { model: this.app.model?.id ?? "axk1" })),
      h("p", {}, t("welcomeText")),
      h("div", { class: "examples" }, ...examples),
    );
  }
}
