"use strict";
// What every page shares: its data, its images, and a small way to build elements out of text that nobody trusts.

/** The page's data, as `render_page(data=…)` was given it. */
function pageData() {
  return JSON.parse(document.getElementById("page-data").textContent);
}

/** Name → data URI; further ones may be added. */
const pageImages = JSON.parse(document.getElementById("page-images").textContent);

/** Unpack what `packed` of html.py made. */
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

/**
 * An element. Children are elements or text, and text stays text: nothing here ever parses HTML.
 * element("a", {class: "x", href: "#y", onclick: f}, "text", other)
 */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

/** A thumbnail that opens large, as the macro of image.html.j2 writes it. */
function imageElement(name, caption = "image") {
  const image = element("img", {alt: caption, src: pageImages[name]});
  return element("button", {type: "button", class: "image", title: "enlarge"}, image);
}

/** The turns of a completion: who wrote each, its text with images in place, and its calls. `parts` makes elements of the policy's texts. */
function turnsElement(turns, parts = (text) => [text]) {
  return element("div", {class: "turns"}, turns.map((turn) => {
    const images = [...turn.images];
    const isTool = turn.role === "tool";
    const said = turn.text.split("<image>").flatMap((text, place) => {
      const name = place ? images.shift() : null;
      return [name && name in pageImages ? imageElement(name, `image of ${turn.name}`) : null, ...(isTool ? [text] : parts(text))];
    });
    return element("div", {class: `turn ${isTool ? "tool" : "policy"}`},
      isTool ? element("span", {class: "tag"}, turn.name) : null,
      element("div", {class: "text"}, said.filter(Boolean)),
      turn.calls.map((call) => element("code", {class: "call"}, call)));
  }));
}

/** All that the turns say, for a search. */
const turnsText = (turns) => turns.flatMap((turn) => [turn.name, turn.text, ...turn.calls]).join("\n");

/** A number for people: thousands grouped, a true minus, an en dash for nothing. */
function number(value, digits = 2, signed = false) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const text = Math.abs(value).toLocaleString("en", {minimumFractionDigits: digits, maximumFractionDigits: digits});
  const negative = value < 0 && Number(text.replaceAll(",", "")) !== 0;
  return (negative ? "−" : signed ? "+" : "") + text;
}

const byId = (id) => document.getElementById(id);

/** "1 step", "1,200 steps". */
function counted(num, name) {
  return `${number(num, 0)} ${name}${num === 1 ? "" : "s"}`;
}

for (const image of document.querySelectorAll("img[data-image]")) {
  image.src = pageImages[image.dataset.image];
}

// An image opens at a click, wherever it stands and whenever it came; a click or Escape closes it.
const zoom = document.getElementById("zoom");
document.addEventListener("click", (event) => {
  const button = event.target.closest("button.image");
  if (!button) return;
  const image = button.querySelector("img");
  const large = zoom.querySelector("img");
  large.src = image.src;
  large.alt = image.alt;
  large.classList.toggle("pixels", Math.max(image.naturalWidth, image.naturalHeight) <= 160);
  zoom.querySelector(".caption").textContent = image.alt;
  zoom.showModal();
});
zoom.addEventListener("click", () => zoom.close());
