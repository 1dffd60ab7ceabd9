"use strict";
// How the run was started: its command, what was set, and every other option.

function optionTable(rows) {
  return element("div", {class: "scroll"}, element("table", {class: "options"}, element("tbody", {},
    rows.map(([name, value]) => element("tr", {}, element("th", {scope: "row"}, element("code", {}, name)), element("td", {}, value))))));
}

function drawSetUp({set_up: {command, about, chosen, others}}) {
  if (!command && !about.length && !others.length) {
    byId("set-up-parts").replaceChildren(element("p", {class: "soft"}, "The folder has no run.json, which holds the options."));
    return;
  }
  const folded = byId("set-up-parts").querySelector("details")?.open;
  byId("set-up-parts").replaceChildren(
    command ? element("pre", {class: "command"}, command) : "",
    optionTable([...about, ...chosen]),
    others.length ? element("details", {open: folded}, element("summary", {}, counted(others.length, chosen.length ? "other option" : "option")),
      optionTable(others)) : "");
}
