/** What is said to screen readers, and the short notes at the edge of the page. */

import { byId, h } from "./dom.js";
import { t } from "./i18n.js";

const NOTE = 6000;

/** Says `text`, once what is being said is over. */
export function say(text) {
  const place = byId("announcer");
  place.replaceChildren();
  setTimeout(() => (place.textContent = text), 50); // the same text twice is said twice
}

/** Shows a note for some seconds, with something that can be done about it. */
export function note(text, label, act) {
  const button = label && h("button", { type: "button", class: "quiet text", onclick: () => (act(), close()) }, label);
  const shown = h("div", { class: "note" }, h("span", {}, text), button);
  const close = () => shown.remove();
  byId("notes").append(shown);
  setTimeout(close, NOTE);
}

/** Asks a question that must be answered; whether the answer was yes. */
export function confirm(text, yes) {
  const agree = h("button", { class: "danger", value: "yes" }, yes);
  const form = h(
    "form",
    { method: "dialog" },
    h("p", { id: "question" }, text),
    h("div", { class: "row end" }, h("button", { class: "plain", value: "" }, t("cancel")), agree),
  );
  const dialog = h("dialog", { class: "small", "aria-labelledby": "question" }, form);
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) =>
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    }),
  );
}
