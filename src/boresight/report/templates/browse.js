"use strict";
// The browser of completions: step × prompt × group, filtered and sorted. However many there are, only the rows in sight are in the page.

const ROW_HEIGHT = 68; // As .list .row in run.css.
const ROWS_BEYOND = 6;

/** What is browsed: columns by row, groups of rows, texts as far as they are unpacked. */
const shelf = {isReady: false, version: 0, num: 0, columns: {}, rewards: {}, prompts: [], texts: [], extras: [], groups: [], groupOf: [], blocks: [], lowest: 0, highest: 1};
/** What is looked at: the places found, in order, and the one that is open. */
const view = {kind: "groups", found: [], open: null, drawn: "", detail: ""};

const SORTS = [
  ["step, newest first", "step", -1], ["step, oldest first", "step", 1],
  ["reward, highest first", "reward", -1], ["reward, lowest first", "reward", 1],
  ["spread in the group, widest first", "spread", -1], ["spread in the group, narrowest first", "spread", 1],
  ["truncated, most first", "truncated", -1], ["missing rewards, most first", "missing", -1],
  ["advantage, highest first", "advantage", -1], ["advantage, lowest first", "advantage", 1],
  ["length, longest first", "length", -1], ["length, shortest first", "length", 1],
];
const ONLY = [
  ["everything", ""], ["truncated", "truncated"], ["unscored", "unscored"], ["a reward missing", "missing"],
  ["groups with equal rewards", "equal"], ["with images", "images"],
];
const THROWN = ["thrown away by dynamic sampling", "thrown"];

// ---- The data --------------------------------------------------------------------------------------------------------------------------

/** Whether dynamic sampling has put the completion's group aside. */
const isThrown = (row) => shelf.columns.kept?.[row] === false;

/** Take new data in, keep what the reader has chosen. */
async function showCompletions(data) {
  fillSelect("sort", SORTS.map(([label, name, sign]) => [label, `${name} ${sign}`]));
  if (!data) {
    fillSelect("only", ONLY);
    byId("completions-note").textContent = "";
    byId("count").textContent = "No completions yet.";
    return;
  }
  const open = view.open === null ? null : nameOf(view.open);
  const [columns, prompts, others] = await Promise.all([unpack(data.columns), unpack(data.prompts), unpack(data.others)]);
  Object.assign(shelf, {columns, prompts, others, rewards: data.rewards, num: columns.step.length, hasTokens: data.has_tokens});
  shelf.missing = columns.step.map((_, row) => Object.values(data.rewards).reduce((sum, values) => sum + (values[row] === null), 0));
  findGroups();
  fillSelect("only", columns.kept?.includes(false) ? [...ONLY, THROWN] : ONLY);
  const scored = columns.reward.filter((value) => value !== null);
  shelf.lowest = scored.reduce((least, value) => Math.min(least, value), Infinity);
  shelf.highest = scored.reduce((most, value) => Math.max(most, value), -Infinity);
  fillSelect("step", [["all", ""], ...[...new Set(columns.step)].sort((a, b) => b - a).map((step) => [number(step, 0), String(step)])]);
  byId("phase-label").hidden = new Set(columns.phase).size < 2;
  noteWhatIsLeftOut(data);
  await unpackTexts(data.blocks);
  shelf.isReady = true;
  shelf.version += 1;
  view.open = open === null ? null : shelf.groups.find((group) => nameOf(group.first) === open)?.first ?? null;
  apply(true);
  byId("list").setAttribute("aria-busy", "false");
}

const nameOf = (row) => ["step", "phase", "rank", "group"].map((name) => shelf.columns[name][row]).join(" ");

function findGroups() {
  const {reward, truncated, length} = shelf.columns;
  const groups = [], groupOf = new Array(shelf.num);
  let name = null;
  for (let row = 0; row < shelf.num; row += 1) {
    const own = nameOf(row);
    if (own !== name) groups.push({first: row, stop: row});
    name = own;
    groups.at(-1).stop = row + 1;
    groupOf[row] = groups.length - 1;
  }
  for (const group of groups) {
    const rows = rowsOf(group);
    const scored = rows.map((row) => reward[row]).filter((value) => value !== null);
    const mean = scored.length ? scored.reduce((sum, value) => sum + value, 0) / scored.length : null;
    group.reward = mean;
    group.spread = scored.length > 1 ? Math.sqrt(scored.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (scored.length - 1)) : null;
    group.truncated = rows.filter((row) => truncated[row]).length;
    group.missing = rows.reduce((sum, row) => sum + shelf.missing[row], 0);
    group.length = rows.reduce((sum, row) => sum + length[row], 0) / rows.length;
  }
  Object.assign(shelf, {groups, groupOf});
}

const rowsOf = (group) => Array.from({length: group.stop - group.first}, (_, place) => group.first + place);

async function unpackTexts(blocks) {
  const texts = [], extras = [];
  let first = 0;
  shelf.blocks = blocks.map((block) => {
    const own = {first, stop: first + block.num, tokens: block.tokens};
    first += block.num;
    return own;
  });
  for (const block of blocks) {
    const {completion, ...extra} = await unpack(block.texts);
    completion.forEach((text, place) => {
      texts.push(text);
      extras.push(Object.entries(extra).map(([name, values]) => [name.replace("extra/", ""), values[place]]).filter(([, value]) => value !== null));
    });
  }
  Object.assign(shelf, {texts, extras, searchable: null});
}

/** Texts and hundredths of nats of a completion's tokens; null where the run kept none. Unpacked when first asked for. */
async function tokensOf(row) {
  const block = shelf.blocks.find((each) => row >= each.first && row < each.stop);
  if (!block.tokens) return null;
  block.unpacked ??= unpack(block.tokens);
  const {texts, logp} = await block.unpacked;
  const place = row - block.first;
  return logp[place] === null ? null : {texts: texts[place], logp: logp[place]};
}

function noteWhatIsLeftOut(data) {
  const notes = [`${number(data.num, 0)} in ${counted(shelf.groups.length, "group")}`];
  if (data.steps_left_out) {
    notes[0] = `${number(shelf.num, 0)} of ${number(data.num, 0)}`;
    notes.push(`${counted(data.steps_left_out, "step")} left out, evenly (--max-completions)`);
  }
  if (data.images_lost) notes.push(`${counted(data.images_lost, "image file")} missing`);
  byId("completions-note").textContent = notes.join(" · ");
}

// ---- Filter and sort -------------------------------------------------------------------------------------------------------------------

function fillSelect(name, options) {
  const select = byId("filters").elements[name];
  const chosen = select.value;
  select.replaceChildren(...options.map(([label, value]) => element("option", {value}, label)));
  if (options.some(([, value]) => value === chosen)) select.value = chosen;
}

/** What the form asks for. */
function wishes() {
  const form = byId("filters").elements;
  const bound = (name) => (form[name].value === "" ? null : Number(form[name].value));
  const [sort, sign] = form.sort.value.split(" ");
  return {
    kind: form.view.value, sort, sign: Number(sign), step: form.step.value === "" ? null : Number(form.step.value), phase: form.phase.value,
    only: form.only.value, least: bound("least"), most: bound("most"), text: form.text.value.trim().toLowerCase(),
  };
}

function searchable() {
  shelf.searchable ??= shelf.texts.map((text) => text.toLowerCase());
  shelf.searchablePrompts ??= shelf.prompts.map((text) => text.toLowerCase());
  return shelf.searchable;
}

function matches(row, wish) {
  const {columns, groups, groupOf, missing} = shelf;
  if (wish.step !== null && columns.step[row] !== wish.step) return false;
  if (wish.phase && columns.phase[row] !== wish.phase) return false;
  if (wish.only === "truncated" && !columns.truncated[row]) return false;
  if (wish.only === "unscored" && columns.reward[row] !== null) return false;
  if (wish.only === "missing" && !missing[row]) return false;
  if (wish.only === "equal" && groups[groupOf[row]].spread !== 0) return false;
  if (wish.only === "thrown" && !isThrown(row)) return false;
  if (wish.only === "images" && !columns.images[row].length) return false;
  return !wish.text || searchable()[row].includes(wish.text) || shelf.searchablePrompts[columns.prompt[row]].includes(wish.text);
}

const within = (value, {least, most}) =>
  (least === null && most === null) || (value !== null && (least === null || value >= least) && (most === null || value <= most));

/** What a row or a group is sorted by. */
function keyOf(place, wish) {
  const group = wish.kind === "groups" ? shelf.groups[place] : shelf.groups[shelf.groupOf[place]];
  if (wish.sort === "spread") return group.spread;
  if (wish.sort === "step") return shelf.columns.step[group.first];
  if (wish.sort === "missing" && wish.kind !== "groups") return shelf.missing[place];
  if (wish.sort === "advantage" && wish.kind === "groups") {
    const values = rowsOf(group).map((row) => shelf.columns.advantage?.[row] ?? null).filter((value) => value !== null);
    return values.length ? (wish.sign < 0 ? Math.max(...values) : Math.min(...values)) : null;
  }
  if (wish.kind === "groups") return group[wish.sort];
  const value = shelf.columns[wish.sort]?.[place] ?? null;
  return value === null ? null : Number(value);
}

function find(wish) {
  let found;
  if (wish.kind === "groups") {
    found = shelf.groups.map((_, place) => place).filter((place) =>
      within(shelf.groups[place].reward, wish) && rowsOf(shelf.groups[place]).some((row) => matches(row, wish)));
  } else {
    found = Array.from({length: shelf.num}, (_, row) => row).filter((row) => within(shelf.columns.reward[row], wish) && matches(row, wish));
  }
  const keys = new Map(found.map((place) => [place, keyOf(place, wish)]));
  // What has no such number stands last, whichever way the sort goes.
  const before = (a, b) => (a === null) - (b === null) || wish.sign * (a - b);
  return found.sort((a, b) => before(keys.get(a), keys.get(b)) || a - b);
}

/** Find anew what the form asks for, and show it: what was open, where it is still found and `keep` asks for it; else the first. */
function apply(keep = false) {
  const wish = wishes();
  view.kind = wish.kind;
  view.found = find(wish);
  view.drawn = "";
  const what = wish.kind === "groups" ? [shelf.groups.length, "groups"] : [shelf.num, "completions"];
  byId("count").textContent = `${number(view.found.length, 0)} of ${number(what[0], 0)} ${what[1]}`;
  byId("spacer").style.height = `${view.found.length * ROW_HEIGHT}px`;
  if (!keep || !view.found.some((place) => firstRow(place) === view.open)) view.open = view.found.length ? firstRow(view.found[0]) : null;
  drawList();
  drawDetail();
}

const firstRow = (place) => (view.kind === "groups" ? shelf.groups[place].first : place);

// ---- The list --------------------------------------------------------------------------------------------------------------------------

function drawList() {
  const list = byId("list");
  const first = Math.max(0, Math.floor(list.scrollTop / ROW_HEIGHT) - ROWS_BEYOND);
  const stop = Math.min(view.found.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW_HEIGHT) + ROWS_BEYOND);
  const name = `${first} ${stop} ${view.open}`;
  if (name === view.drawn) return;
  view.drawn = name;
  const rows = view.found.slice(first, stop).map((place, offset) => listRow(place, first + offset));
  byId("spacer").replaceChildren(...rows);
  list.setAttribute("aria-activedescendant", rows.find((row) => row.getAttribute("aria-selected") === "true")?.id ?? "");
}

function listRow(place, position) {
  const row = firstRow(place);
  const group = shelf.groups[shelf.groupOf[row]];
  const {columns} = shelf;
  const image = columns.images[row].find((name) => name in pageImages);
  const about = `step ${number(columns.step[row], 0)}${columns.phase[row] === "eval" ? ", evaluation" : ""} · row ${columns.row[row]}`;
  const isGroup = view.kind === "groups";
  const title = isGroup ? lastLine(shelf.prompts[columns.prompt[row]]) : firstLine(shelf.texts[row]) || "(empty)";
  return element("div", {
    class: "row", id: `found-${position}`, role: "option", "aria-selected": String(row === view.open), style: `top: ${position * ROW_HEIGHT}px`,
    onclick: () => openAt(position, true),
  },
    image ? element("img", {src: pageImages[image], alt: ""}) : element("span", {class: "no-image"}),
    element("div", {class: "what"}, element("div", {class: "title"}, title), element("div", {class: "faint"}, about,
      !isGroup && columns.truncated[row] ? " · truncated" : "", isGroup && group.truncated ? ` · ${group.truncated} truncated` : "")),
    element("div", {class: "score"}, element("div", {}, number(isGroup ? group.reward : columns.reward[row])),
      isGroup ? rewardStrip(group) : element("div", {class: "faint"}, columns.advantage ? number(columns.advantage[row], 2, true) : "")));
}

/** One cell per completion of a group: the fuller, the higher its reward; hollow where it has none. */
function rewardStrip(group) {
  const rows = rowsOf(group);
  return element("div", {class: "cells", title: `rewards ${rows.map((row) => number(shelf.columns.reward[row])).join(", ")}`},
    rows.slice(0, 16).map((row) => element("span", {class: shelf.columns.reward[row] === null ? "none" : "", style: `--fill: ${fill(shelf.columns.reward[row])}%`})));
}

function fill(reward) {
  if (reward === null) return 0;
  return shelf.highest > shelf.lowest ? Math.round((100 * (reward - shelf.lowest)) / (shelf.highest - shelf.lowest)) : 50;
}

/** The end of a prompt, where the question is, without the role and the place of the image. */
const lastLine = (text) => text.trimEnd().split("\n").at(-1).replace(/^(user|system|assistant): /, "").replaceAll("<image>", "").trim().slice(0, 200);
const firstLine = (text) => text.trimStart().slice(0, 200).replaceAll("\n", " ");

/** Open what stands at a place of the list, and bring it into sight. */
function openAt(position, byHand = false) {
  if (!view.found.length) return;
  const place = Math.min(Math.max(position, 0), view.found.length - 1);
  const list = byId("list");
  view.open = firstRow(view.found[place]);
  if (place * ROW_HEIGHT < list.scrollTop) list.scrollTop = place * ROW_HEIGHT;
  else if ((place + 1) * ROW_HEIGHT > list.scrollTop + list.clientHeight) list.scrollTop = (place + 1) * ROW_HEIGHT - list.clientHeight;
  drawList();
  drawDetail();
  // On a phone the group stands below the list.
  if (byHand && matchMedia("(max-width: 56rem)").matches) byId("detail").scrollIntoView({block: "start"});
}

function onKey(event) {
  const here = view.found.findIndex((place) => firstRow(place) === view.open);
  const page = Math.floor(byId("list").clientHeight / ROW_HEIGHT);
  const goals = {ArrowDown: here + 1, ArrowUp: here - 1, PageDown: here + page, PageUp: here - page, Home: 0, End: view.found.length - 1};
  if (!(event.key in goals)) return;
  event.preventDefault();
  openAt(goals[event.key]);
}

// ---- One group -------------------------------------------------------------------------------------------------------------------------

function drawDetail() {
  const detail = byId("detail");
  const name = `${shelf.version} ${view.kind} ${view.open}`;
  if (name === view.detail) return; // It stands there already, and a reader may be in the middle of it.
  view.detail = name;
  if (view.open === null) {
    detail.replaceChildren(element("p", {class: "soft"}, shelf.num ? "Nothing matches." : "No completions."));
    return;
  }
  const {columns} = shelf;
  const group = shelf.groups[shelf.groupOf[view.open]];
  const first = group.first;
  const rows = rowsOf(group).sort((a, b) => (columns.reward[b] ?? -Infinity) - (columns.reward[a] ?? -Infinity) || a - b);
  const facts = [`step ${number(columns.step[first], 0)}`, columns.phase[first] === "eval" ? "evaluation" : "training", `row ${columns.row[first]}`,
    columns.rank.some((rank) => rank) ? `rank ${columns.rank[first]}` : null, counted(rows.length, "completion"),
    isThrown(first) ? "thrown away by dynamic sampling" : null];
  const images = columns.images[first];
  const held = images.filter((name) => name in pageImages);
  detail.replaceChildren(
    element("header", {},
      element("p", {class: "soft"}, facts.filter(Boolean).join(" · ")),
      element("dl", {class: "numbers"}, [["mean reward", number(group.reward)], ["spread", number(group.spread)], ["truncated", number(group.truncated, 0)]]
        .map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))))),
    element("div", {class: "asked"},
      held.length ? element("div", {class: "images"}, held.map((name, place) => imageElement(name, `image ${place + 1} of row ${columns.row[first]}`))) : null,
      held.length < images.length ? element("p", {class: "warn"}, lostNote(images.length - held.length)) : null,
      element("div", {class: "prompt text"}, shelf.prompts[columns.prompt[first]])),
    ...[rowFacts(first)].filter(Boolean),
    ...(shelf.hasTokens ? [shadeControl()] : []),
    ...rows.map((row) => completionCard(row, group)));
  if (view.kind === "completions") {
    const chosen = detail.querySelector(".completion.chosen");
    if (chosen && !matchMedia("(max-width: 56rem)").matches) detail.scrollTop = chosen.offsetTop - detail.offsetTop - 12;
  } else detail.scrollTop = 0;
}

/** The right answer of a row and its further columns. */
function rowFacts(row) {
  const {columns} = shelf;
  const right = columns.right_answer?.[row] ?? null;
  const others = Object.entries(shelf.others[columns.other[row]] ?? {});
  const facts = [...(right === null ? [] : [["right answer", right]]), ...others];
  return facts.length ? element("dl", {class: "extras row-facts"}, facts.flatMap(([name, value], place) =>
    [element("dt", {}, name), element("dd", {class: `text${place === 0 && right !== null ? " right" : ""}`}, String(value))])) : null;
}

const lostNote = (num) => `${number(num, 0)} of its images ${num === 1 ? "is" : "are"} missing from the run folder.`;

function shadeControl() {
  const box = element("input", {type: "checkbox", checked: !byId("detail").classList.contains("unshaded"),
    onchange: (event) => byId("detail").classList.toggle("unshaded", !event.target.checked)});
  const scale = SHADES.map((_, place) => element("span", {class: `k${place}`}));
  return element("p", {class: "shade"}, element("label", {}, box, " shade tokens by log-probability"),
    element("span", {class: "scale", "aria-hidden": "true"}, "likely", scale, "surprising"));
}

function completionCard(row, group) {
  const {columns} = shelf;
  const turns = columns.turns?.[row] ?? [];
  const text = turns.length ? turnsElement(turns)
    : element("div", {class: "said text"}, shelf.texts[row] || element("span", {class: "faint"}, "(empty)"));
  const byFunction = Object.entries(shelf.rewards).map(([name, values]) =>
    element("span", {class: `tag${values[row] === null ? " warn" : ""}`, title: values[row] === null ? "does not apply, or failed" : name},
      `${name.replace(/_reward$/, "")} `, element("b", {}, number(values[row]))));
  const card = element("section", {class: `completion${view.kind === "completions" && row === view.open ? " chosen" : ""}`},
    element("header", {},
      element("span", {class: "meter", style: `--fill: ${fill(columns.reward[row])}%`}),
      element("b", {class: "reward", title: "reward"}, columns.reward[row] !== null ? number(columns.reward[row]) : Object.keys(shelf.rewards).length ? "unscored" : ""),
      columns.advantage ? element("span", {class: "soft", title: "advantage"}, `advantage ${number(columns.advantage[row], 2, true)}`) : null,
      element("span", {class: "soft"}, `${number(columns.length[row], 0)} tokens`),
      element("span", {class: "soft mean"}),
      columns.truncated[row] ? element("span", {class: "tag bad"}, "truncated") : null,
      element("span", {class: "faint place"}, `#${row - group.first + 1}`)),
    answerLine(row),
    element("p", {class: "functions"}, byFunction),
    text,
    shelf.extras[row].length ? element("dl", {class: "extras"}, shelf.extras[row].flatMap(([name, value]) => [element("dt", {}, name), element("dd", {class: "text"}, value)])) : null);
  whenSeen.observe(card);
  cardRows.set(card, row);
  return card;
}

/** The answer that was read from a completion, beside the right one. */
function answerLine(row) {
  const right = shelf.columns.right_answer?.[row] ?? null;
  if (right === null) return null;
  const own = shelf.columns.answer[row] || null;
  return element("p", {class: "given"}, "answer ", own === null ? element("span", {class: "warn"}, "none") : element("b", {}, own),
    element("span", {class: "faint"}, ` · right: ${right}`));
}

// Tokens become elements when their completion comes into sight: a group of long ones has tens of thousands.
const cardRows = new WeakMap();
const whenSeen = new IntersectionObserver((entries) => {
  for (const {target, isIntersecting} of entries) {
    if (isIntersecting) {
      whenSeen.unobserve(target);
      shade(target, cardRows.get(target));
    }
  }
}, {rootMargin: "300px"});

/** Least improbability, in nats, of each shade. */
const SHADES = [0, 0.1, 0.3, 0.7, 1.4, 2.5, 4, 6];

async function shade(card, row) {
  const tokens = await tokensOf(row);
  if (!tokens) return;
  const known = tokens.logp.filter((value) => value !== null);
  if (known.length) {
    const mean = known.reduce((sum, value) => sum + value, 0) / known.length / 100;
    card.querySelector(".mean").textContent = `${number(mean)} nats per token`;
  }
  card.querySelector(".said")?.replaceChildren(...tokens.texts.map((text, place) => {
    const logp = tokens.logp[place] ?? null;
    if (logp === null) return text;
    const nats = logp / 100;
    const level = SHADES.findLastIndex((least) => -nats >= least);
    return element("span", {class: `k${Math.max(level, 0)}`, title: `${number(nats)} nats, p = ${Math.exp(nats).toPrecision(2)}`}, text);
  }));
}

// ---- Hands -----------------------------------------------------------------------------------------------------------------------------

if (byId("completions")) {
  const form = byId("filters");
  let pause = 0;
  const changed = () => {
    clearTimeout(pause);
    if (!shelf.isReady) return; // What is asked for while texts are still unpacked is done then.
    byId("list").scrollTop = 0;
    apply();
  };
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", changed);
  form.addEventListener("input", (event) => {
    if (event.target.tagName !== "INPUT") return;
    clearTimeout(pause);
    pause = setTimeout(changed, 120);
  });
  byId("clear").addEventListener("click", () => {
    form.reset();
    changed();
  });
  byId("list").addEventListener("scroll", () => requestAnimationFrame(drawList), {passive: true});
  byId("list").addEventListener("keydown", onKey);
  addEventListener("resize", () => requestAnimationFrame(drawList));
}
