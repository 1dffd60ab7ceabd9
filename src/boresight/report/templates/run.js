"use strict";
// The plain parts of a run page: facts, verdicts, work. Each draws itself anew out of the data.

function drawFacts(data) {
  const written = new Date(data.written * 1000);
  byId("written").textContent = `As of ${written.toLocaleString("en-GB", {dateStyle: "long", timeStyle: "short"})}`
    + (data.watch ? ", and watched: the page follows the run." : ".");
  byId("facts").replaceChildren(...data.facts.map((fact) =>
    element("div", {}, element("dt", {}, fact.name), element("dd", {}, fact.value, fact.note && element("small", {}, fact.note)))));
}

const VERDICTS_SHOWN = 6;

function drawVerdicts(data) {
  const list = byId("verdict-list");
  if (!data.verdicts.length) {
    list.replaceChildren(element("p", {class: "soft"}, data.awaited));
    return;
  }
  const newest = [...data.verdicts].reverse().map((verdict) =>
    element("li", {}, element("span", {class: "step"}, `step ${number(verdict.step, 0)}`),
      element("div", {}, element("span", {class: "tag"}, verdict.verdict ?? verdict.name ?? "verdict"), " ",
        element("span", {class: "text"}, verdict.text ?? ""))));
  const older = newest.slice(VERDICTS_SHOWN);
  list.replaceChildren(element("ol", {class: "verdicts"}, newest.slice(0, VERDICTS_SHOWN)));
  if (older.length) {
    list.append(element("details", {}, element("summary", {}, `${older.length} earlier`), element("ol", {class: "verdicts"}, older)));
  }
}

// What was done, beside what one row per completion would have taken (model/forward.py and rollout/hf.py count both).
const WORK = [
  ["vision_encodes", "images through the vision tower", "unshared_vision_encodes"],
  ["prompt_tokens", "prompt tokens through the language model", "unshared_prompt_tokens"],
  ["completion_tokens", "completion tokens", null],
  ["padded_tokens", "padding", null],
];

function drawWork(data) {
  const work = data.work;
  const known = new Set(WORK.flatMap(([name, , unshared]) => [name, unshared]));
  const rows = WORK.filter(([name]) => name in work);
  const others = Object.keys(work).filter((name) => !known.has(name)).map((name) => [name, name.replaceAll("_", " "), null]);
  if (!rows.length && !others.length) {
    byId("work-table").replaceChildren(element("p", {class: "soft"}, "The logs of this run count no work."));
    return;
  }
  const line = ([name, label, unshared]) => {
    const whole = unshared === null ? undefined : work[unshared];
    const saved = whole ? whole - work[name] : null;
    return element("tr", {},
      element("th", {scope: "row"}, label),
      element("td", {class: "num"}, number(work[name], 0)),
      element("td", {class: "num"}, whole ? number(whole, 0) : ""),
      element("td", {class: "num"}, saved === null ? "" : `${number(saved, 0)} (${number((100 * saved) / whole, 0)} %)`),
      element("td", {class: "num"}, whole && work[name] ? `${number(whole / work[name], 1)}×` : ""));
  };
  const heads = ["", "done", "with nothing shared", "saved", "less by"];
  byId("work-table").replaceChildren(
    element("div", {class: "scroll"}, element("table", {class: "work"},
      element("thead", {}, element("tr", {}, heads.map((head, place) => element("th", {class: place && "num", scope: "col"}, head)))),
      element("tbody", {}, [...rows, ...others].map(line)))),
    element("p", {class: "faint"}, "Sums over all logged steps, sampling included. “With nothing shared” is every completion in a row of its own, "
      + "with its own prompt and images."));
}

/** A share as a bar and a number. */
const shareBar = (share) => element("span", {class: "bar", style: `--fill: ${Math.round(100 * (share ?? 0))}%`}, share === null ? "–" : `${number(100 * share, 0)} %`);

/** Each right answer: how often it is said, and how often where it is right. */
function drawAnswers(data) {
  const section = byId("answers");
  if (!section) return;
  const found = data.answers;
  section.hidden = !found;
  document.querySelector('a[href="#answers"]').parentElement.hidden = !found;
  if (!found) return;
  const change = ([before, after]) => [element("td", {class: "num"}, before === null ? "–" : `${number(100 * before, 0)} %`), element("td", {}, shareBar(after))];
  const rows = found.rows.map((line) => element("tr", {},
    element("th", {scope: "row", class: "text"}, line.answer), element("td", {class: "num"}, line.asked === null ? "–" : `${number(100 * line.asked, 0)} %`),
    change(line.said), change(line.right), element("td", {class: "num"}, number(line.reward)),
    element("td", {class: "text"}, line.instead ? `${line.instead[0] || "(none)"} ${number(100 * line.instead[1], 0)} %` : "")));
  const heads = ["right answer", "asked", "said, early", "said, late", "right, early", "right, late", "mean reward", "most often instead"];
  byId("answers-note").textContent = `Of the completions of steps ${found.early} (early) and ${found.late} (late)`;
  const notes = [found.num > found.rows.length ? `${number(found.rows.length, 0)} of ${counted(found.num, "right answer")}.` : "",
    found.others.length ? `Answers that are right nowhere, late: ${found.others.map(([answer, share]) => `${answer || "(none)"} ${number(100 * share, 1)} %`).join(", ")}.` : "",
    "An answer is said where the answer tags, or what follows the reasoning, hold the same text."];
  byId("answers-table").replaceChildren(
    element("div", {class: "scroll"}, element("table", {class: "answers"},
      element("thead", {}, element("tr", {}, heads.map((head, place) => element("th", {scope: "col", class: [1, 2, 4, 6].includes(place) ? "num" : ""}, head)))),
      element("tbody", {}, rows))),
    element("p", {class: "faint text"}, notes.filter(Boolean).join(" ")));
}
