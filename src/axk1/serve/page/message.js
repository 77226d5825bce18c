/** A message of the conversation: a question, or an answer with its reasoning, counts and what can be done with it. */

import { Calls, splitCalls } from "./calls.js";
import { versions } from "./conversation.js";
import { copy, h, iconButton } from "./dom.js";
import { number, t } from "./i18n.js";
import { get, set } from "./preferences.js";
import { Prose } from "./prose.js";

/** What both kinds have: a heading for screen readers, copy, edit, versions. */
class Message {
  constructor(node, app) {
    Object.assign(this, { node, app });
    this.body = h("div", { class: "body" });
    this.tools = h("div", { class: "tools" });
    const name = `name-${node.id}`;
    this.heading = h("h2", { class: "unseen", id: name });
    this.element = h(
      "article",
      { class: node.role, id: `message-${node.id}`, "aria-labelledby": name },
      this.heading,
      this.body,
      this.tools,
    );
  }

  copyButton() {
    const button = iconButton("copy", t("copyMessage"), async () => {
      await copy(this.node.content);
      button.classList.add("did");
      this.app.say(t("copied"));
      setTimeout(() => button.classList.remove("did"), 1500);
    });
    return button;
  }

  editButton() {
    return iconButton("edit", t("edit"), () => this.edit());
  }

  /** The switch between versions, where there is more than one. */
  versionSwitch() {
    const all = versions(this.app.conversation, this.node);
    if (all.length < 2) return null;
    const at = all.indexOf(this.node);
    const step = (by, name, label) =>
      iconButton(name, label, () => this.app.showVersion(all[at + by]), { disabled: !all[at + by] });
    return h(
      "span",
      { class: "versions" },
      step(-1, "left", t("earlierVersion")),
      h("span", {}, `${number(at + 1)}/${number(all.length)}`),
      step(1, "right", t("laterVersion")),
    );
  }

  /** Replaces the text by a field for it until it is saved or left. */
  edit() {
    const field = h("textarea", {
      "aria-label": t("edit"),
      rows: Math.min(this.node.content.split("\n").length + 1, 16),
    });
    const close = () => {
      this.element.classList.remove("editing");
      form.replaceWith(...shown);
      this.tools.querySelector("button")?.focus();
    };
    const save = () => (close(), this.saveEdit(field.value));
    const form = h(
      "form",
      { class: "edit", onsubmit: (event) => (event.preventDefault(), save()) },
      field,
      h(
        "div",
        { class: "row end" },
        h("button", { type: "button", class: "plain", onclick: close }, t("cancel")),
        h("button", { class: "main" }, this.saveLabel()),
      ),
    );
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") (event.stopPropagation(), close());
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) (event.preventDefault(), save());
    });
    const shown = [...this.body.childNodes];
    field.value = this.node.content;
    this.element.classList.add("editing");
    this.body.replaceChildren(form);
    field.focus();
  }
}

/** What the user wrote, as it is. */
export class Question extends Message {
  constructor(node, app) {
    super(node, app);
    this.heading.textContent = t("youSaid");
    this.body.append(h("div", { class: "bubble" }, node.content));
    this.tools.append(...[this.versionSwitch(), this.copyButton(), this.editButton()].filter(Boolean));
  }

  saveLabel() {
    return t("saveSend");
  }

  saveEdit(text) {
    if (text.trim() && text !== this.node.content) this.app.editQuestion(this.node, text);
  }

  update() {}
}

/** What the model wrote, also while it does. */
export class Answer extends Message {
  #prose;
  #thought = null;
  #clock = 0;
  #text = h("div", { class: "prose" });
  #calls = new Calls();
  #status = h("p", { class: "status" });
  #notice = h("div", { class: "notice" });
  #facts = h("p", { class: "facts" });

  constructor(node, app) {
    super(node, app);
    this.heading.textContent = t("modelSaid", { model: node.model });
    this.#prose = new Prose(this.#text);
    this.body.append(this.#status, this.#text, this.#calls.element);
    this.element.append(this.#notice, h("footer", {}, this.#facts, this.tools));
    this.update();
  }

  saveLabel() {
    return t("save");
  }

  saveEdit(text) {
    if (text !== this.node.content) this.app.editAnswer(this.node, text);
  }

  /** Shows the message as it is now; `reply` while it is written. */
  update(reply = this.app.replyOf(this.node)) {
    const { node } = this;
    const running = Boolean(reply);
    if (node.reasoning) this.#showReasoning(reply);
    const { text, calls } = splitCalls(node.content, running);
    this.#prose.set(text, !running);
    this.#calls.set(calls);
    this.#tick(reply);
    this.element.setAttribute("aria-busy", running);
    this.tools.hidden = this.#facts.hidden = running && !node.content && !node.reasoning;
    if (running) this.#clock ||= setInterval(() => this.update(), 500);
    else this.#finish();
  }

  /** Stops its clock: it is not shown any more. */
  close() {
    clearInterval(this.#clock);
    this.#clock = 0;
  }

  #finish() {
    this.close();
    const { node, app } = this;
    const again = iconButton("again", t("regenerate"), () => app.regenerate(node));
    this.tools.replaceChildren(...[this.versionSwitch(), this.copyButton(), this.editButton(), again].filter(Boolean));
    this.#notice.replaceChildren(...this.#noticeParts());
  }

  #noticeParts() {
    const { node, app } = this;
    const text = node.state === "failed" ? t("failed", { error: node.error }) : t(`state.${node.state}`);
    if (node.state === "done" || node.state === "running") return [];
    const goOn = h("button", { type: "button", class: "plain", onclick: () => app.resume(node) }, t("resume"));
    const again = h("button", { type: "button", class: "plain", onclick: () => app.regenerate(node) }, t("regenerate"));
    const buttons = { lost: [goOn, again], stopped: [goOn], failed: [goOn] }[node.state] ?? [];
    return [h("span", {}, text), ...buttons];
  }

  #tick(reply) {
    const waits = reply?.phase === "waiting";
    this.#status.hidden = !waits;
    if (waits) this.#status.textContent = t("waiting", { seconds: number(Math.floor(reply.seconds)) });
    this.#thought?.label(this.node, reply);
    this.#facts.replaceChildren(...facts(this.node, reply, this.app));
  }

  #showReasoning(reply) {
    if (!this.#thought) {
      this.#thought = new Reasoning();
      this.body.prepend(this.#thought.element);
    }
    this.#thought.set(this.node.reasoning, reply?.phase !== "reasoning");
  }
}

/** The reasoning, folded; while it is written its last line can be read beside the time. */
class Reasoning {
  #label = h("span", { class: "label" });
  #peek = h("span", { class: "peek", "aria-hidden": "true" });
  #text = "";
  #done = false;
  #prose;

  constructor() {
    const text = h("div", { class: "prose" });
    this.#prose = new Prose(text);
    this.element = h(
      "details",
      { class: "fold reasoning", open: get("open") },
      h("summary", {}, this.#label, this.#peek),
      text,
    );
    this.element.addEventListener("toggle", () => {
      set("open", this.element.open);
      this.#draw();
    });
  }

  set(text, done) {
    this.#text = text;
    this.#done = done;
    this.#draw();
  }

  #draw() {
    if (this.element.open) this.#prose.set(this.#text, this.#done);
  }

  label(node, reply) {
    const live = reply?.phase === "reasoning";
    const seconds = live ? reply.seconds - node.seconds.first : node.seconds.thinking;
    this.element.classList.toggle("live", live);
    this.#label.textContent = live
      ? t("thinking", { seconds: number(Math.floor(seconds)) })
      : t("thought", { seconds: number(seconds, 1), n: node.usage.reasoning });
    this.#peek.textContent = live ? this.#text.trimEnd().split("\n").at(-1).slice(-120) : "";
  }
}

/** The small print of an answer. */
function facts(node, reply, app) {
  const { usage, seconds } = node;
  if (!usage.completion) return [];
  const time = (reply ? reply.seconds : seconds.total) - seconds.first;
  const parts = [t("tokens", { n: usage.completion })];
  if (time > 0.05 && usage.completion > 1) parts.push(t("speed", { speed: number((usage.completion - 1) / time, 1) }));
  parts.push(t("cached", { cached: usage.cached, prompt: usage.prompt }));
  if (node.edited) parts.push(t("edited"));
  const spans = parts.map((part) => h("span", {}, part));
  if (reply || !node.seed) return spans;
  const label = t("useSeed");
  return [
    ...spans,
    h(
      "button",
      { type: "button", class: "quiet text", title: label, onclick: () => app.useSeed(node.seed) },
      t("seed", { seed: node.seed }),
    ),
  ];
}
