// Many photos: a row each, a few at a time as jobs, kept over a reload of the page, all results as one ZIP.
// Photos that wait lie in the browser's database, not in memory.

import { Problem, ask, discard, follow, service, transfer } from "./service.js";

const $ = (id) => document.getElementById(id);
const AT_ONCE = 3; // photos that are sent and followed at the same time
const RETRY_S = 3; // after a refusal that asks to come again
const WORDS = { waiting: "Waiting", sending: "Sending", queued: "In the queue", done: "Done", failed: "Failed" };
const ENDED = new Set(["done", "failed"]);

const rows = new Map(); // id -> row; in the order in which they came
let page; // what the rest of the page gives: see `useQueue`
let busy = 0;

// ---- Kept over a reload: in IndexedDB, each tab its own

const tab = sessionStorage.getItem("ray-sr tab") ?? newId();
sessionStorage.setItem("ray-sr tab", tab);
const DAY_MS = 24 * 3600 * 1000;

function newId() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

const settled = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

const database = (async () => {
  const request = indexedDB.open("ray-sr queue", 1);
  request.onupgradeneeded = () => request.result.createObjectStore("photos", { keyPath: "id" });
  return settled(request);
})().catch(() => null); // a private window without a database: then the queue ends with the page

async function inStore(act, mode = "readwrite") {
  const opened = await database;
  return opened && settled(act(opened.transaction("photos", mode).objectStore("photos")));
}

const kept = ({ id, order, name, file, thumb, state, job, query, done, detail }) =>
  ({ id, tab, at: Date.now(), order, name, file, thumb, state, job, query, done, detail });
// Where the disk is full, a row ends with the page.
const keep = (row) => inStore((store) => store.put(kept(row))).catch(() => {});
const drop = (id) => inStore((store) => store.delete(id)).catch(() => {});

/** The rows that this tab had before it was loaded again. Those of tabs that are closed for a day are dropped. */
async function restore() {
  const all = (await inStore((store) => store.getAll(), "readonly")) ?? [];
  for (const old of all.filter((one) => one.tab !== tab && Date.now() - one.at > DAY_MS)) drop(old.id);
  for (const found of all.filter((one) => one.tab === tab).sort((a, b) => a.order - b.order)) {
    const state = ENDED.has(found.state) ? found.state : "waiting";
    addRow({ ...found, state });
  }
  if (rows.size) show();
  work();
}

// ---- Rows

/** Takes photos in: {file, name}, the name with the folders below the one that was chosen. */
export async function enqueue(photos) {
  $("queue").setAttribute("aria-busy", "true");
  for (const { file, name } of photos) {
    const row = { id: newId(), order: Date.now() + rows.size / 1e4, name, file, state: "waiting", query: null };
    addRow(row);
    show();
    try {
      row.thumb = await page.check(file); // refused here is not sent; the picture is closed again
    } catch (error) {
      fail(row, error);
      row.file = undefined;
    }
    if (!rows.has(row.id)) continue; // removed while it was looked at
    await keep(row);
    draw(row);
  }
  $("queue").removeAttribute("aria-busy");
  page.say(`${rows.size} photos in the list`);
  show();
}

function addRow(row) {
  rows.set(row.id, row);
  const item = document.createElement("li");
  row.parts = Object.fromEntries(["thumb", "name", "state", "progress", "save", "retry", "remove"].map((name) => {
    const tag = { thumb: "img", progress: "progress", save: "button", retry: "button", remove: "button" }[name] ?? "span";
    return [name, Object.assign(document.createElement(tag), { className: name })];
  }));
  const { thumb, name, state, progress, save, retry, remove } = row.parts;
  thumb.alt = "";
  name.textContent = row.name;
  name.id = `name-${row.id}`;
  progress.setAttribute("aria-labelledby", name.id);
  const verbs = [[save, "Download", () => saveOne(row)], [retry, "Retry", () => again(row)], [remove, "Remove", () => away(row)]];
  for (const [button, words, act] of verbs) {
    Object.assign(button, { type: "button", textContent: words, onclick: act });
    button.setAttribute("aria-label", `${words} ${row.name}`);
  }
  const text = document.createElement("div");
  text.append(name, state, progress);
  item.append(thumb, text, save, retry, remove);
  row.item = item;
  $("rows").append(item);
  draw(row);
}

function draw(row) {
  const { thumb, state, progress, save, retry } = row.parts;
  if (row.thumb && !thumb.src) thumb.src = URL.createObjectURL(row.thumb);
  thumb.hidden = !row.thumb;
  row.item.dataset.state = row.state;
  const share = row.progress === undefined ? "" : ` ${Math.floor(100 * row.progress)} %`;
  const words = row.state === "running" ? `Upscaling${share}` : WORDS[row.state];
  state.textContent = row.detail ? `${words}: ${row.detail}` : words;
  progress.hidden = row.state !== "running" && row.state !== "sending";
  progress.value = row.progress ?? 0;
  save.hidden = row.state !== "done";
  retry.hidden = row.state !== "failed" || !row.file;
}

function set(row, state, fields = {}) {
  Object.assign(row, { state, progress: undefined, detail: undefined, ...fields });
  draw(row);
}

function fail(row, error) {
  set(row, "failed", { detail: error instanceof Problem ? `${error.title}. ${error.detail}` : String(error.message ?? error) });
}

function again(row) {
  row.job = undefined;
  row.query = page.query();
  set(row, "waiting");
  keep(row);
  work();
}

function away(row) {
  row.controller?.abort();
  if (row.job) discard(row.job);
  const next = row.item.nextElementSibling ?? row.item.previousElementSibling;
  rows.delete(row.id);
  row.item.remove();
  if (row.parts.thumb.src) URL.revokeObjectURL(row.parts.thumb.src);
  drop(row.id);
  show(); // before the focus moves: it may hide what had it
  (next?.querySelector(".remove") ?? $("ask")).focus();
}

// ---- Work

/** Begins with the photos that have not been begun, with the settings as they are now. */
export function start() {
  const query = page.query();
  for (const row of rows.values()) {
    if (row.state === "waiting" && !row.query) {
      row.query = query;
      keep(row);
    }
  }
  work();
}

function work() {
  const next = [...rows.values()].filter((row) => row.state === "waiting" && (row.query || row.job));
  while (busy < AT_ONCE && next.length) {
    busy += 1;
    upscale(next.shift()).finally(() => {
      busy -= 1;
      work();
    });
  }
  show();
}

async function upscale(row) {
  row.controller = new AbortController();
  const { signal } = row.controller;
  try {
    set(row, "sending");
    const job = row.job ? await known(row, signal) : await send(row, signal);
    await follow(job, signal, ({ status, progress }) => {
      if (status === "queued" || status === "running") set(row, status, { progress: status === "running" ? progress : undefined });
    });
    set(row, "done", { done: await nameOf(row, signal) });
    row.file = undefined; // the service has it, and the result
  } catch (error) {
    if (signal.aborted) return;
    if (error.status === 404 || error.status === 410) row.job = undefined;
    if (error.status === 401) page.tell(error);
    fail(row, error);
  }
  await keep(row);
  const ended = [...rows.values()].filter((one) => ENDED.has(one.state)).length;
  if (ended === rows.size || ended % 10 === 0) page.say(`${ended} of ${rows.size} photos`);
}

async function known(row, signal) {
  return (await ask("GET", `v1/jobs/${row.job}`, signal)).json();
}

/** Sends a photo, again and again while the service has no room. */
async function send(row, signal) {
  for (;;) {
    try {
      const onSent = (share) => set(row, "sending", { progress: share });
      // The key makes a photo that is sent again after a reload the same job.
      const headers = { "Idempotency-Key": `${row.id} ${row.query}` };
      const posted = await transfer("POST", `v1/jobs?${row.query}`, row.file, signal, { onSent, headers });
      const job = JSON.parse(await posted.response.text());
      row.job = job.id;
      await keep(row);
      return job;
    } catch (error) {
      if (signal.aborted || ![429, 503].includes(error.status)) throw error;
      set(row, "sending", { detail: "the service is full; trying again" });
      await new Promise((resolve) => setTimeout(resolve, 1000 * RETRY_S));
    }
  }
}

// ---- Results

/** Name of the result: as in a folder job, with the folders of the photo. */
async function nameOf(row, signal) {
  const response = await ask("HEAD", `v1/jobs/${row.job}/result`, signal);
  const type = response.headers.get("Content-Type")?.split("/")[1];
  const suffix = { jpeg: "jpg", tiff: "tif" }[type] ?? type;
  return `${row.name.replace(/\.[^./]*$/, "")}_x${response.headers.get("RaySR-Scale")}.${suffix}`;
}

async function saveOne(row) {
  try {
    const answer = await (await ask("GET", `v1/jobs/${row.job}/result`)).blob();
    const url = URL.createObjectURL(answer);
    link(url, row.done.split("/").pop());
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  } catch (error) {
    page.tell(error);
  }
}

async function saveAll() {
  const jobs = [...rows.values()].filter((row) => row.state === "done").map((row) => ({ id: row.job, name: row.done }));
  try {
    const archive = await (await ask("POST", "v1/archives", undefined, JSON.stringify({ jobs }))).json();
    link(archive.url, "upscaled.zip"); // the browser writes it to disk as it comes
  } catch (error) {
    page.tell(error);
  }
}

function link(href, name) {
  const anchor = Object.assign(document.createElement("a"), { href, download: name });
  document.body.append(anchor);
  anchor.click();
  anchor.remove();
}

// ---- The whole list

function show() {
  const states = [...rows.values()].map((row) => row.state);
  const count = (...wanted) => states.filter((state) => wanted.includes(state)).length;
  const [done, failed, all] = [count("done"), count("failed"), states.length];
  $("queue").hidden = all === 0;
  page.onSize(all);
  const fresh = [...rows.values()].filter((row) => row.state === "waiting" && !row.query && !row.job).length;
  $("start").hidden = fresh === 0;
  $("start").textContent = `Upscale ${fresh} ${fresh === 1 ? "photo" : "photos"}`;
  $("all-progress").value = all ? (done + failed) / all : 0;
  $("all-state").textContent = [`${done} of ${all} done`, failed && `${failed} failed`].filter(Boolean).join(" · ");
  $("save-all").hidden = done === 0;
  $("save-all").textContent = `Download ${done === 1 ? "the result" : `all ${done} results`} as ZIP`;
}

export const isEmpty = () => rows.size === 0;

/** Connects the list with the page, and takes up what was under way before a reload. */
export function useQueue(given) {
  page = given;
  $("start").onclick = start;
  $("save-all").onclick = saveAll;
  $("clear").onclick = () => [...rows.values()].forEach(away);
  restore();
}

/** Files of a drop, those of its folders included: [{file, name}]. To be called at once in the event. */
export async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files].map((file) => ({ file, name: file.name }));
  const found = [];
  for (const entry of entries) await walk(entry, found);
  return found;
}

async function walk(entry, found) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    if (!file.name.startsWith(".")) found.push({ file, name: entry.fullPath.replace(/^\//, "") });
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (some.length === 0) return;
    for (const one of some) await walk(one, found);
  }
}
