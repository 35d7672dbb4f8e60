// The examples page: cards, and filters for them.
"use strict";

const { cards, pictures } = data;

/** An image of a card; the first one with boxes. */
function drawn(card, { name, width, height }, first) {
  const kinds = [...card.regions.map((box) => [box, "region"]), [card.expectedBox, "meant"], [card.chosenBox, "chosen"]];
  const boxes = kinds.filter(([box]) => first && box).map(([box, kind]) => rectangle(box, { width, height }, { class: kind }));
  const image = make("image", { href: pictures[name], width, height, preserveAspectRatio: "none" });
  return make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `image ${name}` }, image, ...boxes);
}

function drawnCard(card) {
  const images = make("div", { class: "several" }, ...card.images.map((image, number) => drawn(card, image, number === 0)));
  const choices = card.choices.map(([choice, share]) => make("li", { style: `--share: ${share}` }, make("span", {}, choice), make("span", {}, percent(share))));
  const expected = card.expected && !card.right ? [make("p", {}, "should be ", make("b", { class: "right" }, card.expected))] : [];
  const link = card.attention ? [make("a", { href: card.attention }, "attention")] : [];
  const note = make("div", { class: "line quiet" }, make("span", {}, [card.task, card.kind].filter(Boolean).join(", ")), ...link);
  const text = make("div", {}, `${card.text} `, make("b", { class: card.right ? "right" : "wrong" }, card.right ? "correct" : "wrong"));
  return make("figure", card.right ? { class: "right" } : {}, images, make("figcaption", {}, text, make("ol", {}, ...choices), ...expected, note));
}

const figures = cards.map(drawnCard);
find("cards").append(...figures);

function offer(id, values) {
  for (const value of [...new Set(values)].filter(Boolean).sort()) find(id).append(make("option", { value }, value));
}

/** Shows the cards that match all filters. */
function filter() {
  const [task, kind, right, word] = ["task", "kind", "right", "search"].map((id) => find(id).value);
  let shown = 0;
  cards.forEach((card, number) => {
    const words = [card.text, card.expected, ...card.choices.map(([choice]) => choice)].join(" ").toLowerCase();
    const passes = (!task || card.task === task) && (!kind || card.kind === kind) && (!right || String(card.right) === right) && words.includes(word.toLowerCase());
    figures[number].hidden = !passes;
    shown += passes;
  });
  find("count").value = `${shown} of ${cards.length} shown`;
}

offer("task", cards.map((card) => card.task));
offer("kind", cards.map((card) => card.kind));
for (const id of ["task", "kind", "right", "search"]) find(id).addEventListener("input", filter);
find("regions").addEventListener("input", (event) => find("cards").classList.toggle("with-regions", event.target.checked));
filter();
