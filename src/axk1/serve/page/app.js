/** What the page can do, and the state that its parts draw: conversations, the one that is shown, running replies. */

import { note, say } from "./announce.js";
import { getModel } from "./api.js";
import { ChatView } from "./chat.js";
import { Composer } from "./composer.js";
import * as tree from "./conversation.js";
import { byId, download } from "./dom.js";
import { apply, t } from "./i18n.js";
import { get, set } from "./preferences.js";
import { drawSeed, Reply } from "./reply.js";
import { askKey, openSettings, openShortcuts } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import * as store from "./store.js";
import * as transfer from "./transfer.js";

const RETRY = 5000;
const SAVE = 500;
const SAID = 600; // characters of an answer that are read out at its end; longer ones are only said to be there

export class App {
  model = null;
  conversations = [];
  conversation = tree.create(get("settings"));
  #running = new Map(); // replies by the id of their conversation
  #saving = new Map();
  #connecting = 0;

  constructor() {
    apply();
    this.chat = new ChatView(this);
    this.composer = new Composer(this);
    this.sidebar = new Sidebar(this);
  }

  /** Reads what is kept, shows the conversation that the address names, asks for the model. */
  async start() {
    if (!(await store.open())) note(t("notKept"));
    store.onWrittenElsewhere((id) => this.#reload(id));
    this.conversations = await store.all();
    window.addEventListener("hashchange", () => this.#openNamed());
    document.addEventListener("visibilitychange", () => document.visibilityState === "hidden" && this.#saveRunning());
    window.addEventListener("pagehide", () => this.#saveRunning());
    this.#openNamed();
    this.composer.focus();
    await this.connect();
  }

  /** Asks which model answers, until it does. */
  async connect() {
    clearTimeout(this.#connecting);
    try {
      this.model = await getModel();
    } catch (error) {
      this.model = null;
      if (error.status === 401) askKey(this);
      else this.#connecting = setTimeout(() => this.connect(), RETRY);
    }
    this.#showModel();
  }

  #showModel() {
    byId("model").textContent = this.model ? this.model.id : t("noServer");
    byId("model").classList.toggle("away", !this.model);
    this.composer.render();
    if (!this.conversation.nodes.length) this.chat.render();
  }

  // What the parts ask for

  /** The running reply of the conversation that is shown. */
  get reply() {
    return this.#running.get(this.conversation.id);
  }

  /** The running reply that writes `node`. */
  replyOf(node) {
    return this.reply?.node === node ? this.reply : undefined;
  }

  isRunning(conversation) {
    return this.#running.has(conversation.id);
  }

  /** Tokens of the conversation, as its last answer counted them. */
  get usedTokens() {
    const last = tree.path(this.conversation).findLast((node) => node.role === "assistant");
    return last ? last.usage.prompt + last.usage.completion : 0;
  }

  say(text) {
    say(text);
  }

  /** Draws everything, in the language that is chosen now. */
  render() {
    byId("title").textContent = this.conversation.title || t("untitled");
    document.title = this.conversation.title ? `${this.conversation.title} · axk1` : "axk1";
    byId("export").disabled = !this.conversation.nodes.length;
    this.sidebar.render();
    this.chat.render();
    this.#showModel();
  }

  // Conversations

  /** Shows an empty conversation. */
  startNew() {
    history.pushState(null, "", location.pathname);
    this.#show(tree.create(get("settings")));
    this.sidebar.leave();
    this.composer.focus();
  }

  #openNamed() {
    const found = this.conversations.find(({ id }) => `#${id}` === location.hash);
    this.#show(found ?? tree.create(get("settings")));
  }

  #show(conversation) {
    this.conversation = conversation;
    if (!this.isRunning(conversation)) {
      for (const node of conversation.nodes) if (node.state === "running") node.state = "lost"; // the page was closed
    }
    this.render();
    this.chat.toEnd();
  }

  async #reload(id) {
    if (this.#running.has(id)) return;
    const others = this.conversations.filter((conversation) => this.#running.has(conversation.id));
    const kept = await store.all();
    this.conversations = kept.map((one) => others.find((other) => other.id === one.id) ?? one);
    const same = this.conversations.find((one) => one.id === this.conversation.id);
    if (same && same.id === id) this.#show(same);
    else this.sidebar.render();
  }

  rename(conversation, title) {
    Object.assign(conversation, { title, named: true });
    this.#save(conversation);
    this.render();
  }

  /** Removes a conversation, which can be undone for some seconds. */
  remove(conversation) {
    this.#running.get(conversation.id)?.stop();
    clearTimeout(this.#saving.get(conversation.id));
    this.#saving.delete(conversation.id);
    this.conversations = this.conversations.filter((other) => other !== conversation);
    store.remove(conversation.id);
    if (conversation === this.conversation) this.startNew();
    else this.sidebar.render();
    note(t("deleted", { title: conversation.title }), t("undo"), () => {
      this.#save(conversation);
      this.render();
    });
  }

  async removeAll() {
    for (const reply of this.#running.values()) reply.stop();
    this.conversations = [];
    await store.clear();
    this.startNew();
  }

  exportAll() {
    download("axk1-conversations.json", transfer.write(this.conversations));
  }

  exportOne() {
    const name = this.conversation.title
      .replace(/[^\p{L}\p{N}]+/gu, "-")
      .replace(/^-|-$/g, "")
      .slice(0, 40);
    download(`axk1-${name || "conversation"}.json`, transfer.write([this.conversation]));
  }

  /** Adds the conversations of a file. */
  async importText(text) {
    let found;
    try {
      found = transfer.read(text);
    } catch {
      note(t("importFailed"));
      return;
    }
    for (const conversation of found) await this.#save(conversation, conversation.updated);
    note(t("imported", { n: found.length }));
    this.render();
  }

  settingsChanged() {
    set("settings", { ...this.conversation.settings });
    if (this.conversation.nodes.length) this.#save(this.conversation);
  }

  /** The seed of an answer becomes the conversation's. */
  useSeed(seed) {
    this.conversation.settings.seed = Number(seed);
    this.#save(this.conversation);
    note(t("seedUsed", { seed }));
  }

  // Messages

  /** Adds a question to the conversation and asks for its answer. */
  send(text) {
    if (this.reply || !this.model) return;
    this.#ask(this.conversation.leaf, text);
  }

  /** Asks another question in the place of `node`. */
  editQuestion(node, text) {
    if (!this.reply) this.#ask(node.parent, text);
  }

  #ask(parent, text) {
    const question = tree.add(this.conversation, parent, "user", { content: text });
    if (location.hash !== `#${this.conversation.id}`) history.pushState(null, "", `#${this.conversation.id}`);
    this.#answer(question.id);
  }

  /** Another answer to the same question. */
  regenerate(node) {
    if (!this.reply && this.model) this.#answer(node.parent);
  }

  regenerateLast() {
    const last = tree.find(this.conversation, this.conversation.leaf);
    if (last?.role === "assistant") this.regenerate(last);
  }

  /** Asks for the same answer again: with its seed it is the same one, and goes on where it ended. */
  resume(node) {
    if (!this.reply && this.model) this.#run(node);
  }

  editAnswer(node, content) {
    Object.assign(node, { content, edited: true });
    this.#save(this.conversation);
    this.render();
  }

  editLast() {
    const last = tree.path(this.conversation).findLast((node) => node.role === "user");
    if (last && !this.reply) this.chat.edit(last);
  }

  showVersion(node) {
    if (this.reply) return;
    tree.show(this.conversation, node);
    this.#save(this.conversation);
    this.render();
  }

  stop() {
    this.reply?.stop();
  }

  answerNow() {
    this.reply?.answerNow();
  }

  #answer(parent) {
    const { temperature, top_p, max_tokens, seed } = this.conversation.settings;
    const { think, budget } = this.composer;
    this.#run(
      tree.add(this.conversation, parent, "assistant", {
        reasoning: "",
        state: "running",
        model: this.model.id,
        asked: { temperature, top_p, max_tokens, seed: seed ?? drawSeed(), think, budget },
        seed: "",
        error: "",
        usage: { prompt: 0, cached: 0, completion: 0, reasoning: 0 },
        seconds: { first: 0, thinking: 0, total: 0 },
      }),
    );
  }

  #run(node) {
    const { conversation } = this;
    const reply = new Reply(
      conversation,
      node,
      () => this.#changed(reply),
      () => this.#ended(reply),
    );
    this.#running.set(conversation.id, reply);
    this.#save(conversation);
    this.render();
    this.chat.toEnd();
    reply.run(this.model.id);
  }

  /** A reply has more: it is drawn once per frame, however many events there were. */
  #changed(reply) {
    this.#saveSoon(reply.conversation);
    reply.frame ??= requestAnimationFrame(() => this.#drawReply(reply));
  }

  #drawReply(reply) {
    reply.frame = null;
    if (reply !== this.reply) return;
    this.chat.update(reply.node);
    if (reply.phase !== reply.said && reply.phase !== "waiting") say(t(`says.${reply.phase}`));
    if (reply.phase !== reply.said) this.composer.update();
    reply.said = reply.phase;
  }

  #ended(reply) {
    const { conversation, node } = reply;
    const shown = reply === this.reply;
    this.#running.delete(conversation.id);
    if (this.conversations.includes(conversation)) this.#save(conversation);
    this.sidebar.render();
    if (!shown) return;
    this.chat.update(node);
    this.composer.update();
    say(node.state === "done" && node.content.length < SAID ? node.content : t(`says.${node.state}`));
    if (reply.refused?.status === 401) askKey(this);
  }

  // Keeping

  #saveSoon(conversation) {
    if (this.#saving.has(conversation.id)) return;
    this.#saving.set(
      conversation.id,
      setTimeout(() => this.#save(conversation, conversation.updated), SAVE),
    );
  }

  async #save(conversation, updated = Date.now()) {
    clearTimeout(this.#saving.get(conversation.id));
    this.#saving.delete(conversation.id);
    conversation.updated = updated;
    if (!this.conversations.includes(conversation)) this.conversations.push(conversation);
    this.conversations.sort((a, b) => b.updated - a.updated);
    await store.put(conversation);
  }

  #saveRunning() {
    for (const { conversation } of this.#running.values()) this.#save(conversation, conversation.updated);
  }

  openSettings() {
    return openSettings(this);
  }

  openShortcuts() {
    return openShortcuts();
  }
}
