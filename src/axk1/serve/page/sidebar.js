/** The list of conversations: search, open, rename, delete. */

import { matches } from "./conversation.js";
import { byId, h, iconButton } from "./dom.js";
import { t } from "./i18n.js";
import { get, set } from "./preferences.js";

const phone = matchMedia("(max-width: 50rem)");

/** Draws `app.conversations`. */
export class Sidebar {
  #list = byId("list");
  #search = byId("search");
  #nav = byId("sidebar");
  #opener = byId("toggle");

  constructor(app) {
    this.app = app;
    this.#search.addEventListener("input", () => this.render());
    byId("new").addEventListener("click", () => app.startNew());
    byId("shade").addEventListener("click", () => this.show(false));
    byId("close-sidebar").addEventListener("click", () => this.show(false, true));
    this.#opener.addEventListener("click", () => this.show(this.#nav.hidden, true));
    phone.addEventListener("change", () => this.show(!phone.matches && get("sidebar")));
    this.show(!phone.matches && get("sidebar"));
  }

  /** Draws the list, as far as the search finds it. */
  render() {
    const query = this.#search.value.trim();
    const found = this.app.conversations.filter((conversation) => !query || matches(conversation, query));
    const empty = h("li", { class: "none" }, t(query ? "nothingFound" : "noConversations"));
    this.#list.replaceChildren(...(found.length ? found.map((conversation) => this.#item(conversation)) : [empty]));
  }

  /** Shows or hides the sidebar; over the conversation on a phone, beside it elsewhere. */
  show(shown, chosen = false) {
    if (chosen && !phone.matches) set("sidebar", shown);
    this.#nav.hidden = !shown;
    byId("shade").hidden = !(shown && phone.matches);
    byId("main").inert = shown && phone.matches;
    this.#opener.setAttribute("aria-expanded", shown);
    if (chosen) (shown ? byId("close-sidebar") : this.#opener).focus();
  }

  /** On a phone the sidebar goes away once it was used; whether it was there. */
  leave() {
    if (!phone.matches || this.#nav.hidden) return false;
    this.show(false, true);
    return true;
  }

  /** Lets the user type what to search for. */
  search() {
    this.show(true);
    this.#search.focus();
  }

  #item(conversation) {
    const title = conversation.title || t("untitled");
    const current = conversation.id === this.app.conversation.id;
    const link = h(
      "a",
      { href: `#${conversation.id}`, "aria-current": current ? "page" : null, title, onclick: () => this.leave() },
      title,
    );
    const item = h(
      "li",
      { class: this.app.isRunning(conversation) ? "running" : null },
      link,
      iconButton("edit", t("renameTitle", { title }), () => this.#rename(item, conversation)),
      iconButton("delete", t("deleteTitle", { title }), () => this.app.remove(conversation)),
    );
    return item;
  }

  #rename(item, conversation) {
    const field = h("input", { value: conversation.title, "aria-label": t("rename") });
    let over = false;
    const end = (keep) => {
      if (over) return;
      over = true;
      if (keep && field.value.trim()) this.app.rename(conversation, field.value.trim());
      this.render();
    };
    field.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Enter") end(true);
      if (event.key === "Escape") (event.stopPropagation(), end(false));
    });
    field.addEventListener("blur", () => end(true));
    item.replaceChildren(field);
    field.select();
  }
}
