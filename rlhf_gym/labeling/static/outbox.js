// Judgements that the server has not confirmed yet. Each record has a key of its own in localStorage, so that neither a
// reload, nor a crash, nor a second tab loses one. The server knows records by their ids, so sending one twice does no
// harm.

const FIRST_WAIT = 400;
const LONGEST_WAIT = 5000;

export class Outbox {
  constructor(store, send, changed) {
    this.prefix = `rlhf-gym:unsent:${store}:`;
    this.send = send; // (path, body) -> Promise of the answer; rejects with {status} for an answer that is an error
    this.changed = changed; // called with what happened: "waiting", "stored", "refused"
    this.memory = new Map(); // used where the browser has no storage
    this.counter = 0;
    this.busy = false;
    this.wait = FIRST_WAIT;
  }

  keys() {
    const found = [...this.memory.keys()];
    try {
      for (let i = 0; i < localStorage.length; i++) {
        const key = localStorage.key(i);
        if (key.startsWith(this.prefix)) found.push(key);
      }
    } catch { /* no storage: memory has them all */ }
    return found.sort();
  }

  read(key) {
    if (this.memory.has(key)) return this.memory.get(key);
    try {
      return JSON.parse(localStorage.getItem(key));
    } catch {
      return null;
    }
  }

  get records() {
    return this.keys().map((key) => this.read(key)).filter(Boolean);
  }

  get size() {
    return this.keys().length;
  }

  add(path, body) {
    const order = `${String(Date.now()).padStart(15, "0")}-${String(this.counter++).padStart(6, "0")}`;
    const key = `${this.prefix}${order}-${body.id}`;
    try {
      localStorage.setItem(key, JSON.stringify({ path, body }));
    } catch {
      this.memory.set(key, { path, body });
    }
    this.flush();
  }

  remove(key) {
    this.memory.delete(key);
    try {
      localStorage.removeItem(key);
    } catch { /* it was in memory */ }
  }

  // Sends one record after the other, the oldest first, until none is left or the server wants another token.
  async flush() {
    if (this.busy) return;
    this.busy = true;
    try {
      for (let keys = this.keys(); keys.length; keys = this.keys()) {
        const key = keys[0];
        const record = this.read(key);
        if (!record) { this.remove(key); continue; }
        try {
          await this.send(record.path, record.body);
          this.remove(key);
          this.wait = FIRST_WAIT;
          this.changed("stored", record);
        } catch (error) {
          if (error.status === 401) return this.changed("locked", record);
          if (error.status >= 400 && error.status < 500 && error.status !== 408 && error.status !== 429) {
            this.remove(key);
            this.keepRefused(key, record, error.message);
            this.changed("refused", record, error.message);
            continue;
          }
          this.changed("waiting", record);
          await new Promise((resolve) => setTimeout(resolve, this.wait));
          this.wait = Math.min(this.wait * 1.6, LONGEST_WAIT);
        }
      }
    } finally {
      this.busy = false;
    }
  }

  // Keeps what the server refuses under another key, so that it does not hold up the rest.
  keepRefused(key, record, reason) {
    try {
      localStorage.setItem(key.replace(":unsent:", ":refused:"), JSON.stringify({ ...record, reason }));
    } catch { /* nowhere to keep it; it was shown */ }
  }
}
