// The comparison page: cards with the predictions of both runs, by which of them is right.
"use strict";

const NAMES = ["A", "B"];
const BOX_CLASSES = ["chosen", "chosen other"];
const SHOWN = 3; // predictions of each run on a card
const OUTCOMES = Object.keys(Object.values(data.counts)[0]);
let outcome = OUTCOMES.find((name) => cards.some((card) => card.outcome === name));

const names = (images) => images.map((image) => image.name).join();

function drawnRun(run, number, images) {
  const link = run.attention ? [make("a", { href: run.attention }, "attention")] : [];
  const score = run.value > 0 && run.value < 1 ? [make("span", { class: "quiet" }, ` score ${run.value}`)] : [];
  const title = make("div", { class: "line" }, make("span", {}, make("b", {}, NAMES[number]), " ", mark(run.right), ...score), ...link);
  return make("section", {}, title, ...images, drawnChoices(run.choices.slice(0, SHOWN)));
}

function drawnCard(card) {
  const same = names(card.runs[0].images) === names(card.runs[1].images);
  const boxes = card.runs.map((run, number) => [run.chosenBox, BOX_CLASSES[number]]);
  const top = same ? [drawnImages(card.runs[0].images, [[card.expectedBox, "meant"], ...boxes])] : [];
  const runs = card.runs.map((run, number) => drawnRun(run, number, same ? [] : [drawnImages(run.images, [])]));
  const expected = card.expected ? [make("p", {}, "ground truth: ", make("b", { class: "right" }, card.expected))] : [];
  const note = make("div", { class: "line quiet" }, [card.task, card.kind].filter(Boolean).join(", "));
  return make("figure", { class: "pair" }, ...top, make("figcaption", {}, make("div", {}, card.text), ...runs, ...expected, note));
}

const figures = cards.map(drawnCard);
find("cards").append(...figures);

const tabs = Object.fromEntries(OUTCOMES.map((name) => [name, make("button", { type: "button" })]));
for (const [name, tab] of Object.entries(tabs)) {
  tab.addEventListener("click", () => {
    outcome = name;
    filter();
  });
}
find("outcomes").append(...Object.values(tabs));

/** Shows the cards of the chosen outcome that match all filters; the tabs count all examples of the chosen task. */
function filter() {
  const [task, kind, word] = ["task", "kind", "search"].map((id) => find(id).value);
  const counts = task ? [data.counts[task]] : Object.values(data.counts);
  const total = (name) => counts.reduce((sum, of) => sum + of[name], 0);
  const all = OUTCOMES.reduce((sum, name) => sum + total(name), 0);
  for (const [name, tab] of Object.entries(tabs)) {
    tab.textContent = `${name}: ${total(name)} (${percent(total(name) / all)})`;
    tab.setAttribute("aria-pressed", String(name === outcome));
  }
  let shown = 0;
  cards.forEach((card, number) => {
    const choices = card.runs.flatMap((run) => run.choices.map(([choice]) => choice));
    const words = [card.text, card.expected, ...choices].join(" ").toLowerCase();
    const passes = card.outcome === outcome && (!task || card.task === task) && (!kind || card.kind === kind) && words.includes(word.toLowerCase());
    figures[number].hidden = !passes;
    shown += passes;
  });
  find("count").value = `${shown} of ${total(outcome)} shown`;
}

offer("task", Object.keys(data.counts));
offer("kind", cards.map((card) => card.kind));
for (const id of ["task", "kind", "search"]) find(id).addEventListener("input", filter);
filter();
