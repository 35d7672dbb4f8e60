// Cards of examples: what the pages of one run and of two runs share.
"use strict";

const { cards, pictures } = data;

/** An image. boxes: [box or null, class] of each box on it. */
function drawn({ name, width, height }, boxes) {
  const shown = boxes.filter(([box]) => box).map(([box, kind]) => rectangle(box, { width, height }, { class: kind }));
  const image = make("image", { href: pictures[name], width, height, preserveAspectRatio: "none" });
  return make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `image ${name}` }, image, ...shown);
}

/** Images in a row. boxes: those on the first one, see drawn. */
function drawnImages(images, boxes) {
  return make("div", { class: "several" }, ...images.map((image, number) => drawn(image, number === 0 ? boxes : [])));
}

function drawnChoices(choices) {
  return make("ol", {}, ...choices.map(([choice, share]) => make("li", { style: `--share: ${share}` }, make("span", {}, choice), make("span", {}, percent(share)))));
}

function mark(right) {
  return make("b", { class: right ? "right" : "wrong" }, right ? "correct" : "wrong");
}

/** Adds all different values to a select element. */
function offer(id, values) {
  for (const value of [...new Set(values)].filter(Boolean).sort()) find(id).append(make("option", { value }, value));
}
