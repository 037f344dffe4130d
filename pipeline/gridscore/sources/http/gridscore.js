// Sends what happens on a web page to a Gridscore HTTP source.
//
//   <script src="https://events.example.com/gridscore.js" data-map="events.clicks" data-clicks></script>
//   <script>gridscore.track({ action: "search", words: 3 });</script>
//   <script>gridscore.ask("results.clicks", { action: "search" }, 2000).then((result) => alert(result.decision));</script>
//
// Events are sent in batches: a second after the first, or as soon as there are fifty. A batch has a key from its first
// try to its last, so an event is there once, however often it was sent. What is left when the page is hidden goes as a
// beacon. With `data-clicks`, clicks on links, buttons and elements with `data-track` are sent by themselves.
"use strict";
(() => {
  const script = document.currentScript;
  const map = script.dataset.map;
  if (!map) throw new Error("gridscore.js: say where events go: <script src=… data-map=\"events.clicks\">");
  const address = new URL(`events/${encodeURIComponent(map)}`, script.src).href;
  const answers = (results, key) => new URL(`results/${encodeURIComponent(results)}/${encodeURIComponent(key)}`, script.src);

  const DELAY = 1000; // milliseconds that an event may wait for others
  const BATCH_EVENTS = 50;
  const BATCH_BYTES = 48 * 1024; // browsers carry 64 KiB of beacons for a page that goes
  const MAX_WAITING = 1000; // events; the oldest are given up when there are more
  const MAX_PAUSE = 30000;
  const MAX_ANSWER = 30000; // milliseconds for an answer: a connection may die without a word, while we wait for it

  const id = () => [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0")).join("");
  const size = (text) => new TextEncoder().encode(text).length;
  const session = (() => {
    try {
      const kept = sessionStorage.getItem("gridscore.session") || id();
      sessionStorage.setItem("gridscore.session", kept);
      return kept;
    } catch {
      return id(); // storage may be forbidden
    }
  })();

  const state = { sent: 0, refused: 0, dropped: 0 };
  let waiting = []; // texts of events that are in no batch yet
  let waitingBytes = 0;
  const batches = []; // { key, texts, tries, left }; the first may be under way, all may have left as beacons
  let timer = null;
  let sending = false;

  const textOf = (event) =>
    JSON.stringify({ ...event, session, page: location.pathname, time: new Date().toISOString() });

  function track(event) {
    const text = textOf(event);
    if (size(text) > BATCH_BYTES) throw new Error("gridscore.js: the event is too large");
    if (waitingBytes + size(text) > BATCH_BYTES) close();
    waiting.push(text);
    waitingBytes += size(text) + 1;
    if (waiting.length >= BATCH_EVENTS) close();
    while (batches.length > 1 && count() > MAX_WAITING) state.dropped += batches.splice(1, 1)[0].texts.length;
    if (batches.length) send();
    // Also while a batch is under way: when that has gone, nobody else would see that there is more.
    if (waiting.length && timer === null) timer = setTimeout(flush, DELAY);
  }

  // Sends one event at once and gives its result; fails with the reason if it is rejected, or there is none in time.
  async function ask(results, event, milliseconds = 2000) {
    const until = Date.now() + milliseconds;
    const text = textOf(event);
    const own = id();
    const get = async (url, options) => {
      for (;;) {
        const left = until - Date.now();
        if (left <= 0) throw new Error("gridscore.js: there is no result in time");
        try {
          const answer = await fetch(url(left), { credentials: "omit", signal: AbortSignal.timeout(left), ...options });
          const value = await answer.json();
          if (answer.ok) return value;
          if (answer.status === 422) throw Object.assign(new Error(`gridscore.js: ${value.error}`), value.rejected);
          if (answer.status < 500 && ![404, 408, 429].includes(answer.status))
            throw Object.assign(new Error(`gridscore.js: ${value.error}`), { reason: value.error });
        } catch (error) {
          if (error.reason) throw error; // any other may be gone by the next try, under the same key
        }
        await new Promise((resolve) => setTimeout(resolve, 200));
      }
    };
    const headers = { "Content-Type": "text/plain;charset=UTF-8" };
    const taken = await get(() => `${address}?key=${own}`, { method: "POST", body: text, headers });
    const [key, after] = [taken.keys[0], taken.after?.[0] ?? -1];
    return get((left) => `${answers(results, key)}?wait=${left}ms&after=${after}`);
  }

  const count = () => waiting.length + batches.reduce((sum, batch) => sum + batch.texts.length, 0);

  function close() {
    if (waiting.length) batches.push({ key: id(), texts: waiting, tries: 0 });
    waiting = [];
    waitingBytes = 0;
  }

  function flush() {
    timer = null;
    close();
    send();
  }

  const target = (batch) => `${address}?key=${batch.key}`;
  const body = (batch) => `[${batch.texts.join(",")}]`;

  async function send() {
    if (sending) return;
    sending = true;
    while (batches.length) {
      const batch = batches[0];
      let pause = Math.min(MAX_PAUSE, 500 * 2 ** batch.tries++) * (0.5 + Math.random() / 2);
      try {
        // Plain text needs no question beforehand, which a browser asks before it sends JSON to another origin.
        const answer = await fetch(target(batch), {
          method: "POST",
          body: body(batch),
          headers: { "Content-Type": "text/plain;charset=UTF-8" },
          credentials: "omit",
          keepalive: true,
          signal: AbortSignal.timeout(MAX_ANSWER),
        });
        if (answer.status !== 408 && answer.status !== 429 && answer.status < 500) {
          const { accepted = 0 } = await answer.json().catch(() => ({}));
          state.sent += accepted;
          state.refused += batch.texts.length - accepted;
          batches.shift();
          continue;
        }
        pause = Math.max(pause, 1000 * (Number(answer.headers.get("Retry-After")) || 0));
      } catch {
        // No connection, or no answer: it may have arrived or not, and goes once more under the same key.
      }
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
    sending = false;
  }

  function leave() {
    clearTimeout(timer);
    timer = null;
    close();
    // What is under way goes, too: nobody may be here to see whether it has arrived.
    for (const batch of batches) batch.left ||= navigator.sendBeacon(target(batch), body(batch));
  }

  function comeBack() {
    // A beacon has no answer that we could see: what is not known to be there goes once more, under the same key.
    for (const batch of batches) batch.left = false;
    send();
  }

  addEventListener("pagehide", leave);
  addEventListener("pageshow", comeBack);
  document.addEventListener("visibilitychange", () => (document.visibilityState === "hidden" ? leave() : comeBack()));

  if ("clicks" in script.dataset) {
    document.addEventListener(
      "click",
      (click) => {
        const element = click.target instanceof Element && click.target.closest("[data-track], a, button");
        if (!element) return;
        const target = element.dataset.track || element.id || element.getAttribute("href") || element.textContent.trim();
        track({ action: "click", target: target.slice(0, 200), x: Math.round(click.pageX), y: Math.round(click.pageY) });
      },
      { capture: true },
    );
  }

  window.gridscore = { track, ask, flush, session, state };
})();
