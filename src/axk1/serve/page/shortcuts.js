/** What the keyboard does, beside what browsers do anyway. */

const MAC = navigator.platform.startsWith("Mac");
const CTRL = MAC ? "⌘" : "Ctrl";
const ALT = MAC ? "⌥" : "Alt";

/** As the list shows them; those with a `code` are listened to here, the others in the field for messages. */
export const SHORTCUTS = [
  { keys: ["Enter"], text: "key.send" },
  { keys: ["Shift", "Enter"], text: "key.newline" },
  { keys: ["Esc"], text: "key.stop" },
  { keys: ["↑"], text: "key.editLast" },
  { keys: [ALT, "T"], text: "key.think", code: "KeyT", modifier: "alt", act: (app) => app.composer.toggleThink() },
  { keys: [ALT, "A"], text: "key.answerNow", code: "KeyA", modifier: "alt", act: (app) => app.answerNow() },
  { keys: [ALT, "R"], text: "key.regenerate", code: "KeyR", modifier: "alt", act: (app) => app.regenerateLast() },
  { keys: [ALT, "N"], text: "key.new", code: "KeyN", modifier: "alt", act: (app) => app.startNew() },
  { keys: [CTRL, "K"], text: "key.search", code: "KeyK", modifier: "ctrl", act: (app) => app.sidebar.search() },
  { keys: [CTRL, ","], text: "key.settings", code: "Comma", modifier: "ctrl", act: (app) => app.openSettings() },
  { keys: [CTRL, "/"], text: "key.list", code: "Slash", modifier: "ctrl", act: (app) => app.openShortcuts() },
];

/** Lets the keys act on `app`; not below an open dialog. */
export function listen(app) {
  document.addEventListener("keydown", (event) => {
    if (event.isComposing || event.shiftKey || document.querySelector("dialog[open]")) return;
    if (event.key === "Escape") {
      if (!app.sidebar.leave()) app.stop();
      return;
    }
    const ctrl = event.ctrlKey || event.metaKey;
    if (ctrl && event.altKey) return; // AltGr writes characters
    const modifier = event.altKey ? "alt" : ctrl ? "ctrl" : null;
    const found = SHORTCUTS.find((shortcut) => shortcut.code === event.code && shortcut.modifier === modifier);
    if (!found) return;
    event.preventDefault();
    found.act(app);
  });
}
