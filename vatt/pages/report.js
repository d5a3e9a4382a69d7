// Puts the report together: posters, clips that play, charts by ECharts.

const data = JSON.parse(document.getElementById("payload").textContent);
const clips = data.clips;
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;

function html(name, className, text, parent) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

const bytesOf = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));

// ---- clips -------------------------------------------------------------------------------------

function mediaUrl(number) {
  const clip = clips[number];
  if (!clip.url && clip.media) {
    clip.url = URL.createObjectURL(new Blob([bytesOf(clip.media)], { type: clip.type }));
  }
  return clip.url;
}

let stopSounding = () => {}; // only one thing is heard at a time

function playTile(button, withSound) {
  stopTile(button);
  const video = html("video");
  Object.assign(video, { src: mediaUrl(button.dataset.clip), loop: true, playsInline: true, muted: !withSound });
  if (withSound) {
    stopSounding();
    stopSounding = () => stopTile(button);
  }
  button.dataset.state = withSound ? "sound" : "preview";
  button.append(video);
  video.play().catch(() => {}); // refused by the browser, or taken away before it began: the poster stays
}

function stopTile(button) {
  const video = button.querySelector("video");
  if (!video) return;
  video.pause();
  video.removeAttribute("src"); // browsers hold only so many players
  video.load();
  video.remove();
  delete button.dataset.state;
}

function setUpTile(button) {
  if (!clips[button.dataset.clip].media) {
    button.disabled = true;
    button.title += " (does not play here)";
    return;
  }
  if (!clips[button.dataset.clip].spectrogram) button.title += " (silent)";
  const preview = () => { if (!calm && !button.dataset.state) playTile(button, false); };
  const leave = () => { if (button.dataset.state === "preview") stopTile(button); };
  button.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") preview(); });
  button.addEventListener("pointerleave", leave);
  button.addEventListener("focus", () => { if (button.matches(":focus-visible")) preview(); });
  button.addEventListener("blur", leave);
  button.addEventListener("click", () => {
    if (button.dataset.state === "sound") stopTile(button);
    else playTile(button, true);
  });
}

function setUpListening(button) {
  const number = button.dataset.sound, bar = button.querySelector(".spectrogram");
  if (clips[number].spectrogram) bar.style.setProperty("--sound", `url(${clips[number].spectrogram})`);
  button.disabled = !clips[number].media;
  let audio = null;
  const stop = () => {
    if (audio) audio.pause();
    audio = null;
    delete button.dataset.state;
    bar.style.setProperty("--progress", "0%");
  };
  const advance = () => {
    if (!audio) return;
    bar.style.setProperty("--progress", `${(100 * audio.currentTime) / (audio.duration || 1)}%`);
    requestAnimationFrame(advance);
  };
  button.addEventListener("click", () => {
    if (audio) return stop();
    stopSounding();
    stopSounding = stop;
    audio = new Audio(mediaUrl(number));
    audio.addEventListener("ended", stop);
    button.dataset.state = "sound";
    audio.play().catch(stop);
    advance();
  });
}

for (const image of document.querySelectorAll("img[data-poster]")) {
  const { poster, spectrogram } = clips[image.dataset.poster];
  if (poster) image.src = poster;
  else image.replaceWith(html("span", "spectrogram")); // a sound without picture
  if (!poster && spectrogram) document.querySelectorAll(`.play[data-clip="${image.dataset.poster}"] .spectrogram`).forEach((bar) => bar.style.setProperty("--sound", `url(${spectrogram})`));
}
document.querySelectorAll("button.play").forEach(setUpTile);
document.querySelectorAll("button.listen").forEach(setUpListening);

addEventListener("keydown", (event) => { if (event.key === "Escape") stopSounding(); });

/** Fades the edges behind which there is more to scroll to. */
function setUpScroller(node) {
  const fade = () => {
    const rest = node.scrollWidth - node.clientWidth - node.scrollLeft;
    node.style.setProperty("--fade-left", node.scrollLeft > 2 ? "36px" : "0px");
    node.style.setProperty("--fade-right", rest > 2 ? "36px" : "0px");
  };
  node.addEventListener("scroll", fade, { passive: true });
  new ResizeObserver(fade).observe(node);
  fade();
}
document.querySelectorAll(".scroller").forEach(setUpScroller);

function showClips(node, numbers) {
  const shots = html("div", "shots", undefined, node);
  for (const number of numbers) if (clips[number].poster) Object.assign(html("img", "", undefined, shots), { src: clips[number].poster, alt: "" });
}

// ---- charts ------------------------------------------------------------------------------------

const HUES = ["#3b76e1", "#d9601a", "#1c9a74", "#a35bd0", "#c79a00", "#d63f6e", "#5a6b80", "#3aa6c9"];
const NAMED_HUES = {
  red: "#d71e23", green: "#23a537", blue: "#2846e1", yellow: "#e8d61e", purple: "#9628be",
  orange: "#f58214", white: "#f7f7f7", black: "#121212",
};
const UNITS = {
  number: (v) => (Math.abs(v) >= 1000 ? `${v / 1000}k` : `${+v.toPrecision(3)}`),
  percent: (v) => `${+v.toFixed(1)} %`,
  share: (v) => `${+(100 * v).toFixed(1)} %`,
};
const decimal = (value) => value.toFixed(2).replace("-", "\u2212");
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

const redraws = [];
const redrawAll = () => redraws.forEach((draw) => draw());
document.querySelectorAll("fieldset, #join, #centre").forEach((node) => node.addEventListener("change", redrawAll));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);

function choice(name) {
  const checked = document.querySelector(`input[name="${name}"]:checked`);
  return checked ? +checked.value : -1;
}

/** Draws now, and again whenever the width, a choice or the colours change. */
function watch(node, renderer, option) {
  const chart = echarts.init(node, null, { renderer });
  const draw = () => chart.setOption({
    animation: false,
    textStyle: { fontFamily: "system-ui, sans-serif", fontSize: 11.5, color: css("muted") },
    ...option(),
  }, true);
  new ResizeObserver(() => chart.resize()).observe(node);
  redraws.push(draw);
  draw();
  return chart;
}

/** A tooltip that a function fills with elements. */
const tip = (fill, options) => ({
  confine: true, backgroundColor: css("surface"), borderColor: css("line"), padding: [9, 12],
  textStyle: { color: css("ink"), fontSize: 13 },
  formatter: (of) => { const node = html("div", "tip"); fill(node, of); return node; },
  ...options,
});

function smooth(points) {
  if (points.length < 60) return points;
  const half = Math.max(2, Math.round(points.length / 60));
  return points.map(([x], i) => {
    const near = points.slice(Math.max(0, i - half), i + half + 1);
    return [x, near.reduce((sum, p) => sum + p[1], 0) / near.length];
  });
}

for (const chart of data.charts) {
  const panel = html("figure", "panel", undefined, document.getElementById("charts"));
  html("h3", "", chart.title, panel);
  html("p", "note", chart.note, panel);
  const frame = html("div", "lines", undefined, panel), format = UNITS[chart.unit];
  const ends = chart.series.map((s) => `${s.name} from ${format(s.points[0][1])} to ${format(s.points.at(-1)[1])}`);
  frame.role = "img";
  frame.ariaLabel = `${chart.title}: ${ends.join(", ")}`;
  const keys = 20 * Math.ceil((160 * chart.series.length) / frame.clientWidth); // pixels of the legend
  frame.style.height = `${224 + keys}px`;
  const lower = chart.series.every((s) => s.points.every(([, y]) => y < chart.least_top));
  const last = Object.fromEntries(chart.series.map((s) => [s.name, format(smooth(s.points).at(-1)[1])]));
  watch(frame, "svg", () => ({
    grid: { left: 46, right: 10, top: 12, bottom: 28 + keys },
    legend: {
      bottom: 0, left: 0, itemWidth: 24, textStyle: { color: css("muted"), rich: { b: { color: css("ink"), fontWeight: 600 } } },
      formatter: (name) => `${name} {b|${last[name]}}`,
    },
    tooltip: tip((node, rows) => {
      html("b", "", `step ${rows[0].value[0]}`, node);
      for (const row of new Map(rows.map((row) => [row.seriesName, row])).values()) { // the last of a name: not smoothed
        const line = html("div", "line", undefined, node);
        html("span", "", row.seriesName, line);
        html("b", "", format(row.value[1]), line);
      }
    }, { trigger: "axis" }),
    xAxis: {
      type: "value", name: "step", nameLocation: "start", minInterval: 1, min: "dataMin", max: "dataMax",
      splitLine: { show: false }, axisLine: { show: false },
      axisLabel: { color: css("muted"), formatter: UNITS.number, showMinLabel: false, showMaxLabel: false },
    },
    yAxis: {
      type: "value", axisLine: { show: false }, axisTick: { show: false }, splitLine: { lineStyle: { color: css("grid") } },
      axisLabel: { color: css("muted"), formatter: format, showMaxLabel: lower ? false : null },
      max: lower ? chart.least_top : null, // no trend out of noise
    },
    series: chart.series.flatMap(({ name, points, hue, dashed }) => {
      const calm = smooth(points), color = css(hue);
      const line = { name, type: "line", symbol: points.length <= 40 ? "circle" : "none", symbolSize: 6, itemStyle: { color } };
      const smoothed = { ...line, data: calm, lineStyle: { color, width: 2.2, type: dashed ? [6, 4] : "solid" } };
      return calm === points ? smoothed : [smoothed, { ...line, data: points, z: 1, lineStyle: { color, width: 1, opacity: 0.22 } }];
    }),
  }));
}

/** Numbers of the clips, sorted by the chosen attribute, then by the others. */
function sorted(attribute) {
  const keys = clips.map((c) => [c.attributes[attribute], ...c.attributes].join("\u0000"));
  return clips.map((_, i) => i).sort((a, b) => (keys[a] < keys[b] ? -1 : +(keys[a] > keys[b])));
}

for (const box of document.querySelectorAll(".heat")) {
  const map = data.maps[box.dataset.map];
  const rowOf = new Map(map.clips.map((number, row) => [number, row]));
  const ends = box.nextElementSibling.querySelectorAll("span");
  ends[0].textContent = `≤ ${decimal(map.pale)}`;
  ends[1].textContent = decimal(map.high);
  watch(box, "canvas", () => {
    const attribute = choice("sort"), order = sorted(attribute).filter((i) => rowOf.has(i));
    const valueOf = (row, column) => map.values[rowOf.get(row)][rowOf.get(column)];
    const cells = order.flatMap((row, y) => order.map((column, x) => [x, y, valueOf(row, column)]));
    const names = order.map((i) => clips[i].attributes[attribute]);
    const isMiddle = (i) => i === (names.indexOf(names[i]) + names.lastIndexOf(names[i])) >> 1;
    const axis = {
      type: "category", data: names, z: 5, axisLine: { show: false }, axisTick: { show: false },
      axisLabel: { color: css("muted"), show: attribute >= 0, interval: isMiddle, hideOverlap: true },
      splitLine: { show: true, interval: (i) => i > 0 && names[i] !== names[i - 1], lineStyle: { color: css("surface"), width: 1.5 } },
    };
    return {
      grid: { left: attribute < 0 ? 0 : 62, right: 0, top: attribute < 0 ? 0 : 22, bottom: 0 },
      xAxis: { ...axis, position: "top" },
      yAxis: { ...axis, inverse: true },
      visualMap: { show: false, seriesIndex: 0, min: map.pale, max: map.high, inRange: { color: [0, 1, 2, 3].map((i) => css(`heat-${i}`)) } },
      tooltip: tip((node, cell) => {
        const column = order[cell.value[0]], row = order[cell.value[1]], score = valueOf(row, column);
        const [asked, sought] = box.dataset.map.split("_to_");
        html("div", "", asked === "text" ? `“${clips[row].caption}”` : `sound of ${clips[row].title}`, node);
        html("div", "", `× ${sought === "audio" ? "sound of " : ""}${clips[column].title}`, node);
        html("b", "", score === null ? "one of them is missing" : `similarity ${decimal(score)}`, node);
        if (row === column) html("span", "", " · the right one", node);
        showClips(node, row === column ? [column] : [row, column]);
      }, { axisPointer: { type: "cross" } }),
      series: [true, false].map((known) => ({ // those without a value have a colour, but none of the map
        type: "heatmap", data: cells.filter((c) => (c[2] !== null) === known).map(([x, y, score]) => [x, y, score ?? 0]),
        itemStyle: { color: css("line") }, emphasis: { itemStyle: { borderColor: css("mark"), borderWidth: 1.5 } },
      })),
    };
  });
}

const SYMBOLS = { video: "circle", audio: "triangle", text: "rect" };

for (const frame of document.querySelectorAll(".scatter")) {
  const space = data.spaces[frame.dataset.space], note = frame.nextElementSibling;
  const chart = watch(frame, "svg", () => {
    const { points, explained } = document.getElementById("centre").checked ? space.centred : space.as_is;
    const [first, second] = explained.map((share) => `${(100 * share).toFixed(0)} %`);
    note.textContent = `The plane holds ${first} + ${second} of the variance.`;
    const attribute = choice("hue"), value = (i) => (attribute < 0 ? "clip" : clips[i].attributes[attribute]);
    const values = [...new Set(clips.map((_, i) => value(i)))].sort();
    const colours = values.every((v) => v in NAMED_HUES) ? values.map((v) => NAMED_HUES[v]) : values.map((_, i) => HUES[i % HUES.length]);
    const modalities = Object.keys(points), joined = document.getElementById("join").checked;
    const axis = { show: false, type: "value", min: "dataMin", max: "dataMax" };
    const keys = { itemWidth: 12, itemHeight: 12, textStyle: { color: css("ink") } };
    return {
      grid: { left: 14, right: 14, top: 50, bottom: 14 },
      legend: { ...keys, top: 0, left: 0, data: modalities, itemStyle: { color: css("surface") } },
      visualMap: attribute < 0 ? [] : {
        ...keys, top: 22, left: -5, orient: "horizontal", type: "piecewise",
        categories: values, dimension: 2, seriesIndex: modalities.map((_, i) => i), inRange: { color: colours },
      },
      tooltip: tip((node, { seriesName, name }) => {
        html("b", "", `${seriesName}: ${seriesName === "text" ? `“${clips[name].caption}”` : clips[name].title}`, node);
        showClips(node, [name]);
      }),
      xAxis: axis,
      yAxis: axis,
      series: [
        ...modalities.map((modality) => ({
          name: modality, type: "scatter", symbol: SYMBOLS[modality], symbolSize: 10, itemStyle: { ...(attribute < 0 && { color: css(modality) }), borderColor: css("ink"), borderWidth: 0.7 },
          emphasis: { scale: 1.6, itemStyle: { borderColor: css("mark"), borderWidth: 2 } },
          data: points[modality].flatMap((p, i) => (p ? { name: `${i}`, value: [...p, value(i)] } : [])),
        })),
        {
          type: "lines", coordinateSystem: "cartesian2d", polyline: true, silent: true,
          lineStyle: { color: css("muted"), opacity: joined ? 0.35 : 0 },
          emphasis: { lineStyle: { color: css("mark"), opacity: 1, width: 2 } },
          data: clips
            .map((_, i) => ({ name: `${i}`, coords: modalities.map((m) => points[m][i]).filter(Boolean) }))
            .filter(({ coords }) => coords.length > 1),
        },
      ],
    };
  });
  for (const [event, type] of [["mouseover", "highlight"], ["mouseout", "downplay"]]) {
    chart.on(event, ({ name }) => chart.dispatchAction({ type, seriesIndex: [0, 1, 2, 3], name }));
  }
}

// ---- attention ---------------------------------------------------------------------------------

const overlay = document.getElementById("overlay");
if (overlay) overlay.addEventListener("input", () => document.documentElement.style.setProperty("--overlay", overlay.value / 100));
