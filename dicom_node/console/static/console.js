// What the console's pages do besides links and forms. Everything works without it, but for switching single boxes.
"use strict";

// ---- films: zoom, window, boxes --------------------------------------------------------------------------------------

const STEP = 1.25, CLOSEST = 16, FINE_FROM = 1.6, WINDOW_STEP = 0.06;

class Film {
  constructor(panel) {
    this.frame = panel.querySelector("[data-frame]");
    this.canvas = panel.querySelector("[data-canvas]");
    this.picture = this.canvas.querySelector("image");
    this.tools = panel.querySelector("[data-window]");
    this.told = panel.querySelector("[data-told]");
    const [, , width, height] = this.canvas.getAttribute("viewBox").split(" ").map(Number);
    this.whole = { x: 0, y: 0, width, height };
    this.view = { ...this.whole };
    this.isFine = false;
    this.frame.addEventListener("keydown", (event) => this.onKey(event));
    this.frame.addEventListener("wheel", (event) => this.onWheel(event), { passive: false });
    this.frame.addEventListener("pointerdown", (event) => this.onDrag(event));
    const zoom = panel.querySelector("[data-zoom]");
    zoom.hidden = false;
    zoom.addEventListener("click", (event) => this.act(event.target.closest("[data-do]")?.dataset.do));
    this.tools.addEventListener("submit", (event) => { event.preventDefault(); this.load(); });
    this.tools.querySelector("[data-reset]")?.addEventListener("click", (event) => { event.preventDefault(); this.reset(); });
    for (const input of this.windowInputs()) input.addEventListener("change", () => this.load());
    this.picture.addEventListener("error", () => this.tell("The picture cannot be loaded now."));
    this.picture.addEventListener("load", () => this.tell(this.describe()));
  }

  windowInputs() { return ["centre", "width"].map((name) => this.tools.elements[name]).filter(Boolean); }

  tell(text) { this.told.textContent = text; }

  describe() {
    const times = this.whole.width / this.view.width;
    return times > 1.01 ? `Zoom ${times.toFixed(1)} times` : "";
  }

  act(what) {
    if (what === "in") this.zoom(1 / STEP);
    if (what === "out") this.zoom(STEP);
    if (what === "fit") this.show(this.whole);
  }

  zoom(ratio, x = this.view.x + this.view.width / 2, y = this.view.y + this.view.height / 2) {
    const width = Math.min(this.whole.width, Math.max(this.whole.width / CLOSEST, this.view.width * ratio));
    const real = width / this.view.width;
    this.show({ x: x - (x - this.view.x) * real, y: y - (y - this.view.y) * real, width, height: this.view.height * real });
  }

  move(across, along) {
    this.show({ ...this.view, x: this.view.x + across * this.view.width, y: this.view.y + along * this.view.height });
  }

  show(view) {
    const x = Math.min(Math.max(view.x, 0), this.whole.width - view.width);
    const y = Math.min(Math.max(view.y, 0), this.whole.height - view.height);
    this.view = { ...view, x, y };
    this.canvas.setAttribute("viewBox", `${x} ${y} ${view.width} ${view.height}`);
    this.tell(this.describe());
    if (!this.isFine && this.whole.width / view.width >= FINE_FROM) { this.isFine = true; this.load(); }
  }

  load() {
    const query = new URLSearchParams();
    const [centre, width] = this.windowInputs().map((input) => input.value);
    const [plainCentre, plainWidth] = this.tools.dataset.plain.split(" ");
    if (centre !== undefined && centre !== "" && Number(width) >= 1 && (centre !== plainCentre || width !== plainWidth)) {
      query.set("centre", centre);
      query.set("width", width);
    }
    if (this.isFine) query.set("fine", "1");
    const text = query.toString();
    this.tell("Loading …");
    this.picture.setAttribute("href", this.tools.dataset.window + (text ? `?${text}` : ""));
  }

  reset() {
    const plain = this.tools.dataset.plain.split(" ");
    this.windowInputs().forEach((input, n) => { input.value = plain[n]; });
    this.load();
  }

  changeWindow(widthBy, centreBy) {
    const [centre, width] = this.windowInputs();
    if (!centre) return;
    const now = Math.max(1, Number(width.value));
    width.value = Math.max(1, Math.round(now * (1 + widthBy)));
    centre.value = Math.round(Number(centre.value) + now * centreBy);
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.load(), 250);
  }

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const keys = {
      "+": () => this.zoom(1 / STEP), "=": () => this.zoom(1 / STEP), "-": () => this.zoom(STEP),
      "0": () => this.show(this.whole), "ArrowLeft": () => this.move(-0.1, 0), "ArrowRight": () => this.move(0.1, 0),
      "ArrowUp": () => this.move(0, -0.1), "ArrowDown": () => this.move(0, 0.1),
      ",": () => this.changeWindow(-WINDOW_STEP, 0), ".": () => this.changeWindow(WINDOW_STEP, 0),
      "<": () => this.changeWindow(0, -WINDOW_STEP), ">": () => this.changeWindow(0, WINDOW_STEP),
    };
    const arrow = event.key.startsWith("Arrow");
    if (!(event.key in keys) || (arrow && this.view.width >= this.whole.width)) return;
    event.preventDefault();
    keys[event.key]();
  }

  onWheel(event) {
    if (document.activeElement !== this.frame && !event.ctrlKey) return; // the page scrolls, until a film is chosen
    event.preventDefault();
    const at = this.point(event);
    this.zoom(event.deltaY > 0 ? STEP : 1 / STEP, at.x, at.y);
  }

  onDrag(event) {
    if (event.button !== 0 || this.view.width >= this.whole.width) return;
    const start = this.point(event), from = { ...this.view };
    this.frame.setPointerCapture(event.pointerId);
    this.frame.classList.add("grabbing");
    const follow = (moved) => {
      const place = this.canvas.getBoundingClientRect(), scale = Math.max(from.width / place.width, from.height / place.height);
      this.show({ ...from, x: from.x - (moved.clientX - event.clientX) * scale, y: from.y - (moved.clientY - event.clientY) * scale });
    };
    const end = () => {
      this.frame.classList.remove("grabbing");
      this.frame.removeEventListener("pointermove", follow);
    };
    this.frame.addEventListener("pointermove", follow);
    this.frame.addEventListener("pointerup", end, { once: true });
    this.frame.addEventListener("pointercancel", end, { once: true });
    return start;
  }

  point(event) {
    const matrix = this.canvas.getScreenCTM().inverse();
    return new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix);
  }
}

function startReading(reading) {
  for (const panel of reading.querySelectorAll("[data-film]")) if (panel.querySelector("[data-frame]")) new Film(panel);
  const boxesOf = (number) => reading.querySelectorAll(`[data-finding="${number}"]`);
  const set = (input) => { for (const box of boxesOf(input.dataset.switch)) box.toggleAttribute("hidden", !input.checked); };
  const switches = [...reading.querySelectorAll("[data-switch]")];
  for (const input of switches) {
    input.addEventListener("change", () => set(input));
    const light = (on) => { for (const box of boxesOf(input.dataset.switch)) box.classList.toggle("lit", on); };
    const row = input.closest("[data-listed]");
    row.addEventListener("pointerenter", () => light(true));
    row.addEventListener("pointerleave", () => light(false));
    input.addEventListener("focus", () => light(true));
    input.addEventListener("blur", () => light(false));
    set(input); // a browser may have kept what was chosen before
  }
  for (const part of reading.querySelectorAll("[data-needs-script]")) part.hidden = false;
  for (const button of reading.querySelectorAll("[data-all]")) {
    button.addEventListener("click", () => switches.forEach((input) => { input.checked = button.dataset.all === "on"; set(input); }));
  }
}

// ---- lists that keep themselves up to date ---------------------------------------------------------------------------

class Live {
  constructor(part) {
    this.part = part;
    this.button = document.querySelector("[data-live-button]");
    this.told = document.querySelector("[data-live-told]");
    this.isOn = sessionStorage.getItem("live") !== "off";
    this.seconds = Number(part.dataset.liveSeconds);
    this.button.hidden = false;
    this.button.addEventListener("click", () => this.toggle());
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.tick(); });
    setInterval(() => this.tick(), this.seconds * 1000);
    this.say();
  }

  toggle() {
    this.isOn = !this.isOn;
    sessionStorage.setItem("live", this.isOn ? "on" : "off");
    this.say();
    if (this.isOn) this.tick();
  }

  say() {
    this.button.textContent = this.isOn ? "Pause updates" : "Resume updates";
    this.told.textContent = this.isOn ? `Updated every ${this.seconds} s` : "Updates are paused";
  }

  async tick() {
    const chosen = this.part.querySelector("input:checked");
    const isReading = getSelection().toString() !== "" && this.part.contains(getSelection().anchorNode);
    if (!this.isOn || document.hidden || this.isAsking || chosen || isReading) return;
    this.isAsking = true;
    try {
      // nobody asks for this: it keeps no sign-in alive, and where that is over, nothing of patients stays on the screen
      const answer = await fetch(this.part.dataset.live, { headers: { "X-Refresh": "1" } });
      if (answer.redirected) return location.reload();
      if (!answer.ok) throw new Error(String(answer.status));
      this.replace(await answer.text());
      this.say();
    } catch {
      this.told.textContent = "The node does not answer; trying again";
    } finally {
      this.isAsking = false;
    }
  }

  replace(text) {
    const fresh = new DOMParser().parseFromString(text, "text/html").querySelector("[data-live]");
    if (!fresh || fresh.innerHTML === this.part.innerHTML) return;
    const focused = this.part.contains(document.activeElement) ? document.activeElement : null;
    const name = focused?.id, left = this.part.scrollLeft;
    this.part.replaceChildren(...fresh.childNodes);
    this.part.scrollLeft = left;
    if (name) document.getElementById(name)?.focus({ preventScroll: true });
  }
}

// ---- everything that is chosen at once -------------------------------------------------------------------------------

function startChoosing(form) {
  const all = form.querySelector("[data-choose-all]");
  form.addEventListener("change", (event) => {
    if (event.target.matches("[data-choose-all]")) {
      for (const one of form.querySelectorAll("[data-choose]")) one.checked = event.target.checked;
    }
  });
  if (all) all.closest("label, th").hidden = false;
}

document.querySelectorAll("[data-reading]").forEach(startReading);
document.querySelectorAll("[data-live]").forEach((part) => new Live(part));
document.querySelectorAll("[data-choosing]").forEach(startChoosing);
