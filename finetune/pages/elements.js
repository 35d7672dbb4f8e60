// Helpers shared by the scripts of several pages.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const SVG = ["svg", "rect", "image", "text", "g", "mask", "circle", "line"];
const find = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)}%`;

/** Creates an element with attributes and children. */
function make(name, attributes = {}, ...inside) {
  const space = SVG.includes(name) ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml";
  const element = document.createElementNS(space, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...inside);
  return element;
}

/** A box, given as fractions of the sides, on an image of this width and height. */
function rectangle([x1, y1, x2, y2], { width, height }, attributes) {
  return make("rect", { x: x1 * width, y: y1 * height, width: (x2 - x1) * width, height: (y2 - y1) * height, ...attributes });
}

/** A select element with [value, text] options. */
function select(options, attributes) {
  return make("select", attributes, ...options.map(([value, text]) => make("option", { value }, text)));
}
