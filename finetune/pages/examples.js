// The examples page: cards, and filters for them.
"use strict";

function drawnCard(card) {
  const images = drawnImages(card.images, [...card.regions.map((box) => [box, "region"]), [card.expectedBox, "meant"], [card.chosenBox, "chosen"]]);
  const expected = card.expected && !card.right ? [make("p", {}, "should be ", make("b", { class: "right" }, card.expected))] : [];
  const link = card.attention ? [make("a", { href: card.attention }, "attention")] : [];
  const note = make("div", { class: "line quiet" }, make("span", {}, [card.task, card.kind].filter(Boolean).join(", ")), ...link);
  const text = make("div", {}, `${card.text} `, mark(card.right));
  return make("figure", card.right ? { class: "right" } : {}, images, make("figcaption", {}, text, drawnChoices(card.choices), ...expected, note));
}

const figures = cards.map(drawnCard);
find("cards").append(...figures);

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
