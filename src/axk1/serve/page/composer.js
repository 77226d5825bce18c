/** The field for the next message, with what steers the thinking beside it. */

import { byId, h } from "./dom.js";
import { number, t } from "./i18n.js";
import { get, set } from "./preferences.js";

const BUDGETS = [-1, 128, 512, 2048, 8192, 32768];
const touch = matchMedia("(pointer: coarse)");

/** Sends by `app`, and shows what its current reply is doing. */
export class Composer {
  #field = byId("input");
  #think = byId("think");
  #budget = byId("budget");
  #answer = byId("answer-now");
  #send = byId("send");
  #stop = byId("stop");

  constructor(app) {
    this.app = app;
    byId("composer").addEventListener("submit", (event) => (event.preventDefault(), this.#submit()));
    this.#field.addEventListener("keydown", (event) => this.#key(event));
    this.#field.addEventListener("input", () => this.update());
    this.#think.addEventListener("click", () => this.toggleThink());
    this.#budget.addEventListener("change", () => set("budget", Number(this.#budget.value)));
    this.#stop.addEventListener("click", () => app.stop());
    this.#answer.addEventListener("click", () => app.answerNow());
  }

  /** Whether the next reply thinks: as chosen, else as the server does. */
  get think() {
    return get("think") ?? this.app.model?.think ?? false;
  }

  /** Reasoning tokens at most; -1: no limit. */
  get budget() {
    return get("budget");
  }

  toggleThink() {
    set("think", !this.think);
    this.update();
    this.app.say(t(this.think ? "thinkOn" : "thinkOff"));
  }

  focus() {
    this.#field.focus();
  }

  /** Draws the texts that depend on the language. */
  render() {
    const values = BUDGETS.includes(this.budget) ? BUDGETS : [...BUDGETS, this.budget];
    this.#budget.replaceChildren(
      ...values.map((value) =>
        h("option", { value, selected: value === this.budget }, value < 0 ? t("noLimit") : t("tokens", { n: value })),
      ),
    );
    this.update();
  }

  /** Draws what can be done now. */
  update() {
    const reply = this.app.reply;
    this.#think.setAttribute("aria-checked", this.think);
    this.#budget.hidden = !this.think;
    this.#answer.hidden = reply?.phase !== "reasoning" || !reply.node.asked.think;
    this.#stop.hidden = !reply;
    this.#send.hidden = Boolean(reply);
    this.#send.disabled = !this.#field.value.trim() || !this.app.model;
    this.#field.style.height = "auto";
    this.#field.style.height = `${this.#field.scrollHeight}px`;
    this.#count();
  }

  /** How full the context is, once that matters. */
  #count() {
    const used = this.app.usedTokens;
    const most = this.app.model?.max_model_len ?? Infinity;
    byId("context").textContent = used > most / 2 ? t("context", { used: number(used), most: number(most) }) : "";
  }

  /** Enter sends, but not while a syllable is composed, and not on a phone, whose keyboard has no Shift+Enter. */
  #key(event) {
    if (event.key === "ArrowUp" && !this.#field.value) {
      event.preventDefault();
      this.app.editLast();
    }
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || touch.matches) return;
    event.preventDefault();
    this.#submit();
  }

  #submit() {
    const text = this.#field.value.trim();
    if (!text || this.app.reply || !this.app.model) return;
    this.#field.value = "";
    this.app.send(text);
  }
}
