// The attention page: the attention of a token or a region to the image and the text.
"use strict";

const STEPS = 65535; // integer that encodes an attention weight of 1
const COLOURS = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"]; // the palette of Okabe and Ito
const KINDS = { co: ["words and regions", "S->I"], text: ["among words", "S->S"], image: ["among regions", "I->I"] };
const VIEWS = { "S->S": "words to words", "S->I": "words to regions", "I->S": "regions to words", "I->I": "regions to regions" };

/** The weights of a view: (layer, head or "mean", query) -> an array over the keys. */
function unpack({ shape: [layers, heads, queries, keys], weights }) {
  const bytes = Uint8Array.from(atob(weights), (letter) => letter.charCodeAt(0));
  const numbers = new DataView(bytes.buffer);
  const row = (layer, head, from) =>
    Array.from({ length: keys }, (_, to) => numbers.getUint16(2 * (((layer * heads + head) * queries + from) * keys + to), true) / STEPS);
  const weigh = (layer, head, from) => {
    if (head !== "mean") return row(layer, +head, from);
    const rows = Array.from({ length: heads }, (_, number) => row(layer, number, from));
    return rows[0].map((_, to) => rows.reduce((sum, values) => sum + values[to], 0) / heads);
  };
  return { layers, heads, queries, weigh };
}

let shown, maps; // the image that is shown, and its views
let pinned = null; // the clicked token or region: {from: "S" or "I", number}
const chosen = {}; // kind -> {layer, head}

function show(number) {
  shown = data.images[number];
  maps = Object.fromEntries(Object.entries(shown.maps).map(([view, packed]) => [view, unpack(packed)]));
  pinned = null;
  for (const button of find("which").children) button.setAttribute("aria-pressed", button.value === String(number));
  drawImage();
  drawWords();
  drawChoices();
  find("shown").max = Math.max(shown.rows.length - 1, 1);
  find("shown").value = Math.min(12, shown.rows.length - 1);
  openView(VIEWS[current] ? current : "S->S");
  light(null);
}

/** The attention weights of a token or region over all tokens ("S") or regions ("I"); for null, the mean over all tokens. */
function weights(from, to) {
  const kind = from === null || from.from !== to ? "co" : to === "S" ? "text" : "image";
  const { layer, head } = chosen[kind];
  if (from !== null) return maps[`${from.from}->${to}`].weigh(layer, head, from.number);
  if (to === "S") return shown.words.map(() => 0);
  const rows = shown.words.map((_, number) => maps["S->I"].weigh(layer, head, number));
  return rows[0].map((_, region) => rows.reduce((sum, row) => sum + row[region], 0) / rows.length);
}

function drawImage() {
  const image = find("image"), { width, height } = shown;
  image.setAttribute("viewBox", `0 0 ${width} ${height}`);
  image.setAttribute("aria-label", `image ${shown.name}`);
  image.replaceChildren(
    make("mask", { id: "unlit" }),
    make("image", { href: shown.picture, width, height, preserveAspectRatio: "none" }),
    make("rect", { width, height, mask: "url(#unlit)", class: "veil" }),
  );
  const area = ([x1, y1, x2, y2]) => (x2 - x1) * (y2 - y1);
  const order = shown.boxes.map((_, number) => number).sort((one, other) => area(shown.boxes[other]) - area(shown.boxes[one]));
  for (const number of order) { // small boxes on top, so that the pointer can reach each
    const rect = rectangle(shown.boxes[number], shown, { class: "region", "data-number": number, tabindex: 0, role: "button", "aria-label": shown.rows[number] });
    react(rect, { from: "I", number });
    image.append(rect);
  }
  image.append(make("g", { id: "over" }));
}

function drawWords() {
  find("words").replaceChildren(...shown.words.map((word, number) => {
    const button = make("button", { class: shown.special[number] ? "word special" : "word" }, word);
    react(button, { from: "S", number });
    return button;
  }));
}

function react(element, from) {
  element.addEventListener("mouseenter", () => light(from));
  element.addEventListener("mouseleave", () => light(pinned));
  element.addEventListener("focus", () => light(from));
  element.addEventListener("blur", () => light(pinned));
  element.addEventListener("click", () => {
    pinned = pinned && pinned.from === from.from && pinned.number === from.number ? null : from;
    light(pinned);
  });
}

/** Highlights what a token or region (or null) attends to. */
function light(from) {
  const regions = weights(from, "I"), words = weights(from, "S"), labelled = find("labels").checked;
  const most = Math.max(...regions.slice(1)), count = +find("shown").value;
  veil(regions.map((weight) => weight / most), labelled && from === null);
  for (const rect of document.querySelectorAll("#image .region")) {
    const number = +rect.dataset.number, isQuery = from !== null && from.from === "I" && from.number === number;
    rect.classList.toggle("lit", from !== null && number > 0 && regions[number] > 0.5 * most);
    rect.classList.toggle("query", isQuery);
  }
  const mostOfWords = Math.max(...words, 1e-9);
  [...find("words").children].forEach((button, number) => {
    button.style.setProperty("--weight", words[number] / mostOfWords);
    button.classList.toggle("query", from !== null && from.from === "S" && from.number === number);
  });
  find("count").value = count;
  find("how-many").hidden = !labelled;
  find("over").replaceChildren(...(labelled ? labels(count) : []), ...pointed());
  find("summary").replaceChildren(...summarise(from, regions, words));
}

/** Darkens the image by attention: each pixel has the brightness of the most attended region that contains it. */
function veil(shares, none) {
  const { width, height } = shown;
  const order = shares.map((_, row) => row).slice(1).sort((one, other) => shares[one] - shares[other]);
  const grey = (share) => Math.round(255 * (1 - share));
  const rects = order.map((row) => rectangle(shown.boxes[row], shown, { fill: `rgb(${grey(shares[row])}, ${grey(shares[row])}, ${grey(shares[row])})` }));
  find("unlit").replaceChildren(...(none ? [] : [make("rect", { width, height, fill: "#ffffff" }), ...rects]));
}

/** Figure 10: each region with the word that it attends to most. */
function labels(count) {
  const size = Math.max(shown.width, shown.height) / 42, parts = [], used = {};
  const order = shown.rows.map((_, row) => row).slice(1, count + 1);
  for (const row of order) {
    const attended = weights({ from: "I", number: row }, "S").map((weight, number) => (shown.special[number] ? -1 : weight));
    const word = shown.words[attended.indexOf(Math.max(...attended))];
    const colour = (used[word] ??= COLOURS[Object.keys(used).length % COLOURS.length]);
    const [x1, y1] = shown.boxes[row];
    const x = Math.min(x1 * shown.width, shown.width - size * 0.62 * word.length), y = y1 * shown.height;
    parts.push(rectangle(shown.boxes[row], shown, { fill: "none", stroke: colour, "stroke-width": 2.5, "pointer-events": "none" }));
    parts.push(make("rect", { x, y, width: size * (0.62 * word.length + 0.5), height: size * 1.25, fill: colour, class: "label" }));
    parts.push(make("text", { x: x + size * 0.25, y: y + size * 0.95, "font-size": size, fill: "#1b1f24", class: "label" }, word));
  }
  return parts;
}

/** Predicted boxes: of the text as a referring expression, for every task, and of the task itself, if it predicts one. */
function pointed() {
  const best = data.prediction[0], boxes = [];
  if (shown.expression) boxes.push(rectangle(shown.expression, shown, { class: "expression" }));
  if (best && best.box) boxes.push(rectangle(best.box, shown, { class: "chosen" }));
  return boxes;
}

function strongest(values, names, count, special = []) {
  const order = values.map((_, number) => number).filter((number) => !special[number]).sort((a, b) => values[b] - values[a]);
  return order.slice(0, count).map((number) => `${names[number]} ${percent(values[number])}`).join(", ");
}

function summarise(from, regions, words) {
  if (from === null) {
    return ["Point at a word or a region to see what it attends to; click to keep it. Shown now: the mean attention of the words."];
  }
  const name = from.from === "S" ? `“${shown.words[from.number]}”` : shown.rows[from.number];
  const lines = [`${name} attends to ${strongest(regions, shown.rows, 4)}`, make("br"), `and to ${strongest(words, shown.words, 5)}`];
  return from.from === "S" ? lines : [`${name} attends to ${strongest(words, shown.words, 5)}`, make("br"), `and to ${strongest(regions, shown.rows, 4)}`];
}

const numbered = (name, count) => Array.from({ length: count }, (_, number) => [number, `${name} ${number}`]);
const headsOf = (count) => [["mean", "all heads"], ...numbered("head", count)];

/** Selection of the layer and head that the image and the words show, for each kind of attention. */
function drawChoices() {
  const parts = [];
  for (const [kind, [title, view]] of Object.entries(KINDS)) {
    const { layers, heads } = maps[view], last = layers - 1;
    chosen[kind] ??= { layer: last, head: "mean" };
    const pick = (name, options) => {
      const picked = select(options, { "aria-label": `${name} ${title}`, "data-kind": kind, "data-name": name });
      picked.value = chosen[kind][name];
      picked.addEventListener("change", () => {
        chosen[kind][name] = name === "layer" ? +picked.value : picked.value;
        light(pinned);
      });
      return picked;
    };
    parts.push(make("label", {}, title, pick("layer", numbered("layer", layers)), pick("head", headsOf(heads))));
  }
  find("choices").replaceChildren(...parts);
}

function drawPrediction() {
  find("prediction").replaceChildren(...data.prediction.map(({ choice, confidence }) =>
    make("li", { style: `--share: ${confidence}` }, make("span", {}, percent(confidence)), choice)));
}

let current = null;

/** Shows one of the four views below the image, for any layer and head. */
function openView(view) {
  current = view;
  for (const button of find("tabs").children) button.setAttribute("aria-pressed", button.value === view);
  const template = document.querySelector(`template[data-image="${data.images.indexOf(shown)}"][data-view="${view}"]`);
  find("panel").replaceChildren(template ? lines(template) : matrix(view));
}

/** bertviz's head view; its script runs when it is inserted into the page. */
function lines(template) {
  return make("div", { class: "lines" }, template.content.cloneNode(true));
}

/** A heat map of the attention weights; the value under the pointer is printed below it. */
function matrix(view) {
  const { layers, heads, queries } = maps[view], [from, to] = view.split("->").map((side) => (side === "S" ? shown.words : shown.rows));
  const canvas = make("canvas"), note = make("p", { class: "quiet" }, "Point at a cell to see its attention weight.");
  const cell = Math.max(4, Math.min(16, Math.floor(900 / to.length)));
  canvas.width = to.length * cell;
  canvas.height = from.length * cell;
  const layer = select(numbered("layer", layers), { "aria-label": "layer of the squares" });
  const head = select(headsOf(heads), { "aria-label": "head of the squares" });
  layer.value = layers - 1;
  let rows;
  const paint = () => {
    const pen = canvas.getContext("2d");
    rows = Array.from({ length: queries }, (_, number) => maps[view].weigh(+layer.value, head.value, number));
    const most = Math.max(...rows.flat());
    rows.forEach((row, y) => row.forEach((weight, x) => {
      const dark = 1 - Math.sqrt(weight / most);
      pen.fillStyle = `rgb(${Math.round(247 * dark + 8)}, ${Math.round(200 * dark + 48)}, ${Math.round(148 * dark + 107)})`;
      pen.fillRect(x * cell, y * cell, cell, cell);
    }));
  };
  canvas.addEventListener("mousemove", (event) => {
    const box = canvas.getBoundingClientRect();
    const x = Math.floor((event.clientX - box.left) / box.width * to.length), y = Math.floor((event.clientY - box.top) / box.height * from.length);
    if (rows[y] && rows[y][x] !== undefined) note.textContent = `${from[y]} attends to ${to[x]}: ${percent(rows[y][x])}`;
  });
  for (const choice of [layer, head]) choice.addEventListener("change", paint);
  paint();
  return make("div", {}, make("div", { class: "bar" }, layer, head), canvas, note);
}

data.images.forEach(({ name }, number) => {
  const button = make("button", { value: number }, `image ${number + 1}: ${name}`);
  button.addEventListener("click", () => show(number));
  find("which").append(button);
});
find("which").hidden = data.images.length < 2;
for (const [view, title] of Object.entries(VIEWS)) {
  const button = make("button", { value: view }, `${view} ${title}`);
  button.addEventListener("click", () => openView(view));
  find("tabs").append(button);
}
find("expression").hidden = !data.images.some(({ expression }) => expression);
find("chosen").hidden = !(data.prediction[0] && data.prediction[0].box);
for (const id of ["labels", "shown"]) find(id).addEventListener("input", () => light(pinned));
drawPrediction();
show(0);
