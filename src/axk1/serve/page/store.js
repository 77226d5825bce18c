/**
 * Conversations in the browser's IndexedDB. Where there is none (some private windows) they live until the page is
 * closed, and `kept` says so. Other tabs hear of what is written.
 */

const NAME = "axk1";
const TABLE = "conversations";
const channel = new BroadcastChannel("axk1");

let database = null;
const memory = new Map();

/** Opens the store; whether what is written outlives the page. */
export async function open() {
  try {
    database = await result(upgrade(indexedDB.open(NAME, 1)));
  } catch {
    database = null;
  }
  return database !== null;
}

function upgrade(request) {
  request.onupgradeneeded = () => request.result.createObjectStore(TABLE, { keyPath: "id" });
  return request;
}

function result(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = request.onblocked = () => reject(request.error);
  });
}

function table(mode) {
  return database.transaction(TABLE, mode).objectStore(TABLE);
}

/** All conversations, the newest first. */
export async function all() {
  const found = database ? await result(table("readonly").getAll()) : [...memory.values()];
  return found.sort((a, b) => b.updated - a.updated);
}

/** The conversation with this id, or undefined. */
export async function get(id) {
  return database ? result(table("readonly").get(id)) : memory.get(id);
}

/** Writes a conversation. */
export async function put(conversation) {
  if (database) await result(table("readwrite").put(conversation));
  else memory.set(conversation.id, conversation);
  channel.postMessage(conversation.id);
}

/** Removes a conversation. */
export async function remove(id) {
  if (database) await result(table("readwrite").delete(id));
  else memory.delete(id);
  channel.postMessage(id);
}

/** Removes all of them. */
export async function clear() {
  if (database) await result(table("readwrite").clear());
  memory.clear();
  channel.postMessage(null);
}

/** Calls `act` with the id of every conversation that another tab writes. */
export function onWrittenElsewhere(act) {
  channel.onmessage = ({ data }) => act(data);
}
