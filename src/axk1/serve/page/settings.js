/** The dialogs: settings of the conversation and of the browser, the key, and the list of shortcuts. */

import { confirm } from "./announce.js";
import { byId, h } from "./dom.js";
import * as i18n from "./i18n.js";
import { getKey, get, isKeyRemembered, set, setKey } from "./preferences.js";
import { SHORTCUTS } from "./shortcuts.js";

const { t } = i18n;

/** Opens the dialog with these parts, afresh; resolves when it is closed. */
function open(title, ...parts) {
  const close = h("button", { class: "main" }, t("close"));
  const form = h(
    "form",
    { method: "dialog" },
    h("h2", { id: "dialog-title", tabindex: "-1", autofocus: true }, title),
    ...parts,
    h("div", { class: "row end" }, close),
  );
  const dialog = h("dialog", { "aria-labelledby": "dialog-title" }, form);
  document.body.append(dialog);
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => (dialog.remove(), resolve())));
}

/** A line of a form: label, control, explanation. */
function line(label, control, hint) {
  const id = `field-${label.replace(/\W+/g, "-")}-${Math.random().toString(36).slice(2, 7)}`;
  control.id = id;
  if (hint) control.setAttribute("aria-describedby", `${id}-hint`);
  return h(
    "div",
    { class: "line" },
    h("label", { for: id }, label),
    control,
    hint && h("small", { id: `${id}-hint` }, hint),
  );
}

function numberField(settings, name, limits, placeholder, changed) {
  const field = h("input", { type: "number", inputmode: "decimal", placeholder, ...limits });
  field.value = settings[name] ?? "";
  field.addEventListener("change", () => {
    if (!field.reportValidity()) return;
    settings[name] = field.value === "" ? null : Number(field.value);
    changed();
  });
  return field;
}

/** Settings of the conversation, which new ones begin with, and of the browser. */
export async function openSettings(app) {
  await open(t("settings"), conversationPart(app), browserPart(app));
  byId("settings").focus();
}

function conversationPart(app) {
  const { settings } = app.conversation;
  const changed = () => app.settingsChanged();
  const field = (name, limits, hint) =>
    line(t(`setting.${name}`), numberField(settings, name, limits, t("byDefault"), changed), hint);
  const system = h("textarea", { rows: 3, placeholder: t("systemHint") });
  system.value = settings.system;
  system.addEventListener("change", () => ((settings.system = system.value), changed()));
  return h(
    "fieldset",
    {},
    h("legend", {}, t("thisConversation")),
    line(t("setting.system"), system),
    h(
      "div",
      { class: "grid" },
      field("temperature", { min: 0, max: 5, step: "any" }, t("temperatureHint")),
      field("top_p", { min: 0.01, max: 1, step: "any" }),
      field("max_tokens", { min: 1, max: 2 ** 31 - 1, step: 1 }),
      field("seed", { min: 0, max: Number.MAX_SAFE_INTEGER, step: 1 }, t("seedHint")),
    ),
    h("small", {}, t("settingsHint")),
  );
}

function browserPart(app) {
  const language = select({ "": t("languageAuto"), ...i18n.LANGUAGES }, get("language") ?? "", (value) => {
    i18n.choose(value || null);
    app.render();
    document.querySelector("dialog")?.close();
    openSettings(app);
  });
  const theme = select(
    { system: t("themeSystem"), light: t("themeLight"), dark: t("themeDark") },
    get("theme"),
    setTheme,
  );
  const file = h("input", {
    type: "file",
    accept: "application/json,.json",
    class: "unseen",
    tabindex: "-1",
    "aria-hidden": "true",
  });
  file.addEventListener("change", async () => file.files[0] && app.importText(await file.files[0].text()));
  const button = (label, act, kind = "plain") => h("button", { type: "button", class: kind, onclick: act }, label);
  return h(
    "fieldset",
    {},
    h("legend", {}, t("thisBrowser")),
    h("div", { class: "grid" }, line(t("language"), language), line(t("theme"), theme)),
    ...keyParts(() => app.connect()),
    h(
      "div",
      { class: "row" },
      button(t("exportAll"), () => app.exportAll()),
      button(t("import"), () => file.click()),
      file,
      button(
        t("deleteAll"),
        async () => (await confirm(t("deleteAllQuestion"), t("deleteAll"))) && app.removeAll(),
        "danger",
      ),
    ),
    h("small", {}, t("privacy")),
  );
}

function select(options, value, changed) {
  const control = h(
    "select",
    {},
    ...Object.entries(options).map(([code, name]) => h("option", { value: code, selected: code === value }, name)),
  );
  control.addEventListener("change", () => changed(control.value));
  return control;
}

function keyParts(changed) {
  const key = h("input", { type: "password", autocomplete: "off", value: getKey() });
  const remember = h("input", { type: "checkbox", checked: isKeyRemembered() });
  const keep = () => (setKey(key.value.trim(), remember.checked), changed());
  key.addEventListener("change", keep);
  remember.addEventListener("change", keep);
  return [line(t("key"), key, t("keyHint")), h("label", { class: "check" }, remember, t("rememberKey"))];
}

/** Asks for the key that the server wants. */
export function askKey(app) {
  if (document.querySelector("dialog[open]")) return;
  open(t("keyWanted"), ...keyParts(() => app.connect()));
}

/** light, dark, or the system's. */
export function setTheme(theme) {
  set("theme", theme);
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

/** Shows what the keyboard does. */
export function openShortcuts() {
  const rows = SHORTCUTS.map(({ keys, text }) =>
    h("tr", {}, h("td", {}, ...keys.map((key) => h("kbd", {}, key))), h("td", {}, t(text))),
  );
  return open(t("shortcuts"), h("table", { class: "shortcuts" }, h("tbody", {}, ...rows)));
}
