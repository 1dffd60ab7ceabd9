"use strict";
// Charts by plotly: small ones of what was logged, and where the time of a step went.

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const PALETTE = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7", "--c8"];
// Plotly reads a little HTML in names; none of ours is meant as such.
const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

function chartLayout(more = {}) {
  const axis = {
    gridcolor: colour("--rule"), linecolor: colour("--rule-strong"), zerolinecolor: colour("--rule-strong"), zerolinewidth: 1,
    tickfont: {size: 11, color: colour("--soft")}, automargin: true, ticks: "", nticks: 6,
  };
  return {
    height: 210, margin: {l: 8, r: 8, t: 8, b: 8}, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: {family: colour("--sans"), size: 12, color: colour("--ink")}, showlegend: false, hovermode: "x unified",
    hoverlabel: {bgcolor: colour("--surface"), bordercolor: colour("--rule-strong"), font: {size: 12, color: colour("--ink")}},
    // A finger scrolls the page; only a mouse draws a frame to enlarge.
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    ...more,
    xaxis: {...axis, showgrid: false, hoverformat: ",d", ...more.xaxis},
    yaxis: {...axis, exponentformat: "power", ...more.yaxis},
  };
}

const CHART_CONFIG = {displayModeBar: false, displaylogo: false, responsive: true, showTips: false};

/** A mean that forgets: each value by its weight, the first ones not pulled towards zero. */
function smoothed(values, share) {
  let sum = 0, weight = 0;
  return values.map((value) => {
    sum = share * sum + (1 - share) * value;
    weight = share * weight + (1 - share);
    return sum / weight;
  });
}

/** Lines of one label, training's and evaluation's, have one colour. */
function lineColours(chart) {
  const labels = [...new Set(chart.lines.map((line) => line.label))];
  return new Map(labels.map((label, place) => [label, PALETTE[place % PALETTE.length]]));
}

function lineTraces(chart, series, share) {
  const colours = lineColours(chart);
  return chart.lines.flatMap((line) => {
    const {steps, values} = series[line.name];
    const base = {
      x: steps, type: "scatter", name: plain(line.eval ? `${line.label}, evaluation` : line.label), hovertemplate: chart.unit === "share" ? "%{y:.3~%}" : "%{y:.4g}",
      mode: steps.length === 1 || line.eval ? "lines+markers" : "lines",
      line: {color: colour(colours.get(line.label)), width: 1.8, dash: line.eval ? "dot" : "solid"}, marker: {size: 5},
    };
    if (!share || steps.length < 3) return [{...base, y: values}];
    return [{...base, y: values, opacity: 0.25, hoverinfo: "skip", hovertemplate: undefined}, {...base, y: smoothed(values, share)}];
  });
}

function chartCard(chart, series) {
  const shown = chart.unit === "share" ? (value) => `${compact(100 * value)}%` : compact;
  const last = (line) => shown(series[line.name].values.at(-1));
  const legend = [...lineColours(chart)].map(([label, name]) => element("li", {},
    element("span", {class: "swatch", style: `--swatch: var(${name})`}), label === chart.title ? null : `${label} `,
    chart.lines.filter((line) => line.label === label).flatMap((line) =>
      [line.eval ? element("span", {class: "dotted", style: `--swatch: var(${name})`}, " evaluation ") : null, element("b", {}, last(line))])));
  const plot = element("div", {class: "plot", role: "img", "aria-label": chart.title});
  const card = element("figure", {class: "card chart"},
    element("figcaption", {}, element("h3", {}, chart.title, chart.unit && element("span", {class: "unit"}, chart.unit)),
      chart.about && element("p", {class: "faint"}, chart.about), element("ul", {class: "legend"}, legend)),
    plot);
  return {card, plot, chart};
}

/** Three digits, in the shortest form that says them. */
function compact(value) {
  const size = Math.abs(value);
  const text = size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(1) : Number(value.toPrecision(3)).toLocaleString("en", {maximumFractionDigits: 6});
  return text.replace("-", "−");
}

const drawnCharts = new Map();
const whenNear = new IntersectionObserver((entries) => {
  for (const {target, isIntersecting} of entries) {
    if (isIntersecting) {
      whenNear.unobserve(target);
      drawnCharts.get(target)?.();
    }
  }
}, {rootMargin: "600px"});

/** Draw a chart as soon as a reader comes near it. */
function drawLater(plot, draw) {
  drawnCharts.set(plot, draw);
  whenNear.observe(plot);
}

function redrawCharts() {
  for (const [plot, draw] of drawnCharts) if (plot.classList.contains("js-plotly-plot")) draw();
}

// Paper has no sight: what is printed must be drawn.
addEventListener("beforeprint", () => drawnCharts.forEach((draw) => draw()));

function drawCurves(data) {
  for (const plot of drawnCharts.keys()) whenNear.unobserve(plot);
  drawnCharts.clear();
  byId("curves-note").textContent = !data.charts.length ? "This run has logged nothing yet."
    : data.metrics_from === "metrics.jsonl" ? "" : `Taken from ${data.metrics_from}.`;
  byId("curves-note").hidden = !byId("curves-note").textContent;
  const slider = byId("smoothing");
  const cards = data.charts.map((chart) => chartCard(chart, data.series));
  for (const {plot, chart} of cards) {
    drawLater(plot, () => {
      const yaxis = chart.unit === "share" ? {rangemode: "tozero", tickformat: "~%", ...steadyRange(chart, data.series)}
        : steadyRange(chart, data.series);
      Plotly.react(plot, lineTraces(chart, data.series, Number(slider.value)), chartLayout({yaxis}), CHART_CONFIG);
    });
  }
  const fold = (id, found, title) => {
    byId(`${id}-charts`).replaceChildren(...found.map(({card}) => card));
    byId(id).hidden = !found.length;
    byId(id).querySelector("summary").textContent = title;
  };
  const flat = cards.filter(({chart}) => chart.flat);
  const [main, more] = [false, true].map((kind) => cards.filter(({chart}) => !chart.flat && chart.more === kind));
  byId("charts").replaceChildren(...main.map(({card}) => card));
  fold("flat", flat, `${counted(flat.length, "chart")} without a change: ${flat.map(({chart}) => lastOf(chart, data.series)).join(", ")}`);
  fold("more", more, counted(more.length, "further metric"));
}

/** "clipped 0%": the title of a chart, and the value of its first line. */
function lastOf(chart, series) {
  const value = series[chart.lines[0].name].values.at(-1);
  return `${chart.title} ${chart.unit === "share" ? `${compact(100 * value)}%` : compact(value)}`;
}

/** The range of an axis whose values are all but equal: plotly would magnify their rounding. */
function steadyRange(chart, series) {
  const values = chart.lines.flatMap((line) => series[line.name].values);
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const size = Math.max(Math.abs(least), Math.abs(most));
  if (most - least > 1e-3 * size) return {};
  const pad = size === 0 ? (chart.unit === "share" ? 0.1 : 1) : 0.5 * size;
  return {range: least >= 0 && size === 0 ? [-0.05 * pad, pad] : [least - pad, most + pad]};
}

let awaitedFrame = 0;
byId("smoothing").addEventListener("input", (event) => {
  const share = Number(event.target.value);
  event.target.nextElementSibling.textContent = share ? share.toFixed(2) : "off";
  cancelAnimationFrame(awaitedFrame);
  awaitedFrame = requestAnimationFrame(redrawCharts);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawCharts);

// ---- Time -----------------------------------------------------------------------------------------------------------------------------

const MAX_BARS = 240;
const PHASE_COLOURS = {data: "--c6", sample: "--c1", reward: "--c3", logp: "--c4", update: "--c2", other: "--c8"};

function phaseColour(name, place) {
  return PHASE_COLOURS[name] ?? PALETTE[place % PALETTE.length];
}

function duration(seconds) {
  const whole = Math.round(seconds);
  if (whole < 60) return `${number(seconds, 1)} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

/** Steps in at most MAX_BARS bars of equally many, each with its steps' mean. */
function binned({steps, phases}) {
  const size = Math.ceil(steps.length / MAX_BARS);
  const starts = steps.map((_, place) => place).filter((place) => place % size === 0);
  const mean = (values) => starts.map((start) => {
    const part = values.slice(start, start + size);
    return part.reduce((sum, value) => sum + value, 0) / part.length;
  });
  return {size, steps: starts.map((start) => steps[start]),
    phases: Object.fromEntries(Object.entries(phases).map(([name, values]) => [name, mean(values)]))};
}

function drawTime(data) {
  const {steps, phases} = data.timeline;
  byId("time-card").hidden = !steps.length;
  if (!steps.length) {
    byId("phases").replaceChildren(element("p", {class: "soft"}, "This run has no time line."));
    return;
  }
  const totals = Object.entries(phases).map(([name, seconds], place) => [name, seconds.reduce((sum, value) => sum + value, 0), place]);
  const whole = totals.reduce((sum, [, seconds]) => sum + seconds, 0);
  byId("time-note").textContent = `${duration(whole)} in ${counted(steps.length, "step")}, ${duration(whole / steps.length)} a step`;
  byId("phases").replaceChildren(
    element("div", {class: "strip", "aria-hidden": "true"}, totals.map(([name, seconds, place]) =>
      element("span", {style: `flex-grow: ${seconds / whole}; background: var(${phaseColour(name, place)})`}))),
    element("ul", {class: "legend"}, totals.map(([name, seconds, place]) => element("li", {},
      element("span", {class: "swatch block", style: `--swatch: var(${phaseColour(name, place)})`}), `${name} `,
      element("b", {}, `${number((100 * seconds) / whole, seconds / whole < 0.1 ? 1 : 0)} %`), " ",
      element("span", {class: "faint"}, duration(seconds))))));
  const bars = binned(data.timeline);
  drawLater(byId("time-plot"), () => {
    const traces = Object.entries(bars.phases).map(([name, seconds], place) => ({
      x: bars.steps, y: seconds, type: "bar", name: plain(name), hovertemplate: "%{y:.3~s}s", marker: {color: colour(phaseColour(name, place))},
    }));
    const note = bars.size > 1 ? {title: {text: `step (each bar the mean of ${bars.size})`, font: {size: 11, color: colour("--soft")}}} : {};
    Plotly.react(byId("time-plot"), traces, chartLayout({height: 240, barmode: "stack", bargap: bars.steps.length > 60 ? 0 : 0.15, xaxis: note}), CHART_CONFIG);
  });
}
