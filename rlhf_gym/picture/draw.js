/* What the scenes share: pictures at the size of the screen, sliders, and time that runs. */
const numbers = JSON.parse(document.getElementById("numbers").textContent);
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const find = (id) => document.getElementById(id);

/** A number with a real minus sign. */
function shown(value, digits = 2, sign = false) {
  const text = Math.abs(value).toFixed(digits);
  const zero = Number(text) === 0;
  return (value < 0 && !zero ? "−" : sign && !zero ? "+" : "") + text;
}

/** An element of HTML, its class and what is in it. */
function html(name, className, ...content) {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.append(...content);
  return element;
}

/** Round numbers for an axis, about `count` of them. */
function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * 0.999) * power;
  const digits = [0, 1, 2, 3, 4].find((places) => Math.abs(step * 10 ** places - Math.round(step * 10 ** places)) < 1e-6);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i += 1) found.push(i * step);
  return found.map((value) => ({ value, label: shown(value, digits) }));
}

/** A text in pieces: what stands behind "_" is a subscript, as in "π_ref". */
function pieces(text) {
  return text.split(/(_[a-zφ]+)/).map((piece) => ({ low: piece.startsWith("_"), text: piece.replace(/^_/, "") }));
}

/** A chart in an element of class "plot". It is drawn anew at every change, in pixels of the screen. */
class Plot {
  constructor(id, redraw, height) {
    this.host = find(id);
    this.height = height;
    this.root = this.make("svg", { role: "img", "aria-label": this.host.dataset.label });
    this.host.append(this.root);
    new ResizeObserver(redraw).observe(this.host);
  }

  make(name, attributes, text) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    let lowered = false;
    for (const piece of text === undefined ? [] : pieces(text)) {
      const part = document.createElementNS("http://www.w3.org/2000/svg", "tspan");
      if (piece.low !== lowered) part.setAttribute("dy", piece.low ? 3.5 : -3.5);
      if (piece.low) part.setAttribute("class", "low");
      lowered = piece.low;
      part.textContent = piece.text;
      element.append(part);
    }
    return element;
  }

  add(name, attributes, text) {
    const element = this.make(name, attributes, text);
    this.root.append(element);
    return element;
  }

  /** Clear it and draw its axes: `x` and `y` are [low, high]; an axis without a name is not drawn. */
  begin({ x, y, xName = "", yName = "", xTicks, yTicks, left = 44, right = 14, top = 26, bottom = 40 }) {
    this.width = Math.max(this.host.clientWidth, 120);
    this.frame = { left, right: this.width - right, top, bottom: this.height - bottom };
    this.x = x;
    this.y = y;
    this.root.replaceChildren();
    this.root.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    this.root.setAttribute("height", this.height);
    const { frame } = this;
    if (yName) {
      for (const { value, label } of yTicks ?? ticks(...y, this.height / 55)) {
        this.segment(x[0], value, x[1], value, "grid");
        this.words(frame.left - 8, this.Y(value) + 4, label, "tick end");
      }
      this.words(frame.left - 36 < 8 ? 2 : frame.left - 36, 13, yName, "axis");
    }
    if (xName) {
      for (const { value, label } of xTicks ?? ticks(...x, this.width / 75)) {
        this.add("line", { x1: this.X(value), x2: this.X(value), y1: frame.bottom, y2: frame.bottom + 4, class: "mark" });
        this.words(this.X(value), frame.bottom + 17, label, "tick middle");
      }
      this.add("line", { x1: frame.left, x2: frame.right, y1: frame.bottom, y2: frame.bottom, class: "mark" });
      this.words((frame.left + frame.right) / 2, this.height - 6, xName, "axis middle");
    }
  }

  X(value) {
    return this.frame.left + ((value - this.x[0]) / (this.x[1] - this.x[0])) * (this.frame.right - this.frame.left);
  }

  Y(value) {
    return this.frame.bottom - ((value - this.y[0]) / (this.y[1] - this.y[0])) * (this.frame.bottom - this.frame.top);
  }

  segment(x1, y1, x2, y2, className) {
    return this.add("line", { x1: this.X(x1), y1: this.Y(y1), x2: this.X(x2), y2: this.Y(y2), class: className });
  }

  curve(points, className) {
    const path = points.map(([x, y]) => `${this.X(x).toFixed(2)},${this.Y(y).toFixed(2)}`).join(" ");
    return this.add("polyline", { points: path, class: className });
  }

  /** A function's curve over the whole x axis. */
  graph(f, className, count = 160) {
    const [low, high] = this.x;
    const xs = Array.from({ length: count + 1 }, (_, i) => low + ((high - low) * i) / count);
    return this.curve(xs.map((x) => [x, f(x)]), className);
  }

  /** A region between two values on the x axis. */
  band(low, high, className) {
    const [from, to] = [low, high].map((x) => this.X(Math.min(Math.max(x, this.x[0]), this.x[1])));
    const { top, bottom } = this.frame;
    return this.add("rect", { x: from, y: top, width: Math.max(to - from, 0), height: bottom - top, class: className });
  }

  dot(x, y, className, radius = 6) {
    return this.add("circle", { cx: this.X(x), cy: this.Y(y), r: radius, class: className });
  }

  words(x, y, text, className) {
    return this.add("text", { x, y, class: className }, text);
  }

  label(x, y, text, className, dx = 0, dy = 0) {
    return this.words(this.X(x) + dx, this.Y(y) + dy, text, className);
  }

  /** An arrow between two points in pixels; one that is shorter than its head is not drawn. */
  arrow(x1, y1, x2, y2, className) {
    const length = Math.hypot(x2 - x1, y2 - y1);
    if (length < 3) return;
    const [dx, dy] = [(x2 - x1) / length, (y2 - y1) / length];
    const head = Math.min(9, length * 0.7);
    const [bx, by] = [x2 - dx * head, y2 - dy * head];
    this.add("line", { x1, y1, x2: bx, y2: by, class: `shaft ${className}` });
    const side = head * 0.55;
    const corners = [[x2, y2], [bx - dy * side, by + dx * side], [bx + dy * side, by - dx * side]];
    this.add("polygon", { points: corners.map((p) => p.join(",")).join(" "), class: `head ${className}` });
  }

  /** Call `move(x, y, grip)` with values on the axes while a finger or the mouse drags; `take(px, py)` gives the grip. */
  drag(take, move) {
    const { root } = this;
    let grip = null;
    const place = (event) => {
      const box = root.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    const value = ([px, py]) => [
      this.x[0] + ((px - this.frame.left) / (this.frame.right - this.frame.left)) * (this.x[1] - this.x[0]),
      this.y[0] + ((this.frame.bottom - py) / (this.frame.bottom - this.frame.top)) * (this.y[1] - this.y[0]),
    ];
    root.classList.add("draggable");
    root.addEventListener("pointerdown", (event) => {
      grip = take(...place(event), ...value(place(event)));
      if (grip === null) return;
      root.setPointerCapture(event.pointerId);
      move(...value(place(event)), grip);
    });
    root.addEventListener("pointermove", (event) => {
      if (grip !== null) move(...value(place(event)), grip);
    });
    for (const name of ["pointerup", "pointercancel"]) root.addEventListener(name, () => (grip = null));
  }
}

/** A slider of the page: calls `changed(value)`, and shows and says the value as `text(value)` has it. */
class Slider {
  constructor(id, text, changed) {
    this.input = find(id);
    this.output = this.input.closest("label").querySelector("output");
    this.text = text;
    this.input.addEventListener("input", () => {
      this.tell();
      changed(this.value);
    });
    this.tell();
  }

  get value() {
    return Number(this.input.value);
  }

  set value(value) {
    this.input.value = value;
    this.tell();
  }

  get range() {
    return [Number(this.input.min), Number(this.input.max)];
  }

  tell() {
    const text = this.text(this.value);
    this.output.textContent = text;
    this.input.setAttribute("aria-valuetext", text);
    const [low, high] = this.range;
    this.input.style.setProperty("--at", `${(100 * (this.value - low)) / (high - low)}%`);
  }
}

/** A button that lets time run: `advance(seconds)` moves on and returns false at the end, `restart()` begins anew. */
class Player {
  constructor(id, advance, restart) {
    this.button = find(id);
    this.advance = advance;
    this.restart = restart;
    this.over = false;
    this.button.addEventListener("click", () => (this.running ? this.stop() : this.start()));
    this.stop();
  }

  start() {
    if (this.over) this.restart();
    this.over = false;
    this.running = true;
    this.button.textContent = "❚❚ Pause";
    let last = performance.now();
    let waited = 0;
    const tick = (now) => {
      if (!this.running) return;
      const passed = Math.min((now - last) / 1000, 0.6);
      last = now;
      waited += passed;
      if (!calm.matches || waited >= 0.5) {
        const goesOn = this.advance(waited);
        waited = 0;
        if (goesOn === false) {
          this.over = true;
          this.stop();
          return;
        }
      }
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  stop() {
    this.running = false;
    this.button.textContent = "▶ Play";
  }

  /** Somebody has moved something: time stands still, and runs on from there. */
  touched() {
    this.over = false;
    this.stop();
  }
}

/** Put texts into elements: {id: text}. */
function tell(texts) {
  for (const [id, text] of Object.entries(texts)) write(find(id), `${text}`);
}

/** Put a text into an element, its subscripts included. */
function write(element, text) {
  if (element.dataset.text === text) return;
  element.dataset.text = text;
  element.replaceChildren(...pieces(text).map((piece) => (piece.low ? html("sub", "", piece.text) : piece.text)));
}

const watched = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      const link = document.querySelector(`nav a[href="#${entry.target.id}"]`);
      if (entry.isIntersecting) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  },
  { rootMargin: "-45% 0px -54% 0px" },
);
for (const section of document.querySelectorAll("section")) watched.observe(section);

find("theme").addEventListener("click", () => {
  const style = document.documentElement.style;
  const dark = style.colorScheme ? style.colorScheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  style.colorScheme = dark ? "light" : "dark";
});
