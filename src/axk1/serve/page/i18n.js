/** The interface's language. Texts are in strings/; a value is filled in for {name}, and {n} chooses the plural. */

import { get, set } from "./preferences.js";
import en from "./strings/en.js";
import es from "./strings/es.js";
import ja from "./strings/ja.js";
import ko from "./strings/ko.js";
import zh from "./strings/zh.js";

const TEXTS = { en, ko, ja, zh, es };

/** Languages by their code, each by its own name. */
export const LANGUAGES = { en: "English", ko: "한국어", ja: "日本語", zh: "中文", es: "Español" };

let language = "en";
const formats = new Map(); // making one takes longer than drawing a line

/** The language that was chosen, else the first of the browser's that there is. */
export function detect() {
  const wanted = [get("language"), ...navigator.languages].map((tag) => tag?.slice(0, 2).toLowerCase());
  return wanted.find((code) => code in TEXTS) ?? "en";
}

/** Changes the language; null goes by the browser. */
export function choose(code) {
  set("language", code);
  apply();
}

/** The code of the language. */
export function current() {
  return language;
}

/** The text `key`, with `values` filled in; numbers are written as the language does. */
export function t(key, values = {}) {
  const text = TEXTS[language][key] ?? en[key] ?? key;
  const form = typeof text === "object" ? (text[new Intl.PluralRules(language).select(values.n)] ?? text.other) : text;
  return form.replace(/\{(\w+)\}/g, (_, name) =>
    typeof values[name] === "number" ? number(values[name]) : values[name],
  );
}

/** A number, with `digits` after the point. */
export function number(value, digits = 0) {
  const key = `${language} ${digits}`;
  if (!formats.has(key)) {
    formats.set(key, new Intl.NumberFormat(language, { minimumFractionDigits: digits, maximumFractionDigits: digits }));
  }
  return formats.get(key).format(value);
}

/** Puts the texts into all elements of the page that name one: data-text, data-label, data-placeholder. */
export function apply() {
  language = detect();
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = t(element.dataset.text);
  for (const element of document.querySelectorAll("[data-placeholder]"))
    element.placeholder = t(element.dataset.placeholder);
  for (const element of document.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", t(element.dataset.label));
    if (element.tagName === "BUTTON") element.title = t(element.dataset.label);
  }
}
