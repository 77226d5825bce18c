/** Starts the page. */

import { App } from "./app.js";
import { byId } from "./dom.js";
import { listen } from "./shortcuts.js";

const app = new App();
listen(app);
byId("settings").addEventListener("click", () => app.openSettings());
byId("shortcuts").addEventListener("click", () => app.openShortcuts());
byId("export").addEventListener("click", () => app.exportOne());
app.start();
