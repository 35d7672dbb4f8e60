// The page of embeddings: points of images and texts in a plane, what is under the pointer, and lines between pairs.
"use strict";

const { images, texts, views } = data;
const REACH = 24; // pixels between the pointer and the point that it selects
const MARGIN = 34; // of a panel, with room for its title
const NARROW = 700; // pixels below which panels are stacked

const captions = images.map(() => []);
texts.forEach(({ image }, number) => image !== null && captions[image].push(number));

let points = []; // of the drawn view: {kind, number, x, y, element}
let lines = []; // {image, text, element}
let drawnWidth = 0;
const tip = make("div", { class: "tip", role: "status", hidden: "" });

/** [x, y] in pixels of each place: centred in the panel, with the same scale on both axes. */
function fitted(places, [left, top, width, height], range) {
  const scale = Math.min(...[width, height].map((side, axis) => (side - 2 * MARGIN) / (range[axis][1] - range[axis][0] || 1)));
  const middle = range.map(([low, high]) => (low + high) / 2);
  return places.map(([x, y]) => [left + width / 2 + scale * (x - middle[0]), top + height / 2 - scale * (y - middle[1])]);
}

function rangeOf(places) {
  return [0, 1].map((axis) => {
    const values = places.map((place) => place[axis]);
    return [Math.min(...values), Math.max(...values)];
  });
}

function drawnPanel({ title, explained }, [left, top, width, height]) {
  const [first, second] = explained.map((share) => `${(100 * share).toFixed(1)}%`);
  const label = make("text", { class: "title", x: left + 8, y: top + 18 });
  label.append(`${title}: x ${first}, y ${second} of the variance`);
  return [make("rect", { class: "panel", x: left, y: top, width, height, rx: 6 }), label];
}

function drawnPoint(kind, number, [x, y]) {
  if (kind === "texts") return make("rect", { class: "point text", x: x - 4, y: y - 4, width: 8, height: 8, transform: `rotate(45 ${x} ${y})` });
  const { picture } = images[number];
  if (find("pictures").checked && picture) return make("image", { class: "point", href: picture, x: x - 16, y: y - 16, width: 32, height: 32 });
  return make("circle", { class: "point image", cx: x, cy: y, r: 5 });
}

/** Draws the chosen view at the present width of the page. */
function draw() {
  const view = views[find("view").value || 0];
  const width = (drawnWidth = find("plane").clientWidth);
  const columns = width < NARROW ? 1 : view.panels.length;
  const panelWidth = (width - 12 * (columns - 1)) / columns;
  const panelHeight = Math.min(0.8 * panelWidth, 640);
  const areas = view.panels.map((_, number) => [(number % columns) * (panelWidth + 12), Math.floor(number / columns) * (panelHeight + 12), panelWidth, panelHeight]);
  const height = areas[areas.length - 1][1] + panelHeight;
  const ranges = areas.map((_, number) => rangeOf(Object.values(view.points).filter(({ panel }) => panel === number).flatMap(({ places }) => places)));
  const placed = {};
  points = [];
  for (const [kind, { panel, places }] of Object.entries(view.points)) {
    placed[kind] = fitted(places, areas[panel], ranges[panel]);
    placed[kind].forEach((place, number) => points.push({ kind, number, x: place[0], y: place[1], element: drawnPoint(kind, number, place) }));
  }
  lines = texts.flatMap(({ image }, text) => {
    if (image === null) return [];
    const [[x1, y1], [x2, y2]] = [placed.texts[text], placed.images[image]];
    return [{ image, text, element: make("line", { x1, y1, x2, y2 }) }];
  });
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": "embeddings in a plane" });
  svg.append(...view.panels.flatMap((panel, number) => drawnPanel(panel, areas[number])), ...lines.map((line) => line.element), ...points.map((point) => point.element));
  find("plane").replaceChildren(svg, tip);
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && select(null));
  filter();
  select(null);
}

/** The image and the texts that belong to a point, with itself. */
function relatives({ kind, number }) {
  const image = kind === "images" ? number : texts[number].image;
  return { image, texts: kind === "images" ? captions[number] : [number] };
}

function select(chosen) {
  const { image, texts: own } = chosen ? relatives(chosen) : { image: null, texts: [] };
  for (const { kind, number, element } of points) element.classList.toggle("near", kind === "images" ? number === image : own.includes(number));
  for (const line of lines) {
    const near = line.image === image && own.includes(line.text);
    line.element.classList.toggle("near", near);
    line.element.style.display = near || find("lines").checked ? "" : "none";
  }
  tip.hidden = !chosen;
  if (!chosen) return;
  const picture = image !== null && images[image].picture ? [make("img", { src: images[image].picture, alt: "" })] : [];
  const name = image === null ? [] : [make("p", { class: "quiet" }, `image ${images[image].id}`)];
  tip.replaceChildren(...picture, ...own.map((number) => make("p", {}, texts[number].text)), ...name);
  const [wide, high] = [find("plane").clientWidth, find("plane").clientHeight];
  tip.style.left = `${Math.max(0, chosen.x + 14 + tip.offsetWidth > wide ? chosen.x - 14 - tip.offsetWidth : chosen.x + 14)}px`;
  tip.style.top = `${Math.max(0, Math.min(chosen.y + 14, high - tip.offsetHeight))}px`;
}

/** Selects the point next to the pointer. */
function point(event) {
  const { left, top } = find("plane").getBoundingClientRect();
  const away = ({ x, y }) => Math.hypot(x - (event.clientX - left), y - (event.clientY - top));
  const near = points.filter((one) => away(one) < REACH && !one.element.classList.contains("faint"));
  select(near.reduce((best, one) => (best && away(best) <= away(one) ? best : one), null));
}

/** Dims the points that do not contain the searched words; an image contains those of its captions. */
function filter() {
  const word = find("search").value.toLowerCase();
  let found = 0;
  for (const one of points) {
    const { image, texts: own } = relatives(one);
    const words = [image === null ? "" : images[image].id, ...own.map((number) => texts[number].text)].join(" ").toLowerCase();
    one.element.classList.toggle("faint", !words.includes(word));
    found += words.includes(word);
  }
  find("count").value = word ? `${found} of ${points.length} points` : "";
}

find("view").append(...views.map(({ title }, number) => make("option", { value: number }, title)));
find("view-label").hidden = views.length < 2;
for (const id of ["view", "pictures"]) find(id).addEventListener("input", draw);
find("lines").addEventListener("input", () => select(null));
find("search").addEventListener("input", filter);
addEventListener("resize", () => find("plane").clientWidth !== drawnWidth && draw());
draw();
