// The page: choose a photo, upscale it as a job, compare, download; many go into the list. No libraries, no build.
// Everything the service says is shown as text, never as markup.

import { dropped, enqueue, isEmpty, useQueue } from "./queue.js";
import { Problem, ask, discard, follow, service, transfer } from "./service.js";
import { listenToViewer, viewer } from "./viewer.js";

const $ = (id) => document.getElementById(id);
const SUFFIXES = {
  ...{ "image/png": "png", "image/jpeg": "jpg", "image/webp": "webp" },
  ...{ "image/tiff": "tif", "image/avif": "avif", "image/jxl": "jxl" },
};
const NAMES = {
  ...{ png: "PNG", jpeg: "JPEG", webp: "WebP", tiff: "TIFF" },
  ...{ avif: "AVIF", heif: "HEIC", jxl: "JPEG XL" },
};
const NOT_SHOWN = ["tiff", "heif", "jxl"]; // what some browsers cannot show though nothing is wrong with it
const WARNINGS = {
  "alpha-flattened": "JPEG has no transparency: it became white.",
  "cmyk-converted": "The print colours (CMYK) became screen colours.",
  "depth-reduced": "16 bits a colour became 8, all that this format can hold.",
  "exif-broken": "The camera data is damaged and was left out.",
  "exif-dropped": "This format cannot hold the camera data.",
  "gainmap-dropped": "The HDR part of the photo was left out.",
  "gamma-dropped": "The brightness curve stored in the photo was left out.",
  "icc-dropped": "The colour profile does not fit and was left out.",
  "iptc-dropped": "The IPTC captions were left out.",
  "lab-converted": "Lab colours became screen colours.",
  "xmp-dropped": "This format cannot hold the XMP data.",
};

// What models are for, in the order of the list; the group of the default model comes first.
const PURPOSES = {
  clean: "Clean photos",
  unknown: "Photos of unknown quality",
  deblurring: "Blurred photos",
  other: "Other models",
  interpolation: "Without a network",
};

// Browsers take larger pictures, but slowly, and phones run out of memory.
const MOST_PIXELS_SHOWN = 1e8;

// ---- The photo: what the limits say about it before anything is sent

let photo = null; // {file, kind, url, width, height, shown}; no size where the browser cannot read it
let result = null; // {url, width, height, shown}
let running = null; // {controller, id} of the job under way

const SIGNATURES = [
  ["png", /^\x89PNG\r\n\x1a\n/],
  ["jpeg", /^\xff\xd8\xff/],
  ["webp", /^RIFF[^]{4}WEBP/],
  ["tiff", /^(II\*\0|MM\0\*)/],
  ["GIF", /^GIF8/],
  ["avif", /^[^]{4}ftyp[^]*avi[fs]/], // also where it names the common format first
  ["heif", /^[^]{4}ftyp(hei|hev|mif|msf)/],
  ["jxl", /^(\xff\x0a|\0\0\0\x0cJXL )/],
];

async function kindOf(file) {
  const start = String.fromCharCode(...new Uint8Array(await file.slice(0, 64).arrayBuffer()));
  return SIGNATURES.find(([, pattern]) => pattern.test(start))?.[0];
}

function checkFile(file, kind) {
  const { formats, body_bytes: most } = service.limits;
  const accepted = list(formats.map(nameOf), "or");
  if (!formats.includes(kind)) {
    const what = kind ? `This is a ${nameOf(kind)} file. ` : "";
    throw new Problem("This kind of file cannot be upscaled", `${what}Save the photo as ${accepted} first.`);
  }
  if (file.size > most) {
    throw new Problem("The file is too large", `It has ${size(file.size)}; at most ${size(most)} are accepted.`);
  }
}

function checkPixels({ width, height }, model) {
  const { side } = service.limits;
  const most = mostPixels(model);
  const has = `The photo has ${width} × ${height} pixels`;
  if (width * height > most) {
    const detail = `${has} (${megapixels(width * height)}); at most ${megapixels(most)} are accepted.`;
    throw new Problem("The photo has too many pixels", detail);
  }
  if (Math.max(width, height) > side) {
    throw new Problem("The photo is too long", `${has}; at most ${number(side)} a side are accepted.`);
  }
}

function mostPixels(model) {
  const { input_pixels, result_pixels } = service.limits.jobs;
  return Math.min(input_pixels, result_pixels / model.scale ** 2);
}

/** A picture as the viewer takes it. Only its header is decoded here, so a huge one costs nothing. */
function load(file) {
  return new Promise((resolve) => {
    const image = new Image();
    const url = URL.createObjectURL(file);
    image.onload = () => {
      const { naturalWidth: width, naturalHeight: height } = image;
      resolve({ url, width, height, shown: width * height <= MOST_PIXELS_SHOWN });
    };
    image.onerror = () => resolve({ url, shown: false });
    image.src = url;
  });
}

const unload = (picture) => picture && URL.revokeObjectURL(picture.url);

/** Takes what was picked, dropped or pasted, [{file, name}]: one photo to be looked at, several into the list. */
async function choose(photos) {
  if (photos.length === 0) return;
  if (running) return tell(new Problem("One photo is under way", "Cancel it, or wait for its end."));
  await started;
  if (!service.limits) await (started = start());
  if (!service.limits) return;
  clearProblem();
  if (photos.length > 1 || !isEmpty()) return enqueue(photos);
  try {
    const opened = await check(photos[0].file, chosenModel());
    unload(photo);
    unload(result);
    photo = opened;
    result = null;
    showPhoto();
  } catch (error) {
    tell(error);
  }
}

const named = (files) => [...files].map((file) => ({ file, name: file.webkitRelativePath || file.name }));

/** A small picture of the photo in a file. Throws a Problem where the service would refuse it. */
async function thumbnail(file) {
  unload(await check(file, chosenModel()));
  try {
    const small = await createImageBitmap(file, { resizeHeight: 96, resizeQuality: "medium" });
    const canvas = Object.assign(document.createElement("canvas"), { width: small.width, height: small.height });
    canvas.getContext("2d").drawImage(small, 0, 0);
    small.close();
    return await new Promise((resolve) => canvas.toBlob(resolve, "image/webp"));
  } catch {
    return null; // one of NOT_SHOWN
  }
}

/** The settings, as the service takes them. */
function query() {
  const chosen = new URLSearchParams({ scale: chosenScale(), format: $("format").value });
  if (service.models.length > 1) chosen.set("model", chosenModel().id);
  const share = denoiseShare();
  if (share) chosen.set("denoise", share);
  if ($("private").checked) chosen.set("metadata", "copyright");
  return chosen.toString();
}

/** The list takes the place of the one photo, and the settings with it. */
function showQueue(size) {
  const many = size > 0;
  if (many === document.body.classList.contains("many")) return;
  document.body.classList.toggle("many", many);
  if (many) $("queue-side").prepend($("options"));
  else $("busy").before($("options"));
  $("go").hidden = many;
  setState(many ? "empty" : photo ? (result ? "done" : "ready") : "empty");
  document.body.classList.toggle("chosen", many || photo !== null);
}

/** The photo in a file. Throws a Problem where the service would refuse it. */
async function check(file, model) {
  const kind = await kindOf(file);
  checkFile(file, kind);
  const opened = await load(file);
  try {
    if (!opened.width && !NOT_SHOWN.includes(kind)) {
      throw new Problem("The file is damaged", "This browser cannot show it. Try to open and save it anew.");
    }
    checkPixels(opened, model);
  } catch (error) {
    unload(opened);
    throw error;
  }
  return { file, kind, ...opened };
}

// ---- Upscaling

async function upscale() {
  clearProblem();
  const controller = new AbortController();
  running = { controller, id: null };
  setState("busy");
  $("cancel").focus();
  try {
    checkPixels(photo, chosenModel());
    await show(await runJob(controller.signal));
  } catch (error) {
    setState(result ? "done" : "ready");
    $("go").focus();
    if (controller.signal.aborted) say("Cancelled.");
    else tell(error);
  } finally {
    running = null;
  }
}

async function runJob(signal) {
  phase("Sending the photo", 0);
  const onSent = (share) => phase(share === 1 ? "Waiting for the service" : "Sending the photo", share);
  const posted = await transfer("POST", `v1/jobs?${query()}`, photo.file, signal, { onSent });
  const job = JSON.parse(await posted.response.text());
  running.id = job.id;
  try {
    await follow(job, signal, showJob);
    const onReceived = (share) => phase("Fetching the result", share);
    return await transfer("GET", `v1/jobs/${job.id}/result`, null, signal, { onReceived });
  } finally {
    discard(job.id);
  }
}

const showJob = ({ status, progress }) =>
  status === "queued" ? phase("Waiting for a free place") : phase("Upscaling", progress);

let quarterSaid = 0;

function phase(words, share) {
  const percent = share === undefined ? "" : `${Math.floor(100 * share)} %`;
  const before = $("phase").textContent;
  $("phase").textContent = words;
  $("percent").textContent = percent;
  document.title = `${percent || "…"} ${photo.file.name} – ray-sr`;
  if (share === undefined) $("progress").removeAttribute("value");
  else $("progress").value = share;
  // Said aloud at each new phase and each quarter, not at each tile.
  const quarter = Math.floor(4 * (share ?? 0));
  if (words !== before || quarter !== quarterSaid) say(quarter ? `${words}, ${25 * quarter} %` : words);
  quarterSaid = quarter;
}

async function show(request) {
  unload(result);
  result = await load(request.response);
  const kind = SUFFIXES[request.getResponseHeader("Content-Type")] ?? "img";
  const scale = request.getResponseHeader("RaySR-Scale") ?? chosenScale();
  const name = `${photo.file.name.replace(/\.[^.]*$/, "")}_x${scale}.${kind}`;
  $("download").href = result.url;
  $("download").download = name;
  $("file-name").textContent = name;
  $("result-facts").textContent = facts([sides(result), size(request.response.size)]);
  $("made-by").textContent = `Model ${request.getResponseHeader("RaySR-Model")}`;
  showWarnings(request.getResponseHeader("RaySR-Warnings"));
  setState("done");
  viewer.compare(photo, result);
  say(`Done: ${$("result-facts").textContent}`);
  $("done-title").focus({ preventScroll: true });
}

function showWarnings(codes) {
  const words = codes ? codes.split(", ").map((code) => WARNINGS[code] ?? code) : [];
  if (!result.shown) words.push("This browser cannot show the result. Download it to see it.");
  $("warnings").replaceChildren(...words.map((line) => element("li", line)));
  $("warnings").hidden = words.length === 0;
}

// ---- What the visitor sees and hears

function setState(state) {
  const busy = state === "busy";
  document.body.classList.toggle("chosen", state !== "empty");
  $("work").hidden = state === "empty";
  $("busy").hidden = !busy;
  $("done").hidden = state !== "done";
  $("go").hidden = busy || !isEmpty();
  $("choices").disabled = busy;
  $("file").disabled = busy;
  $("go").textContent = state === "done" ? "Upscale again" : goal();
  $("go").classList.toggle("primary", state !== "done");
  if (!busy) document.title = "Enlarge photos – ray-sr";
}

function goal() {
  if (!photo?.width) return "Upscale";
  const [width, height] = [photo.width, photo.height].map((side) => Math.round(side * chosenScale()));
  return `Upscale to ${sides({ width, height })}`;
}

function showPhoto() {
  $("ask").textContent = "Choose other photos";
  $("name").textContent = photo.file.name;
  $("facts").textContent = facts([sides(photo), size(photo.file.size), nameOf(photo.kind)]);
  setState("ready");
  viewer.single(photo);
  say(`${photo.file.name}, ${$("facts").textContent}`);
  $("go").focus({ preventScroll: true });
}

function tell(error) {
  if (!(error instanceof Problem)) {
    console.error(error);
    error = new Problem("This page failed", String(error.message ?? error));
  }
  if (error.status === 401) return askForKey();
  const id = error.id && element("p", `Request ${error.id}`, "note");
  $("problem").replaceChildren(element("strong", error.title), element("p", error.detail), ...(id ? [id] : []));
  $("problem").scrollIntoView({ block: "nearest" });
}

const clearProblem = () => $("problem").replaceChildren();
const say = (words) => ($("status").textContent = words);

function askForKey() {
  $("key-form").hidden = false;
  if (service.key) $("problem").replaceChildren(element("strong", "The service does not know this key."));
  $("key").focus();
}

function showLimits() {
  const { formats, body_bytes } = service.limits;
  const most = megapixels(mostPixels(chosenModel()));
  $("limits").textContent = `${list(formats.map(nameOf), "or")} · at most ${size(body_bytes)} and ${most}`;
  // Some systems know HEIC and JPEG XL by their endings alone.
  const endings = { heif: ".heic,.heif,", jxl: ".jxl," };
  $("file").accept = formats.map((format) => `${endings[format] ?? ""}image/${format}`).join();
}

function showModels() {
  const chosen = $("model").value || service.models[0].id;
  const first = service.models[0].purpose;
  const rank = ({ purpose }) => (purpose === first ? -1 : Object.keys(PURPOSES).indexOf(purpose));
  service.models.sort((one, other) => rank(one) - rank(other));
  const purposes = [...new Set(service.models.map(({ purpose }) => purpose))];
  const options = (models) => models.map((model) => new Option(modelLabel(model), model.id));
  const groups = purposes.map((label) => {
    const group = Object.assign(document.createElement("optgroup"), { label: PURPOSES[label] });
    group.append(...options(service.models.filter(({ purpose }) => purpose === label)));
    return group;
  });
  $("model").replaceChildren(...(groups.length > 1 ? groups : options(service.models)));
  $("model").selectedIndex = Math.max(0, service.models.findIndex(({ id }) => id === chosen));
  showModel();
}

const modelLabel = ({ id, name, scale }) => {
  const label = id === name || id.includes("@") ? id : `${id} (${name})`;
  return scale > 1 ? `${label} – up to ${scale}×` : `${label} – same size`;
};

/** What the chosen model is and can do. */
function showModel() {
  const { description, denoise } = chosenModel();
  $("model-note").textContent = description;
  $("model-note").hidden = !description;
  $("cleaning").hidden = !denoise;
  showShare();
  showScales();
}

const denoiseShare = () => (chosenModel().denoise ? Number($("denoise").value) : 0);
const showShare = () => {
  const share = Number($("denoise").value);
  $("denoise-share").textContent = share ? `${Math.round(100 * share)} %` : "off";
};

/** Whole factors up to that of the model. A model that only sharpens has the factor 1. */
function showScales() {
  const largest = chosenModel().scale;
  const wanted = Math.min(largest, chosenScale() ?? largest);
  const factors = Array.from({ length: largest }, (_, n) => n + 1).filter((factor) => factor > 1 || largest === 1);
  const choices = factors.map((factor) => {
    const label = element("label", largest === 1 ? "Same size, sharper" : `${factor}×`);
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "scale", value: factor });
    input.className = "unseen";
    input.checked = factor === wanted;
    label.append(input);
    return label;
  });
  $("scales").replaceChildren($("scales-label"), ...choices);
}

const chosenModel = () => service.models[$("model").selectedIndex];
const chosenScale = () => Number(document.querySelector("[name=scale]:checked")?.value) || undefined;

function element(tag, words, className = "") {
  return Object.assign(document.createElement(tag), { textContent: words, className });
}

const number = (value, digits = 0) => value.toLocaleString("en", { maximumFractionDigits: digits });
const megapixels = (pixels) => `${number(pixels / 1e6, 1)} megapixels`;
const sides = ({ width, height }) => width && `${width} × ${height}`;
const facts = (parts) => parts.filter(Boolean).join(" · ");
const nameOf = (format) => NAMES[format] ?? format;
const list = (words, last) => words.join(", ").replace(/, ([^,]*)$/, ` ${last} $1`);

function size(bytes) {
  if (bytes < 1024) return `${bytes} bytes`;
  return bytes < 1 << 20 ? `${number(bytes / 1024)} KiB` : `${number(bytes / (1 << 20), 1)} MiB`;
}

// ---- Where everything begins

function listen() {
  $("file").onchange = () => {
    choose(named($("file").files));
    $("file").value = ""; // so that the same file can be chosen again
  };
  $("folder").onchange = () => {
    choose(named($("folder").files).filter(({ file }) => !file.name.startsWith(".")));
    $("folder").value = "";
  };
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dragging");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    dropped(event.dataTransfer).then(choose).catch(tell);
  });
  document.addEventListener("paste", (event) => choose(named(event.clipboardData.files)));
  $("options").addEventListener("submit", (event) => {
    event.preventDefault();
    if (isEmpty()) upscale();
  });
  $("options").addEventListener("change", (event) => {
    if (event.target === $("model")) showModel();
    showLimits();
    $("go").textContent = goal();
  });
  $("denoise").oninput = showShare;
  $("cancel").onclick = () => running?.controller.abort();
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    service.key = $("key").value.trim();
    sessionStorage.setItem("ray-sr key", service.key);
    $("key-form").hidden = true;
    if (photo) upscale();
    else started = start();
  });
  addEventListener("pagehide", () => running?.id && discard(running.id));
  listenToViewer();
}

/** Learns what the service accepts, as soon as it is ready. */
async function start() {
  try {
    const [limits, models] = await Promise.all(["v1/limits", "v1/models"].map((url) => ask("GET", url)));
    service.limits = await limits.json();
    service.models = (await models.json()).models;
    showModels();
    showLimits();
    clearProblem();
  } catch (error) {
    if (error.status !== 503) return tell(error);
    $("limits").textContent = "The service is getting ready …";
    await new Promise((resolve) => setTimeout(resolve, 2000));
    return start();
  }
}

listen();
let started = start();
started.then(() => useQueue({ check: thumbnail, query, say, tell, onSize: showQueue }));
