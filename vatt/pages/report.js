// Puts the report together: posters, clips that play, charts, heat maps, spaces.

const data = JSON.parse(document.getElementById("payload").textContent);
const clips = data.clips;
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;

// ---- clips -------------------------------------------------------------------------------------

function mediaUrl(number) {
  const clip = clips[number];
  if (!clip.url && clip.media) {
    clip.url = URL.createObjectURL(new Blob([bytesOf(clip.media)], { type: "video/mp4" }));
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
    button.title = "Left out to keep this file small";
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

for (const image of document.querySelectorAll("img[data-poster]")) image.src = clips[image.dataset.poster].poster;
document.querySelectorAll("button.play").forEach(setUpTile);
document.querySelectorAll("button.listen").forEach(setUpListening);

addEventListener("keydown", (event) => { if (event.key === "Escape") stopSounding(); });

function showClips(node, numbers) {
  const shots = html("div", "shots", undefined, node);
  for (const number of numbers) if (clips[number].poster) Object.assign(html("img", "", undefined, shots), { src: clips[number].poster, alt: "" });
}

// ---- curves ------------------------------------------------------------------------------------

for (const chart of data.charts) {
  const panel = html("figure", "panel", undefined, document.getElementById("charts"));
  html("h3", "", chart.title, panel);
  html("p", "note", chart.note, panel);
  drawChart(panel, chart);
}

// ---- choices -----------------------------------------------------------------------------------

function choice(name) {
  const checked = document.querySelector(`input[name="${name}"]:checked`);
  return checked ? +checked.value : -1;
}

const redraws = [];
function redrawAll() { redraws.forEach((draw) => draw()); }
document.querySelectorAll("fieldset, #join, #centre").forEach((node) => node.addEventListener("change", redrawAll));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);

function watch(node, draw) {
  redraws.push(draw);
  onWidth(node, draw);
}

// ---- similarities ------------------------------------------------------------------------------

/** Clips sorted by the chosen attribute, then by the others; and where each value begins and ends. */
function sorted(attribute) {
  const order = clips.map((_, i) => i);
  if (attribute < 0) return { order, groups: [] };
  const keys = clips.map((c) => [c.attributes[attribute], ...c.attributes].join("\u0000"));
  order.sort((a, b) => (keys[a] < keys[b] ? -1 : 1));
  const groups = [];
  order.forEach((clip, place) => {
    const name = clips[clip].attributes[attribute];
    if (!groups.length || groups.at(-1).name !== name) groups.push({ name, start: place });
    groups.at(-1).end = place + 1;
  });
  return { order, groups };
}

function setUpHeatMap(box) {
  const map = data.maps[box.dataset.map], canvas = box.querySelector("canvas");
  map.values = decodeLevels(map);
  const spoken = box.dataset.map === "text_to_video" ? "caption" : "title";
  const ends = box.nextElementSibling.querySelectorAll("span");
  ends[0].textContent = `≤ ${decimal(map.pale)}`;
  ends[1].textContent = decimal(map.high);
  let locate = () => null, layout = null, picture = null;
  const draw = (cell) => { locate = drawHeatMap(canvas, picture, layout.groups, cell) || locate; };
  watch(box, () => {
    layout = sorted(choice("sort"));
    picture = heatPicture(map, layout.order);
    draw();
  });
  canvas.addEventListener("pointermove", (event) => {
    const cell = locate(event);
    draw(cell);
    if (!cell) return tip.hide();
    const row = layout.order[cell.row], column = layout.order[cell.column];
    const score = map.values[row * clips.length + column];
    tip.show(event.clientX, event.clientY, (node) => {
      const asked = spoken === "caption" ? `“${clips[row].caption}”` : `sound of ${clips[row].title}`;
      html("div", "", asked, node);
      html("div", "", `× ${clips[column].title}`, node);
      html("b", "", isNaN(score) ? "no sound" : `similarity ${decimal(score)}`, node);
      if (row === column) html("span", "", " · the right clip", node);
      showClips(node, row === column ? [column] : [row, column]);
    });
  });
  canvas.addEventListener("pointerleave", () => { draw(); tip.hide(); });
}

document.querySelectorAll(".heat").forEach(setUpHeatMap);

// ---- common spaces -----------------------------------------------------------------------------

function hues(attribute) {
  if (attribute < 0) return { values: [], hue: () => "var(--video)" };
  const values = [...new Set(clips.map((c) => c.attributes[attribute]))].sort();
  const named = values.every((v) => v in NAMED_HUES);
  const colour = (value) => (named ? NAMED_HUES[value] : FALLBACK_HUES[values.indexOf(value) % FALLBACK_HUES.length]);
  return { values: values.map((value) => [value, colour(value)]), hue: (i) => colour(clips[i].attributes[attribute]) };
}

function drawKeys() {
  const keys = document.getElementById("keys");
  if (!keys) return;
  keys.replaceChildren();
  const key = (name, d, fill) => {
    const item = html("span", "", undefined, keys);
    svg("path", { d, fill, stroke: "var(--ink)", "stroke-width": 0.7 }, svg("svg", { viewBox: "0 0 14 14", "aria-hidden": true }, item));
    item.append(name);
  };
  const modalities = new Set(data.spaces.flatMap((space) => Object.keys(space.as_is.points)));
  for (const modality of modalities) key(modality, MARKS[modality](7, 7, 5), "var(--surface)");
  for (const [value, colour] of hues(choice("hue")).values) key(value, "M1 1h12v12H1z", colour);
}
redraws.push(drawKeys);
drawKeys();

function setUpSpace(frame) {
  const space = data.spaces[frame.dataset.space], note = frame.nextElementSibling;
  watch(frame, () => {
    const { points, explained } = document.getElementById("centre").checked ? space.centred : space.as_is;
    const [first, second] = explained.map((share) => `${(100 * share).toFixed(0)} %`);
    note.textContent = `The plane holds ${first} + ${second} of the variance.`;
    drawScatter(frame, points, hues(choice("hue")).hue, document.getElementById("join").checked, (near, event) => {
      if (!near) return tip.hide();
      const clip = clips[near.i];
      tip.show(event.clientX, event.clientY, (node) => {
        html("b", "", `${near.modality}: ${near.modality === "text" ? `“${clip.caption}”` : clip.title}`, node);
        showClips(node, [near.i]);
      });
    });
  });
}

document.querySelectorAll(".scatter").forEach(setUpSpace);

// ---- attention ---------------------------------------------------------------------------------

const overlay = document.getElementById("overlay");
if (overlay) overlay.addEventListener("input", () => document.documentElement.style.setProperty("--overlay", overlay.value / 100));
