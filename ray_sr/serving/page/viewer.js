// The viewer: one picture, or two above each other and cut at a divider, moved and zoomed together.

const $ = (id) => document.getElementById(id);

export const viewer = {
  width: 1, // of what is shown at 100 %: of the result once there is one
  height: 1,
  zoom: 1, // pixels of the screen a pixel of the picture
  x: 0.5, // the point of the picture in the middle of the stage, as shares
  y: 0.5,
  fitted: true,

  /** Shows one picture: {url, width, height, shown}. */
  single(picture) {
    this.load("before", picture);
    this.setComparing(false);
    const { width = 1, height = 1 } = picture;
    Object.assign(this, { width, height, fitted: true, x: 0.5, y: 0.5 });
    this.layout();
  },

  /** Shows the second of two pictures beside the first, at 100 % and where the visitor was looking. */
  compare(before, after) {
    if (!before.shown || !after.shown) return this.single(after.shown ? after : before);
    this.load("after", after);
    this.setComparing(true);
    Object.assign(this, { width: after.width, height: after.height, zoom: 1, fitted: false });
    this.layout();
  },

  load(id, picture) {
    $(id).hidden = !picture.shown;
    if (picture.shown) $(id).src = picture.url;
    $("unseeable").hidden = picture.shown;
  },

  setComparing(comparing) {
    for (const id of ["right", "divider", "tag-before", "tag-after"]) $(id).hidden = !comparing;
    $("stage").setAttribute("aria-label", comparing ? "Photo before and after" : "Photo");
    $("split").value = 50;
  },

  /** Puts the pictures where zoom and position say, and the divider over the part that can be seen. */
  layout() {
    const stage = $("stage");
    const [room, tall] = [stage.clientWidth, stage.clientHeight];
    if (this.fitted) this.zoom = Math.min(8, Math.min(room / this.width, tall / this.height) * devicePixelRatio);
    const [width, height] = [this.width, this.height].map((side) => (side * this.zoom) / devicePixelRatio);
    this.x = keepInside(this.x, width, room);
    this.y = keepInside(this.y, height, tall);
    const [left, top] = [onGrid(room / 2 - this.x * width), onGrid(tall / 2 - this.y * height)];
    for (const image of [$("before"), $("after")]) {
      Object.assign(image.style, { width: `${width}px`, height: `${height}px`, translate: `${left}px ${top}px` });
    }
    const seen = { left: Math.max(0, left), top: Math.max(0, top) };
    seen.width = Math.min(room, left + width) - seen.left;
    seen.height = Math.min(tall, top + height) - seen.top;
    for (const [name, value] of Object.entries(seen)) $("divider").style[name] = `${value}px`;
    this.seen = seen;
    stage.style.touchAction = height <= tall ? "pan-y" : "none"; // a finger scrolls the page where it moves nothing
    $("zoom").textContent = `${Math.round(100 * this.zoom)} %`;
    this.cut();
  },

  /** Cuts both pictures at the divider. */
  cut() {
    const share = $("split").valueAsNumber;
    $("divider").style.setProperty("--split", share);
    const edge = `${this.seen.left + (share / 100) * this.seen.width}px`;
    $("left").style.clipPath = $("right").hidden ? "none" : `inset(0 calc(100% - ${edge}) 0 0)`;
    $("right").style.clipPath = `inset(0 0 0 ${edge})`;
    const before = Math.round(share);
    $("split").setAttribute("aria-valuetext", `${before} % before, ${100 - before} % after`);
  },

  fit() {
    this.fitted = true;
    this.layout();
  },

  /** Zooms so that the picture stays where it is at a point of the stage; without one, in its middle. */
  zoomTo(zoom, at) {
    const stage = $("stage").getBoundingClientRect();
    const before = this.zoom;
    this.zoom = Math.min(8, Math.max(0.02, zoom));
    this.fitted = false;
    if (at) {
      const moved = (1 / before - 1 / this.zoom) * devicePixelRatio;
      this.x += ((at.x - stage.left - stage.width / 2) * moved) / this.width;
      this.y += ((at.y - stage.top - stage.height / 2) * moved) / this.height;
    }
    this.layout();
  },

  move(right, down) {
    this.x -= (right * devicePixelRatio) / (this.width * this.zoom);
    this.y -= (down * devicePixelRatio) / (this.height * this.zoom);
    this.layout();
  },

  /** The next of the round zooms: 25 %, 50 %, 100 %, 200 %, … */
  step(direction) {
    const power = Math.log2(this.zoom);
    this.zoomTo(2 ** (direction > 0 ? Math.floor(power + 1.001) : Math.ceil(power - 1.001)));
  },
};

const onGrid = (length) => Math.round(length * devicePixelRatio) / devicePixelRatio;

/** The point in the middle, so that no gap opens between the picture's edge and the stage's. */
function keepInside(middle, length, room) {
  const half = room / 2 / length;
  return half >= 0.5 ? 0.5 : Math.min(1 - half, Math.max(half, middle));
}

/** Takes mouse, fingers, wheel and keys. To be called once. */
export function listenToViewer() {
  const stage = $("stage");
  const fingers = new Map();
  const spread = () => {
    const [a, b] = fingers.values();
    return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, length: Math.hypot(a.x - b.x, a.y - b.y) };
  };
  stage.addEventListener("pointerdown", (event) => {
    if (event.target === $("split") || event.button) return;
    stage.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    stage.classList.add("moving");
  });
  stage.addEventListener("pointermove", (event) => {
    const last = fingers.get(event.pointerId);
    if (!last) return;
    const before = fingers.size === 2 && spread();
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (before) viewer.zoomTo((viewer.zoom * spread().length) / before.length, before);
    viewer.move((event.clientX - last.x) / fingers.size, (event.clientY - last.y) / fingers.size);
  });
  for (const name of ["pointerup", "pointercancel"]) {
    stage.addEventListener(name, (event) => {
      fingers.delete(event.pointerId);
      stage.classList.toggle("moving", fingers.size > 0);
    });
  }
  stage.addEventListener("dblclick", (event) => {
    if (viewer.fitted) viewer.zoomTo(1, { x: event.clientX, y: event.clientY });
    else viewer.fit();
  });
  stage.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    viewer.zoomTo(viewer.zoom * 2 ** (-event.deltaY / 200), { x: event.clientX, y: event.clientY });
  }, { passive: false });
  $("viewer").addEventListener("keydown", onViewerKey);
  $("split").addEventListener("input", () => viewer.cut());
  $("fit").onclick = () => viewer.fit();
  $("full").onclick = () => viewer.zoomTo(1);
  $("in").onclick = () => viewer.step(1);
  $("out").onclick = () => viewer.step(-1);
  new ResizeObserver(() => viewer.layout()).observe(stage);
}

const ARROWS = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
const KEYS = {
  "+": () => viewer.step(1),
  "=": () => viewer.step(1),
  "-": () => viewer.step(-1),
  0: () => viewer.fit(),
  1: () => viewer.zoomTo(1),
};

function onViewerKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key in KEYS) KEYS[event.key]();
  else if (event.key in ARROWS && event.target === $("stage")) viewer.move(...ARROWS[event.key]);
  else return;
  event.preventDefault();
}
