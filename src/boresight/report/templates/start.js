"use strict";
// Draws the page, and under `boresight report --watch` draws it anew when the run has gone on.

const REFRESH_MS = 3000;

function drawAll(data) {
  drawFacts(data);
  drawVerdicts(data);
  drawCurves(data);
  drawTime(data);
  drawWork(data);
  drawAnswers(data);
  drawSetUp(data);
}

const first = pageData();
drawAll(first);
if (byId("completions")) showCompletions(first.completions);

async function follow(version) {
  try {
    const answer = await fetch("version");
    const now = await answer.text();
    if (now !== version) {
      const data = await (await fetch("data")).json();
      Object.assign(pageImages, data.images);
      drawAll({...data, watch: true});
      await showCompletions(data.completions);
      version = now;
    }
    document.body.classList.remove("alone");
  } catch {
    document.body.classList.add("alone"); // The server was stopped; what is here stays readable.
  }
  setTimeout(follow, REFRESH_MS, version);
}

if (first.watch) follow(first.version);
