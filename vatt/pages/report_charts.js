// Line charts, heat maps and scatter plots. Nothing here knows what the numbers mean.

const SVG = "http://www.w3.org/2000/svg";
const FALLBACK_HUES = ["#3b76e1", "#d9601a", "#1c9a74", "#a35bd0", "#c79a00", "#d63f6e", "#5a6b80", "#3aa6c9"];
const NAMED_HUES = {
  red: "#d71e23", green: "#23a537", blue: "#2846e1", yellow: "#e8d61e", purple: "#9628be",
  orange: "#f58214", white: "#f7f7f7", black: "#121212",
};

function svg(name, attributes, parent) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (parent) parent.append(node);
  return node;
}

function html(name, className, text, parent) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

const bytesOf = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
const decimal = (value) => value.toFixed(2).replace("-", "\u2212");
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const rgb = (name) => css(name).match(/[0-9a-f]{2}/gi).map((h) => parseInt(h, 16));

/** Draws when the script has run and whenever the width changes; drawing may change the height. */
function onWidth(node, draw) {
  let width = 0;
  queueMicrotask(() => {
    width = node.clientWidth;
    draw();
  });
  new ResizeObserver(() => {
    if (node.clientWidth === width) return;
    width = node.clientWidth;
    requestAnimationFrame(draw);
  }).observe(node);
}

// ---- tooltip -----------------------------------------------------------------------------------

const tip = {
  node: document.getElementById("tip"),
  show(x, y, fill) {
    this.node.replaceChildren();
    fill(this.node);
    this.node.hidden = false;
    const box = this.node.getBoundingClientRect();
    const left = x + 16 + box.width > innerWidth ? x - box.width - 16 : x + 16;
    const top = y + 16 + box.height > innerHeight ? y - box.height - 16 : y + 16;
    this.node.style.left = `${Math.max(6, left)}px`;
    this.node.style.top = `${Math.max(6, top)}px`;
  },
  hide() { this.node.hidden = true; },
};

// ---- line charts -------------------------------------------------------------------------------

function niceTicks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const ticks = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step / 1e6; v += step) ticks.push(+v.toPrecision(10));
  return ticks;
}

const UNITS = {
  number: (v) => (Math.abs(v) >= 1000 ? `${v / 1000}k` : `${+v.toPrecision(3)}`),
  percent: (v) => `${+v.toFixed(1)} %`,
  share: (v) => `${+(100 * v).toFixed(1)} %`,
};

function smooth(points) {
  if (points.length < 60) return points;
  const half = Math.max(2, Math.round(points.length / 60));
  return points.map(([x], i) => {
    const near = points.slice(Math.max(0, i - half), i + half + 1);
    return [x, near.reduce((sum, p) => sum + p[1], 0) / near.length];
  });
}

function drawChart(panel, chart) {
  const frame = html("div", "", undefined, panel);
  const legend = html("ul", "legend", undefined, panel);
  const format = UNITS[chart.unit];
  for (const series of chart.series) {
    const item = html("li", "", undefined, legend);
    const sample = svg("svg", { viewBox: "0 0 24 8", "aria-hidden": true }, item);
    svg("path", { d: "M0 4H24", ...stroke(series), "stroke-width": 3 }, sample);
    item.append(`${series.name} `);
    html("b", "", format(smooth(series.points).at(-1)[1]), item);
  }
  onWidth(frame, () => drawLines(frame, chart, format));
}

function stroke(series) {
  return {
    stroke: `var(--${series.hue})`, fill: "none", "stroke-width": 2.2, "stroke-linejoin": "round",
    ...(series.dashed ? { "stroke-dasharray": "6 4" } : {}),
  };
}

function drawLines(frame, chart, format) {
  const width = frame.clientWidth, height = 230, left = 46, right = 10, top = 12, bottom = 26;
  if (!width) return;
  const all = chart.series.flatMap((s) => s.points);
  const steps = all.map((p) => p[0]), values = all.map((p) => p[1]);
  const x0 = Math.min(...steps), x1 = Math.max(...steps, x0 + 1);
  const y1 = Math.max(...values), y0 = Math.min(0, ...values);
  const x = (v) => left + ((v - x0) / (x1 - x0)) * (width - left - right);
  const y = (v) => height - bottom - ((v - y0) / (y1 - y0 || 1)) * (height - top - bottom);
  const root = svg("svg", { height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": describe(chart, format) });
  for (const tick of niceTicks(y0, y1, 5)) {
    svg("line", { x1: left, x2: width - right, y1: y(tick), y2: y(tick), stroke: "var(--grid)" }, root);
    svg("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, root).textContent = format(tick);
  }
  const ticks = niceTicks(x0, x1, Math.max(2, width / 110));
  for (const tick of ticks) svg("text", { x: x(tick), y: height - 6, "text-anchor": "middle" }, root).textContent = UNITS.number(tick);
  if (x(ticks[0]) - left > 40 || x(ticks[0]) === left) svg("text", { x: 0, y: height - 6 }, root).textContent = "step";
  for (const series of chart.series) {
    const path = (points) => "M" + points.map((p) => `${x(p[0]).toFixed(1)} ${y(p[1]).toFixed(1)}`).join("L");
    const calm = smooth(series.points);
    if (calm !== series.points) svg("path", { d: path(series.points), ...stroke(series), opacity: 0.22, "stroke-width": 1 }, root);
    svg("path", { d: path(calm), ...stroke(series) }, root);
    if (calm.length <= 40) for (const p of calm) svg("circle", { cx: x(p[0]), cy: y(p[1]), r: 3, fill: `var(--${series.hue})` }, root);
  }
  const cursor = svg("line", { y1: top, y2: height - bottom, stroke: "var(--muted)", visibility: "hidden" }, root);
  frame.replaceChildren(root);
  root.addEventListener("pointermove", (event) => {
    const place = event.clientX - root.getBoundingClientRect().left;
    const step = steps.reduce((best, s) => (Math.abs(x(s) - place) < Math.abs(x(best) - place) ? s : best));
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, x(step));
    cursor.setAttribute("visibility", "visible");
    tip.show(event.clientX, event.clientY, (node) => {
      html("b", "", `step ${step}`, node);
      for (const series of chart.series) {
        const near = series.points.reduce((a, b) => (Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a));
        const line = html("div", "line", undefined, node);
        html("span", "", series.name, line);
        html("b", "", format(near[1]), line);
      }
    });
  });
  root.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); tip.hide(); });
}

function describe(chart, format) {
  const ends = chart.series.map((s) => `${s.name} from ${format(s.points[0][1])} to ${format(s.points.at(-1)[1])}`);
  return `${chart.title}: ${ends.join(", ")}`;
}

// ---- heat maps ---------------------------------------------------------------------------------

function decodeLevels(map) {
  const bytes = bytesOf(map.levels);
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 2 }, (_, i) => {
    const level = view.getUint16(2 * i, true);
    return level === 65535 ? NaN : map.low + (level / 65534) * (map.high - map.low);
  });
}

function heatColours() {
  const stops = [0, 1, 2, 3].map((i) => rgb(`--heat-${i}`));
  return (share) => {
    const place = Math.min(2.9999, Math.max(0, share * 3)), low = Math.floor(place), rest = place - low;
    return stops[low].map((c, i) => c * (1 - rest) + stops[low + 1][i] * rest);
  };
}

/** Draws the picture and the names of the groups; returns a function from event to cell. */
function drawHeatMap(canvas, picture, groups, cell) {
  const width = canvas.parentElement.clientWidth;
  if (!width) return null;
  const left = groups.length ? 62 : 0, top = groups.length ? 22 : 0, side = width - left, n = picture.width;
  const ratio = devicePixelRatio || 1;
  canvas.width = width * ratio;
  canvas.height = (side + top) * ratio;
  canvas.style.height = `${side + top}px`;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(picture, left, top, side, side);
  pen.font = "11.5px system-ui, sans-serif";
  pen.fillStyle = css("--muted");
  pen.strokeStyle = css("--surface");
  pen.lineWidth = 1.5;
  for (const group of groups) {
    const from = (group.start / n) * side, to = (group.end / n) * side;
    if (group.start) {
      line(pen, left, top + from, left + side, top + from);
      line(pen, left + from, top, left + from, top + side);
    }
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    if (to - from > 9) pen.fillText(group.name, left - 7, top + (from + to) / 2, left - 8);
    pen.textAlign = "center";
    if (pen.measureText(group.name).width < to - from) pen.fillText(group.name, left + (from + to) / 2, top - 10);
  }
  if (cell) {
    const size = side / n;
    pen.strokeStyle = css("--mark");
    line(pen, left, top + (cell.row + 0.5) * size, left + cell.column * size, top + (cell.row + 0.5) * size);
    line(pen, left + (cell.column + 0.5) * size, top, left + (cell.column + 0.5) * size, top + cell.row * size);
    pen.strokeRect(left + cell.column * size, top + cell.row * size, size, size);
  }
  return (event) => {
    const box = canvas.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left - left) / side) * n);
    const row = Math.floor(((event.clientY - box.top - top) / side) * n);
    return row >= 0 && column >= 0 && row < n && column < n ? { row, column } : null;
  };
}

function line(pen, x0, y0, x1, y1) {
  pen.beginPath();
  pen.moveTo(x0, y0);
  pen.lineTo(x1, y1);
  pen.stroke();
}

function heatPicture(map, order) {
  const n = order.length, picture = document.createElement("canvas");
  picture.width = picture.height = n;
  const pen = picture.getContext("2d"), image = pen.createImageData(n, n), colour = heatColours();
  const missing = ["--surface", "--line"].map(rgb);
  order.forEach((row, i) => order.forEach((column, j) => {
    const share = (map.values[row * n + column] - map.pale) / (map.high - map.pale || 1);
    image.data.set([...(isNaN(share) ? missing[(i + j) % 2] : colour(share)), 255], 4 * (i * n + j));
  }));
  pen.putImageData(image, 0, 0);
  return picture;
}

// ---- scatter plots -----------------------------------------------------------------------------

const MARKS = { // circle, triangle, square of the same weight to the eye
  video: (x, y, r) => `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0`,
  audio: (x, y, r) => `M${x} ${y - 1.25 * r}L${x + 1.15 * r} ${y + 0.8 * r}H${x - 1.15 * r}Z`,
  text: (x, y, r) => `M${x - 0.88 * r} ${y - 0.88 * r}h${1.76 * r}v${1.76 * r}h${-1.76 * r}Z`,
};

/** Draws one space; calls over(index, event) for the clip nearest to the pointer, over(null) outside. */
function drawScatter(frame, points, hue, joined, over) {
  const width = frame.clientWidth, height = Math.min(width, 520), edge = 14;
  if (!width) return;
  const every = Object.values(points).flat().filter(Boolean);
  const [x, y] = [0, 1].map((axis) => {
    const values = every.map((p) => p[axis]), low = Math.min(...values), high = Math.max(...values);
    const size = (axis ? height : width) - 2 * edge;
    return (p) => edge + (axis ? high - p[axis] : p[axis] - low) / (high - low || 1) * size;
  });
  const root = svg("svg", { height, viewBox: `0 0 ${width} ${height}` });
  const lines = svg("g", { stroke: "var(--muted)", fill: "none", opacity: 0.35 }, root);
  const marks = svg("g", { stroke: "var(--ink)", "stroke-width": 0.7, "stroke-opacity": 0.55, "fill-opacity": 0.9 }, root);
  const focus = svg("path", { stroke: "var(--mark)", "stroke-width": 2, fill: "none" }, root);
  const polyline = (i) => "M" + Object.values(points).map((m) => m[i]).filter(Boolean).map((p) => `${x(p)} ${y(p)}`).join("L");
  const places = [];
  for (const [modality, list] of Object.entries(points)) {
    list.forEach((p, i) => {
      if (!p) return;
      svg("path", { d: MARKS[modality](x(p), y(p), 4.6), fill: hue(i) }, marks);
      places.push({ i, modality, x: x(p), y: y(p) });
    });
  }
  if (joined) new Set(places.map((p) => p.i)).forEach((i) => svg("path", { d: polyline(i) }, lines));
  frame.replaceChildren(root);
  const leave = () => { focus.setAttribute("d", ""); over(null); };
  root.addEventListener("pointermove", (event) => {
    const box = root.getBoundingClientRect(), px = event.clientX - box.left, py = event.clientY - box.top;
    const far = (p) => Math.hypot(p.x - px, p.y - py);
    const near = places.reduce((a, b) => (far(b) < far(a) ? b : a));
    if (far(near) > 22) return leave();
    const rings = places.filter((p) => p.i === near.i).map((p) => MARKS.video(p.x, p.y, 8)).join("");
    focus.setAttribute("d", polyline(near.i) + rings);
    over(near, event);
  });
  root.addEventListener("pointerleave", leave);
}
