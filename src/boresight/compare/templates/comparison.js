"use strict";
// Every question with all answers, as many at a time as one reads, and the filters.

const CHUNK = 24;
const LONG = 900;
/** Up to so many questions have larger images. */
const FEW = 5;

const {models, packed: packedQuestions} = pageData();
const filters = document.getElementById("filters");
const cards = document.getElementById("cards");
const more = document.getElementById("more");
const count = document.getElementById("count");
const pairNote = document.getElementById("pair");

let questions = [];
let shown = [];
let drawn = 0;
/** Two models, by their places, that a filter is about; null where it is about all. */
let pair = null;
let show = "all";

/** Whether a question is of the kind that `show` names. */
const TESTS = {
  all: () => true,
  disagree: (marks) => marks.includes(1) && marks.includes(0),
  right: (marks) => marks.every((mark) => mark === 1),
  wrong: (marks) => marks.every((mark) => mark === 0),
  unmarked: (marks) => marks.includes(null),
  cut: (marks, question) => question.answers.some((answer) => answer.cut),
  called: (marks, question) => question.answers.some((answer) => answer.calls),
  failed: (marks, question) => question.answers.some((answer) => answer.failed),
  fixed: (marks) => marks[pair[0]] === 0 && marks[pair[1]] === 1,
  broken: (marks) => marks[pair[0]] === 1 && marks[pair[1]] === 0,
  both_right: (marks) => marks[pair[0]] === 1 && marks[pair[1]] === 1,
  both_wrong: (marks) => marks[pair[0]] === 0 && marks[pair[1]] === 0,
};

const MEANINGS = {
  fixed: (first, second) => `${first} is wrong and ${second} is right`,
  broken: (first, second) => `${first} is right and ${second} is wrong`,
  both_right: (first, second) => `${first} and ${second} are both right`,
  both_wrong: (first, second) => `${first} and ${second} are both wrong`,
};

const ENDS = {
  no_room: "the result had no room in max_completion_length",
  too_many_turns: "it reached max_tool_calling_iterations",
};

function filter() {
  const kind = filters.elements.kind?.value ?? "";
  const find = filters.elements.find.value.trim().toLowerCase();
  shown = questions.filter(
    (question) =>
      TESTS[show](question.marks, question) &&
      (!kind || question.kind === kind) &&
      (!find || question.words.includes(find)),
  );
  count.textContent = `${shown.length.toLocaleString("en")} of ${questions.length.toLocaleString("en")}`;
  pairNote.hidden = pair === null;
  if (pair !== null) pairNote.textContent = `Questions where ${MEANINGS[show](models[pair[0]], models[pair[1]])}.`;
  cards.replaceChildren();
  drawn = 0;
  if (shown.length === 0) cards.append(element("p", {class: "nothing"}, "No question is like that."));
  draw();
}

/** Draw the first questions, and the next until the screen and a little more is full. */
function draw() {
  while (drawn < shown.length && (drawn === 0 || more.getBoundingClientRect().top < window.innerHeight * 2)) {
    cards.append(...shown.slice(drawn, drawn + CHUNK).map(card));
    drawn = Math.min(drawn + CHUNK, shown.length);
  }
}

function card(question) {
  const images = question.images.map((name) => imageElement(name, question.question));
  const columns = Object.entries(question.columns);
  return element(
    "article",
    {class: "question card", "data-row": question.row},
    element(
      "header",
      {},
      images.length > 0 && element("div", {class: "images"}, images),
      element(
        "div",
        {},
        element(
          "div",
          {class: "about"},
          element("span", {}, `row ${question.row}`),
          question.kind && element("span", {class: "tag"}, question.kind),
        ),
        element("p", {class: "asked"}, question.question),
        question.gold !== null && element("p", {class: "gold"}, element("span", {class: "soft"}, "data set: "), element("b", {}, question.gold)),
        columns.length > 0 &&
          element(
            "details",
            {},
            element("summary", {}, columns.map(([name]) => name).join(", ")),
            element("dl", {}, columns.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)])),
          ),
      ),
    ),
    element("div", {class: "answers"}, question.answers.map(answerElement)),
  );
}

function answerElement(answer, place) {
  const [sign, kind, meaning] = {1: ["✓ right", "good", "right"], 0: ["✗ wrong", "bad", "wrong"], null: ["no mark", "warn", "unmarked"]}[answer.mark];
  const text = answer.turns.length ? turnsElement(answer.turns, parts) : element("p", {class: "text"}, ...(answer.text === "" ? [element("span", {class: "empty"}, "(nothing)")] : parts(answer.text)));
  const isGraded = answer.score !== null && answer.score !== 0 && answer.score !== 1;
  const made = element(
    "div",
    {class: `answer ${meaning}`, "data-model": models[place]},
    element(
      "header",
      {},
      element("span", {class: "name"}, models[place]),
      element("span", {class: `tag ${kind}`}, sign),
      isGraded && element("span", {class: "soft"}, number(answer.score)),
      answer.cut && element("span", {class: "tag warn", title: "the length limit ended it"}, "cut"),
      answer.calls > 0 && element("span", {class: "tag", title: "calls of tools"}, counted(answer.calls, "call")),
      answer.failed > 0 && element("span", {class: "tag warn", title: "calls that were answered with an error"}, `${answer.failed} failed`),
      answer.ended && element("span", {class: "tag warn", title: ENDS[answer.ended]}, "ended with a call"),
      element("span", {class: "tokens"}, `${answer.tokens} tokens`),
    ),
    text,
  );
  if (answer.turns.length ? turnsText(answer.turns).length > LONG : answer.text.length > LONG) {
    text.classList.add("long");
    const unfold = element("button", {type: "button", class: "unfold", onclick: () => {
      text.classList.remove("long");
      unfold.remove();
    }}, "the whole answer");
    made.append(unfold);
  }
  return made;
}

/** The reasoning set apart from the answer, where a text has them. */
function parts(text) {
  return text
    .split(/(<think>[\s\S]*?<\/think>|<answer>[\s\S]*?<\/answer>)/)
    .filter((part) => part !== "")
    .map((part) => {
      if (part.startsWith("<think>")) return element("span", {class: "think"}, part);
      if (part.startsWith("<answer>")) return element("span", {class: "final"}, part);
      return part;
    });
}

/** Show questions of one kind, of two models by their names where it is about two. */
function choose(wanted, first, second) {
  show = wanted;
  pair = first === undefined ? null : [models.indexOf(first), models.indexOf(second)];
  const options = [...filters.elements.show.options];
  const same = options.findIndex((one) => one.value === wanted && one.dataset.first === first && one.dataset.second === second);
  filters.elements.show.selectedIndex = same;
  filter();
}

filters.addEventListener("submit", (event) => event.preventDefault());
filters.elements.show.addEventListener("change", (event) => {
  const option = event.target.selectedOptions[0];
  choose(option.value, option.dataset.first, option.dataset.second);
});
filters.elements.kind?.addEventListener("change", filter);
filters.elements.find.addEventListener("input", filter);
document.getElementById("clear").addEventListener("click", () => {
  filters.reset();
  choose("all");
});
for (const button of document.querySelectorAll("button.count")) {
  button.addEventListener("click", () => {
    filters.reset();
    choose(button.dataset.show, button.dataset.first, button.dataset.second);
    document.getElementById("questions").scrollIntoView();
  });
}
new IntersectionObserver(draw, {rootMargin: "100% 0px"}).observe(more);
document.addEventListener("scroll", draw, {passive: true});

unpack(packedQuestions).then((all) => {
  questions = all.map((question) => ({
    ...question,
    marks: question.answers.map((answer) => answer.mark),
    words: [question.question, question.gold, `row ${question.row}`, ...question.answers.flatMap((answer) => [answer.text, turnsText(answer.turns)])].join("\n").toLowerCase(),
  }));
  cards.classList.toggle("few", questions.length <= FEW);
  filter();
  document.documentElement.dataset.ready = "";
});
