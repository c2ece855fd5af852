"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const view = document.getElementById("view"), canvas = view.querySelector("canvas"), pen = canvas.getContext("2d");
const info = document.getElementById("info"), colours = getComputedStyle(document.documentElement);
const layers = Object.fromEntries([...document.querySelectorAll("input[data-layer]")].map(box => [box.dataset.layer, box]));
const images = new Map(), fingers = new Map();
const [width, height] = data.size, finest = data.levels[data.levels.length - 1][2];
let x = width / 2, y = height / 2, scale = 0, chosen = -1, waiting = false, moved = 0;  // scale: screen px per level-0 px
function pathOf(rings) {
  const path = new Path2D();
  for (const ring of rings) {
    path.moveTo(ring[0], ring[1]);  // else a line leads here from the ring before
    for (let i = 2; i < ring.length; i += 2) path.lineTo(ring[i], ring[i + 1]);
    path.closePath();
  }
  return path;
}
const tissue = pathOf(data.tissue);
const foci = data.foci.map(focus => ({...focus, path: pathOf(focus.rings)}));
const fitting = () => 0.96 * Math.min(view.clientWidth / width, view.clientHeight / height);
function show(newX, newY, newScale) {
  scale = Math.min(Math.max(newScale, fitting() / 2), Math.max(8 / finest, fitting()));
  x = Math.min(Math.max(newX, 0), width);
  y = Math.min(Math.max(newY, 0), height);
  if (!waiting) requestAnimationFrame(draw);
  waiting = true;
}
function zoom(factor, atX = 0, atY = 0) {  // keeps the place atX, atY px off the middle where it is
  const before = scale;
  show(x, y, scale * factor);
  show(x + atX / before - atX / scale, y + atY / before - atY / scale, scale);
}
function image(name) {
  if (!images.has(name)) {
    const found = new Image();
    found.onload = () => show(x, y, scale);
    found.src = data.pictures + name;
    images.set(name, found);
  }
  return images.get(name).naturalWidth ? images.get(name) : null;  // 0 until it is loaded
}
function drawTiles(level, left, top, right, bottom) {
  const step = data.levels[level][2], side = data.side * step;
  for (let row = Math.max(0, Math.floor(top / side)); row * side < Math.min(bottom, height); row++)
    for (let column = Math.max(0, Math.floor(left / side)); column * side < Math.min(right, width); column++) {
      const tile = image(`_${level}_${row}_${column}.jpg`);
      if (tile) pen.drawImage(tile, column * side, row * side, tile.naturalWidth * step, tile.naturalHeight * step);
    }
}
function stroke(path, colour, px) {
  for (const [strokeStyle, line] of [["#fff", px + 2], [colour, px]])
    Object.assign(pen, {strokeStyle, lineWidth: line / scale}).stroke(path);
}
function draw() {
  waiting = false;
  const ratio = devicePixelRatio, wide = view.clientWidth, high = view.clientHeight;
  Object.assign(canvas, {width: Math.round(wide * ratio), height: Math.round(high * ratio)});
  pen.setTransform(ratio * scale, 0, 0, ratio * scale, ratio * (wide / 2 - x * scale), ratio * (high / 2 - y * scale));
  const sides = [x - wide / 2 / scale, y - high / 2 / scale, x + wide / 2 / scale, y + high / 2 / scale];
  const sharp = data.levels.findIndex(level => level[2] * scale * ratio < 1.3);
  drawTiles(0, ...sides);
  if (sharp) drawTiles(sharp < 0 ? data.levels.length - 1 : sharp, ...sides);
  pen.lineJoin = "round";
  const map = layers.probability.checked && image("_probability.png");
  if (map) pen.drawImage(map, 0, 0, map.naturalWidth * data.levels[0][2], map.naturalHeight * data.levels[0][2]);
  if (layers.tissue.checked) stroke(tissue, colours.getPropertyValue("--tissue"), 1.5);
  foci.forEach((focus, i) => {
    const [left, top, right, bottom] = focus.box;
    if (!layers.outlines.checked || right < sides[0] || left > sides[2] || bottom < sides[1] || top > sides[3]) return;
    stroke(focus.path, colours.getPropertyValue("--prediction"), i === chosen ? 5 : 2);
  });
  drawScaleBar(ratio, high);
}
function drawScaleBar(ratio, high) {
  const most = 150 / scale * (data.um || 1), power = 10 ** Math.floor(Math.log10(most));
  const length = power * [5, 2, 1].find(n => n * power <= most), bar = length * scale / (data.um || 1);
  const text = data.um ? (length < 1000 ? `${+length.toPrecision(1)} µm` : `${length / 1000} mm`) : `${length} px`;
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  Object.assign(pen, {fillStyle: "#fffd"}).fillRect(8, high - 42, Math.max(bar, 50) + 20, 34);
  Object.assign(pen, {fillStyle: "#000", font: "14px sans-serif"}).fillText(text, 18, high - 24);
  pen.fillRect(18, high - 18, bar, 4);
}
function choose(i, go) {
  chosen = i;
  info.textContent = i < 0 ? info.dataset.empty : foci[i].text;
  if (i < 0 || !go) return show(x, y, scale);
  const [left, top, right, bottom] = foci[i].box;
  const fit = 0.6 * Math.min(view.clientWidth / (right - left + 1), view.clientHeight / (bottom - top + 1));
  show((left + right) / 2, (top + bottom) / 2, Math.min(fit, 2 / finest));
}
function fromMiddle(event) {
  const area = view.getBoundingClientRect();
  return [event.clientX - area.left - area.width / 2, event.clientY - area.top - area.height / 2];
}
function pick(event) {
  const [dx, dy] = fromMiddle(event), at = [x + dx / scale, y + dy / scale];
  Object.assign(pen, {lineWidth: 12 / scale}).setTransform(1, 0, 0, 1, 0, 0);
  choose(foci.findIndex(({path}) => pen.isPointInPath(path, ...at, "evenodd") || pen.isPointInStroke(path, ...at)), false);
}
const next = by => choose(chosen < 0 && by < 0 ? foci.length - 1 : (chosen + by + foci.length) % foci.length, true);
const actions = {
  "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), "0": () => show(width / 2, height / 2, fitting()),
  ArrowLeft: () => show(x - 80 / scale, y, scale), ArrowRight: () => show(x + 80 / scale, y, scale),
  ArrowUp: () => show(x, y - 80 / scale, scale), ArrowDown: () => show(x, y + 80 / scale, scale),
  n: () => foci.length && next(1), p: () => foci.length && next(-1), Escape: () => choose(-1),
};
view.addEventListener("keydown", event => {
  if (!Object.hasOwn(actions, event.key) || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  actions[event.key]();
});
view.addEventListener("wheel", event => {  // elsewhere the wheel moves the page
  if (document.activeElement !== view && !event.ctrlKey) return;
  event.preventDefault();
  zoom(1.002 ** -event.deltaY, ...fromMiddle(event));
}, {passive: false});
view.addEventListener("pointerdown", event => {
  view.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, event);
  moved = fingers.size > 1 ? Infinity : 0;
});
view.addEventListener("pointermove", event => {
  const before = fingers.get(event.pointerId);
  if (!before) return;
  const other = [...fingers.values()].find(finger => finger.pointerId !== event.pointerId);
  const apart = finger => Math.hypot(finger.clientX - other.clientX, finger.clientY - other.clientY) + 1;
  moved += Math.abs(event.clientX - before.clientX) + Math.abs(event.clientY - before.clientY);
  if (other) zoom(apart(event) / apart(before));
  show(x - (event.clientX - before.clientX) / scale / fingers.size, y - (event.clientY - before.clientY) / scale / fingers.size, scale);
  fingers.set(event.pointerId, event);
});
for (const end of ["pointerup", "pointercancel"]) view.addEventListener(end, event => {
  if (fingers.delete(event.pointerId) && end === "pointerup" && moved < 5 && layers.outlines.checked) pick(event);
});
for (const box of Object.values(layers)) box.addEventListener("change", () => show(x, y, scale));
for (const button of document.querySelectorAll("button[data-key]")) button.addEventListener("click", actions[button.dataset.key]);
function goTo(hash) {
  const i = Number(hash.replace("#focus-", "")) - 1;
  if (!foci[i]) return;
  choose(i, true);
  view.scrollIntoView({block: "center"});
  view.focus({preventScroll: true});
}
for (const link of document.querySelectorAll("a[href^='#focus-']")) link.addEventListener("click", () => goTo(link.hash));
new ResizeObserver(() => show(x, y, scale || fitting())).observe(view);
choose(-1);
show(x, y, fitting());
goTo(location.hash);
})();
