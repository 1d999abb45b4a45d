/* Figures that move. Sliders choose among states that the page's notebook has computed;
   panels draw them. Nothing is computed here but a projection, and nothing is fetched. */
(() => {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";
  const CIVIDIS = ["#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#fee838"];
  const TINTS = ["#56b4e9", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#0072b2", "#999999", "#f0e442", "#7b6bc9", "#7fa35a"];
  const LEVELS = "0123456789abcdefghijklmnopqrstuvwxyz";

  const node = (tag, attributes = {}, parent, text, space = SVG) => {
    const made = space ? document.createElementNS(space, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    if (parent) parent.append(made);
    return made;
  };
  const tag = (name, attributes, parent, text) => node(name, attributes, parent, text, null);
  const tint = (name) => (name && name[0] === "#" ? name : `var(--fig-${name || "ink"})`);

  const shown = (value) => {
    if (value === null) return "–";
    if (typeof value !== "number") return String(value);
    const size = Math.abs(value);
    if (size && (size < 1e-3 || size >= 1e5)) {
      const [digits, power] = value.toExponential(1).split("e");
      const raised = [...String(Number(power))].map((c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c])).join("");
      return `${digits.replace("-", "−")}·10${raised}`;
    }
    return String(Number.isInteger(value) ? value : Number(value.toPrecision(3))).replace("-", "−");
  };

  /* A picture of letters, a level each; rows from below. */
  const picture = (letters, columns, palette) => {
    const rows = letters.length / columns;
    const canvas = tag("canvas", { width: columns, height: rows });
    const brush = canvas.getContext("2d");
    const stops = palette === "kinds" ? TINTS : CIVIDIS;
    const color = (level) => {
      if (palette === "kinds") return stops[level % stops.length];
      const place = (level / 35) * (stops.length - 1), k = Math.min(stops.length - 2, Math.floor(place));
      const mix = [1, 3, 5].map((i) => {
        const [a, b] = [stops[k], stops[k + 1]].map((c) => parseInt(c.slice(i, i + 2), 16));
        return Math.round(a + (place - k) * (b - a));
      });
      return `rgb(${mix})`;
    };
    [...letters].forEach((letter, i) => {
      if (letter === " ") return;
      brush.fillStyle = color(LEVELS.indexOf(letter));
      brush.fillRect(i % columns, rows - 1 - Math.floor(i / columns), 1, 1);
    });
    return canvas.toDataURL();
  };

  class Figure {
    constructor(root) {
      this.root = root;
      this.data = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
      this.controls = new Map(this.data.controls.map((c) => [c.name, c]));
      this.inputs = new Map([...root.querySelectorAll("input[type=range]")].map((i) => [i.name, i]));
      this.outputs = new Map([...this.inputs].map(([n, i]) => [n, i.closest("div").querySelector("output")]));
      this.told = [...root.querySelectorAll("[data-readout]")];
      for (const [name, output] of this.outputs) {
        const words = this.controls.get(name).shown || [];
        const room = Math.max(0, ...words.map((w) => w.length));
        if (room > 9) output.style.flexBasis = `${Math.min(22, room)}ch`; // the slider stays put
      }
      for (const [name, input] of this.inputs) {
        input.value = this.controls.get(name).start;
        input.addEventListener("input", () => this.update());
      }
      root.querySelectorAll(".moving-controls button").forEach((b) => this.player(b));
      const stage = root.querySelector(".moving-stage");
      this.panels = this.data.panels.map((p) => {
        const Kind = p.table ? Table : p.space ? Space : Plane;
        return new Kind(this, p, tag("div", { class: "moving-panel" }, stage));
      });
      root.classList.add("moving-on");
      root.querySelector(".moving-controls").hidden = false;
      this.update();
      new ResizeObserver(() => this.update()).observe(stage);
    }
    index(name) { return Number(this.inputs.get(name).value); }
    value(name) { return this.controls.get(name).values[this.index(name)]; }
    frame(by) { return by.reduce((i, n) => i * this.controls.get(n).values.length + this.index(n), 0); }
    pick(part, key = "data") {
      const list = part[key];
      return part.by && (key === "data" || Array.isArray(list)) ? list[this.frame(part.by)] : list;
    }
    choose(chosen) {
      for (const [name, k] of Object.entries(chosen))
        this.inputs.get(name).value = Math.max(0, Math.min(this.controls.get(name).values.length - 1, k));
      this.update();
    }
    nearest(name, value) {
      const gaps = this.controls.get(name).values.map((v) => Math.abs(v - value));
      return gaps.indexOf(Math.min(...gaps));
    }
    player(button) {
      const name = button.closest("div").querySelector("input").name;
      let timer = null;
      const stop = () => { clearInterval(timer); timer = null; button.textContent = "Play"; };
      button.setAttribute("aria-label", `Play: ${this.controls.get(name).label}`);
      button.addEventListener("click", () => {
        if (timer) return stop();
        const last = this.controls.get(name).values.length - 1;
        if (this.index(name) === last) this.choose({ [name]: 0 });
        button.textContent = "Stop";
        timer = setInterval(() => {
          this.choose({ [name]: this.index(name) + 1 });
          if (this.index(name) === last) stop();
        }, 120);
      });
    }
    update() {
      for (const [name, output] of this.outputs) {
        const c = this.controls.get(name), k = this.index(name);
        output.textContent = c.shown ? c.shown[k] : shown(c.values[k]);
        this.inputs.get(name).setAttribute("aria-valuetext", output.textContent);
      }
      (this.data.readouts || []).forEach((r, i) => {
        const value = this.pick(r);
        this.told[i].textContent = shown(value);
        this.told[i].dataset.value = JSON.stringify(value);
      });
      this.panels.forEach((p) => p.draw());
    }
  }

  class Panel {
    constructor(figure, spec, box) {
      Object.assign(this, { figure, spec, box });
      if (spec.title) tag("h6", { role: "presentation" }, box, spec.title);
      this.svg = node("svg", { role: "img", "aria-label": spec.alt || spec.title || "panel" }, box);
      const named = spec.layers.filter((l) => l.label);
      if (named.length) {
        const legend = tag("ul", { class: "moving-legend" }, box);
        for (const l of named) {
          const item = tag("li", {}, legend);
          const mark = l.type === "points" || l.type === "faces" ? "dot" : l.dash ? "dash" : "";
          const color = Array.isArray(l.color) ? l.color[0] : l.color;
          tag("i", { class: mark, style: `color:${tint(color)}` }, item);
          item.append(l.label);
        }
      }
    }
    /* One layer whose points are already on the screen. */
    trace(layer, i, points, parent) {
      const color = tint(this.figure.pick(layer, "color"));
      const common = { "data-layer": i };
      if (layer.type === "points") {
        for (const [x, y] of points)
          if (layer.mark === "star") {
            const tips = [...Array(10).keys()].map((k) => {
              const r = (k % 2 ? 0.42 : 1) * (layer.r || 8), a = (k * Math.PI) / 5 - Math.PI / 2;
              return [x + r * Math.cos(a), y + r * Math.sin(a)];
            });
            node("polygon", { ...common, points: tips.join(" "), style: `fill:${color};stroke:var(--fig-paper)` }, parent);
          } else node("circle", { ...common, cx: x, cy: y, r: layer.r || 3.5, style: `fill:${color};stroke:var(--fig-paper);stroke-width:.7` }, parent);
      } else if (layer.type === "text") {
        points.forEach(([x, y], k) => node("text", { ...common, x, y, "text-anchor": "middle", style: `fill:${color}` }, parent, layer.words[k]));
      } else if (points.length) {
        const d = "M" + points.map((p) => p.map((v) => Math.round(v * 100) / 100).join(",")).join("L") + (layer.close ? "Z" : "");
        const dash = layer.dash ? ";stroke-dasharray:5 4" : "";
        const fill = layer.fill ? `${color};fill-opacity:${layer.fill}` : "none";
        node("path", { ...common, d, style: `stroke:${color};stroke-width:${layer.width || 2};stroke-linejoin:round;fill:${fill}${dash}` }, parent);
        if (layer.arrow && points.length > 1) {
          const [[a, b], [x, y]] = points.slice(-2), turn = Math.atan2(y - b, x - a);
          const tip = [2.6, 0, -2.6].map((s) => s ? [x - 9 * Math.cos(turn + s / 6), y - 9 * Math.sin(turn + s / 6)] : [x, y]);
          if (Math.hypot(x - a, y - b) > 2) node("polygon", { points: tip.join(" "), style: `fill:${color}` }, parent);
        }
      }
    }
    /* Points of a layer; an ellipse is its centre and two conjugate half axes. */
    points(layer) {
      const data = this.figure.pick(layer);
      if (layer.type !== "ellipse") return data;
      const [c, u, v] = data;
      return [...Array(61).keys()].map((k) => {
        const a = (k * Math.PI) / 30;
        return c.map((x, i) => x + u[i] * Math.cos(a) + v[i] * Math.sin(a));
      });
    }
  }

  class Plane extends Panel {
    constructor(...all) {
      super(...all);
      if (this.spec.drag) this.draggable(...this.spec.drag);
    }
    draggable(across, up) {
      const move = (event) => {
        const box = this.svg.getBoundingClientRect(), f = this.figure;
        const [x, y] = this.data(event.clientX - box.left, event.clientY - box.top);
        const chosen = { [across]: f.nearest(across, x) };
        if (up) chosen[up] = f.nearest(up, y);
        f.choose(chosen);
      };
      this.svg.addEventListener("pointerdown", (event) => {
        event.preventDefault();
        this.svg.setPointerCapture(event.pointerId);
        this.svg.onpointermove = move;
        move(event);
      });
      for (const end of ["pointerup", "pointercancel"]) this.svg.addEventListener(end, () => { this.svg.onpointermove = null; });
    }
    scale(axis, length, flip) {
      const f = axis.log ? Math.log10 : (v) => v;
      const [a, b] = axis.range.map(f);
      const go = (v) => { const s = (f(v) - a) / (b - a); return (flip ? 1 - s : s) * length; };
      const back = (p) => { const s = flip ? 1 - p / length : p / length; return axis.log ? 10 ** (a + s * (b - a)) : a + s * (b - a); };
      return { go, back };
    }
    ticks(axis, room) {
      if (axis.ticks) return axis.ticks;
      const [a, b] = axis.range;
      if (axis.log) {
        const low = Math.ceil(Math.log10(a) - 1e-9), high = Math.floor(Math.log10(b) + 1e-9);
        const step = Math.max(1, Math.ceil((high - low) / Math.max(1, room / 45)));
        return [...Array(high - low + 1).keys()].filter((k) => k % step === 0).map((k) => 10 ** (low + k));
      }
      const raw = (b - a) / Math.max(2, room / 55), size = 10 ** Math.floor(Math.log10(raw));
      const step = size * ([1, 2, 5, 10].find((m) => m * size >= raw) || 10);
      const first = Math.ceil(a / step - 1e-9), last = Math.floor(b / step + 1e-9);
      return [...Array(last - first + 1).keys()].map((k) => Number(((first + k) * step).toPrecision(6)));
    }
    tick(value, log) {
      const power = Math.log10(value);
      if (log && Number.isInteger(Math.round(power * 1e6) / 1e6) && Math.abs(power) > 1.5)
        return "10" + [...String(Math.round(power))].map((c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c])).join("");
      return shown(value);
    }
    draw() {
      const { svg, spec, figure } = this, W = svg.clientWidth, H = svg.clientHeight;
      if (W < 60 || H < 60) return;
      let [left, top, w, h] = [spec.y.ticks && !spec.y.ticks.length ? 22 : 48, 8, 0, 0];
      w = W - left - 12; h = H - top - 36;
      if (spec.equal) {
        const rate = Math.min(w / (spec.x.range[1] - spec.x.range[0]), h / (spec.y.range[1] - spec.y.range[0]));
        const [w2, h2] = [spec.x, spec.y].map((a) => rate * (a.range[1] - a.range[0]));
        left += (w - w2) / 2; top += (h - h2) / 2; [w, h] = [w2, h2];
      }
      const x = this.scale(spec.x, w, false), y = this.scale(spec.y, h, true);
      this.data = (px, py) => [x.back(px - left), y.back(py - top)];
      const at = ([a, b]) => [left + x.go(a), top + y.go(b)];
      svg.dataset.frame = [left, top, w, h].map((v) => v.toFixed(2));
      svg.replaceChildren();
      const id = `clip-${(Figure.count = (Figure.count || 0) + 1)}`;
      const clip = node("clipPath", { id }, node("defs", {}, svg));
      node("rect", { x: left - 6, y: top - 6, width: w + 12, height: h + 12 }, clip);
      for (const v of this.ticks(spec.x, w)) {
        const p = left + x.go(v);
        node("line", { x1: p, x2: p, y1: top, y2: top + h, style: "stroke:var(--fig-grid)" }, svg);
        node("text", { x: p, y: top + h + 15, "text-anchor": "middle" }, svg, this.tick(v, spec.x.log));
      }
      for (const v of this.ticks(spec.y, h)) {
        const p = top + y.go(v);
        node("line", { x1: left, x2: left + w, y1: p, y2: p, style: "stroke:var(--fig-grid)" }, svg);
        node("text", { x: left - 5, y: p + 4, "text-anchor": "end" }, svg, this.tick(v, spec.y.log));
      }
      node("text", { class: "axis", x: left + w / 2, y: top + h + 31, "text-anchor": "middle" }, svg, spec.x.label);
      const up = node("text", { class: "axis", "text-anchor": "middle", transform: `translate(${left - (spec.y.ticks && !spec.y.ticks.length ? 8 : 36)} ${top + h / 2}) rotate(-90)` }, svg, spec.y.label);
      up.setAttribute("dy", 0);
      const inside = node("g", { "clip-path": `url(#${id})` }, svg);
      spec.layers.forEach((layer, i) => {
        if (layer.type === "heat") {
          const [x0, y1] = at([layer.box[0], layer.box[3]]), [x1, y0] = at([layer.box[1], layer.box[2]]);
          const letters = figure.pick(layer);
          this.pictures ??= new Map();
          const key = i + letters;
          if (!this.pictures.has(key)) this.pictures.set(key, picture(letters, layer.columns, layer.palette));
          node("image", { "data-layer": i, href: this.pictures.get(key), x: x0, y: y1, width: x1 - x0, height: y0 - y1,
            preserveAspectRatio: "none", style: "image-rendering:pixelated" }, inside);
        } else this.trace(layer, i, this.points(layer).map(at).filter((q) => q.every(Number.isFinite)), inside);
      });
      if (spec.drag) {
        const [a, b] = spec.drag.map((n) => figure.value(n));
        const [cx, cy] = at([a, spec.drag.length > 1 ? b : spec.y.range[0]]);
        if (spec.drag.length === 1)
          node("line", { x1: cx, x2: cx, y1: top, y2: top + h, style: "stroke:var(--fig-ink);stroke-dasharray:2 3" }, svg);
        node("circle", { class: "handle", cx, cy, r: 22, style: "fill:transparent" }, svg);
        node("circle", { class: "handle dot", cx, cy, r: 8, style: "fill:var(--fig-pink);stroke:var(--fig-ink);stroke-width:2" }, svg);
      }
    }
  }

  class Space extends Panel {
    constructor(...all) {
      super(...all);
      const f = this.figure;
      this.svg.style.cursor = "grab";
      this.svg.addEventListener("pointerdown", (event) => {
        event.preventDefault();
        this.svg.setPointerCapture(event.pointerId);
        const from = { x: event.clientX, y: event.clientY, turn: f.index("turn"), tilt: f.index("tilt") };
        this.svg.onpointermove = (now) => f.choose({
          turn: from.turn - Math.round((now.clientX - from.x) / 8),
          tilt: from.tilt + Math.round((now.clientY - from.y) / 8),
        });
      });
      for (const end of ["pointerup", "pointercancel"]) this.svg.addEventListener(end, () => { this.svg.onpointermove = null; });
    }
    draw() {
      const { svg, spec, figure } = this, W = svg.clientWidth, H = svg.clientHeight;
      if (W < 60 || H < 60) return;
      const [turn, tilt] = ["turn", "tilt"].map((n) => (figure.value(n) * Math.PI) / 180);
      const { centre, radius } = spec.space, size = (0.5 * Math.min(W, H) - 8) / radius;
      const seen = (p) => {
        const [x, y, z] = p.map((v, i) => v - centre[i]);
        const across = -x * Math.sin(turn) + y * Math.cos(turn), near = x * Math.cos(turn) + y * Math.sin(turn);
        return [W / 2 + size * across, H / 2 - size * (z * Math.cos(tilt) - near * Math.sin(tilt)), near * Math.cos(tilt) + z * Math.sin(tilt)];
      };
      svg.replaceChildren();
      const patches = [], names = [];
      spec.layers.forEach((layer, i) => {
        if (layer.type === "faces") {
          const lit = layer.lit ? figure.pick(layer.lit) : [];
          for (const face of layer.data) {
            const points = face.points.map(seen), depth = points.reduce((s, p) => s + p[2], 0) / points.length;
            const on = lit.includes(face.name);
            patches.push({ depth, points, color: tint(face.color), opacity: on ? 0.75 : 0.13, edge: "var(--fig-ink)", attributes: { "data-face": face.name, "data-lit": on } });
            if (face.name && (on || depth > 0)) names.push({ text: face.name, on, color: tint(face.color), at: [0, 1].map((k) => points.reduce((s, p) => s + p[k], 0) / points.length) });
          }
        } else if (layer.type === "mesh") {
          const grid = figure.pick(layer).map((row) => row.map(seen));
          for (let a = 0; a + 1 < grid.length; a++)
            for (let b = 0; b + 1 < grid[a].length; b++) {
              const points = [grid[a][b], grid[a + 1][b], grid[a + 1][b + 1], grid[a][b + 1]];
              patches.push({ depth: points.reduce((s, p) => s + p[2], 0) / 4, points, color: tint(layer.color), opacity: 0.3, edge: "var(--fig-paper)", attributes: {} });
            }
        }
      });
      patches.sort((a, b) => a.depth - b.depth);
      for (const p of patches)
        node("polygon", { ...p.attributes, points: p.points.map((q) => q.slice(0, 2).map((v) => v.toFixed(1))).join(" "),
          style: `fill:${p.color};fill-opacity:${p.opacity};stroke:${p.edge};stroke-width:.8;stroke-linejoin:round` }, svg);
      spec.layers.forEach((layer, i) => {
        if (layer.type !== "faces" && layer.type !== "mesh") this.trace(layer, i, this.points(layer).map((p) => seen(p).slice(0, 2)), svg);
      });
      for (const n of names)
        node("text", { x: n.at[0], y: n.at[1], "text-anchor": "middle", style: `fill:${n.on ? "var(--fig-ink)" : n.color};font-weight:${n.on ? 700 : 500};paint-order:stroke;stroke:var(--fig-paper);stroke-width:3px` }, svg, n.text);
    }
  }

  /* Rows and columns are the values of two controls; the chosen cell sets both. */
  class Table {
    constructor(figure, spec, box) {
      Object.assign(this, { figure, spec, box });
      const [down, across] = spec.table, rows = figure.controls.get(down).shown, columns = figure.controls.get(across).shown;
      const search = tag("input", { type: "search", placeholder: spec.hint, "aria-label": spec.hint }, box);
      const around = tag("div", { class: "moving-table" }, box);
      const table = tag("table", { class: "moving-cells", role: "grid", "aria-label": spec.title }, around);
      const head = tag("tr", {}, tag("thead", {}, table)), body = tag("tbody", {}, table);
      tag("th", { scope: "col" }, head, figure.controls.get(down).label);
      columns.forEach((name, k) => {
        const button = tag("button", { type: "button", "aria-pressed": "false", "aria-label": `Sort by ${name}` }, tag("th", { scope: "col" }, head), name);
        button.addEventListener("click", () => {
          const again = button.getAttribute("aria-pressed") === "true";
          head.querySelectorAll("button").forEach((b) => b.setAttribute("aria-pressed", "false"));
          if (!again) button.setAttribute("aria-pressed", "true");
          const key = (r) => (again ? r : spec.layers[0].order.indexOf(spec.layers[0].data[r * columns.length + k][0]) * 1e4 + r);
          body.append(...[...this.rows].sort((a, b) => key(this.rows.indexOf(a)) - key(this.rows.indexOf(b))));
        });
      });
      this.cells = [];
      this.rows = rows.map((name, r) => {
        const row = tag("tr", {}, body);
        tag("th", { scope: "row", title: name }, row, name);
        columns.forEach((_, c) => {
          const word = spec.layers[0].data[r * columns.length + c];
          const cell = tag("td", { tabindex: -1, style: `background:${spec.layers[0].colors[word[0]] || "#dddddd"}` }, row, word);
          const pick = () => figure.choose({ [down]: r, [across]: c });
          cell.addEventListener("pointerenter", (e) => { if (e.pointerType === "mouse") pick(); });
          cell.addEventListener("click", pick);
          cell.addEventListener("focus", pick);
          this.cells.push(cell);
        });
        return row;
      });
      search.addEventListener("input", () => {
        const wanted = search.value.trim().toLowerCase();
        this.rows.forEach((row, r) => { row.hidden = !rows[r].toLowerCase().includes(wanted) && !row.textContent.slice(rows[r].length).toLowerCase().includes(wanted || "\n"); });
      });
      table.addEventListener("keydown", (event) => {
        const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
        const row = event.target.closest("tr"), k = [...row.children].indexOf(event.target);
        if (!step || event.target.tagName !== "TD") return;
        event.preventDefault();
        const visible = [...body.children].filter((x) => !x.hidden);
        const next = visible[visible.indexOf(row) + step[0]]?.children[k + step[1]];
        if (next?.tagName === "TD") next.focus();
      });
    }
    draw() {
      const [down, across] = this.spec.table, columns = this.figure.controls.get(across).values.length;
      const chosen = this.figure.index(down) * columns + this.figure.index(across);
      if (this.chosen === chosen) return;
      const old = this.cells[this.chosen];
      if (old) { old.removeAttribute("aria-selected"); old.tabIndex = -1; }
      this.chosen = chosen;
      this.cells[chosen].setAttribute("aria-selected", "true");
      this.cells[chosen].tabIndex = 0;
      const row = this.cells[chosen].parentElement, around = this.box.querySelector(".moving-table");
      const head = around.querySelector("thead").offsetHeight, high = around.clientHeight;
      const top = Math.min(around.scrollTop, row.offsetTop - head);
      around.scrollTop = Math.max(top, row.offsetTop + row.offsetHeight - high);
    }
  }

  const start = () => {
    const watch = new IntersectionObserver((entries) => {
      for (const entry of entries)
        if (entry.isIntersecting) { watch.unobserve(entry.target); new Figure(entry.target); }
    }, { rootMargin: "300px" });
    document.querySelectorAll(".moving").forEach((root) => watch.observe(root));
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
