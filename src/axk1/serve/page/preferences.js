/** What the browser remembers beside the conversations: looks, language, and what new conversations begin with. */

const PREFIX = "axk1.";

/** What a conversation is answered with; null is the server's default. */
export const SETTINGS = { system: "", temperature: null, top_p: null, seed: null, max_tokens: null };

const DEFAULTS = {
  theme: "system",
  language: null,
  think: null,
  budget: -1,
  settings: SETTINGS,
  sidebar: true,
  open: false,
};

/** The preference, or its default. */
export function get(name) {
  try {
    const text = localStorage.getItem(PREFIX + name);
    return text === null ? DEFAULTS[name] : JSON.parse(text);
  } catch {
    return DEFAULTS[name]; // storage is switched off, or holds what is not ours
  }
}

/** Keeps the preference, where the browser lets us. */
export function set(name, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    // it holds until the page is closed
  }
}

/** The API key: of this tab, or of this browser if the user wants it remembered. */
export function getKey() {
  return sessionStorage.getItem(`${PREFIX}key`) ?? localStorage.getItem(`${PREFIX}key`) ?? "";
}

/** Whether the key is kept when the tab is closed. */
export function isKeyRemembered() {
  return localStorage.getItem(`${PREFIX}key`) !== null;
}

/** Keeps the key in the tab, or in the browser; an empty one is forgotten. */
export function setKey(key, remembered) {
  for (const storage of [sessionStorage, localStorage]) storage.removeItem(`${PREFIX}key`);
  if (key) (remembered ? localStorage : sessionStorage).setItem(`${PREFIX}key`, key);
}
