// The search page. Texts of documents reach the page as text nodes only, never as markup.
"use strict";

const $ = (id) => document.getElementById(id);
const PAGE = 10;
let points = [];
let chosenLanguage = null;
let shownPoint = null; // of the map
let shownSearch = location.search; // the part of the address that the page shows
let running = null; // AbortController of the search or answer in progress

// ---- talking to the server

function headers() {
  const key = sessionStorage.getItem("key");
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

async function call(path, body, signal) {
  const options = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
  const reply = await fetch(path, { ...options, headers: headers(), signal }).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("The server does not answer. Is it still running?");
  });
  if (reply.ok) return reply;
  const wrong = await reply.json().catch(() => null);
  if (reply.status === 401) $("key-form").hidden = false; // no earlier than what it is asked for with
  throw new Error(wrong?.error?.message ?? `the server answered ${reply.status}`);
}

const address = (what) => `/v1/collections/${encodeURIComponent($("collection").value)}/${what}`;

// ---- building the page

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children.filter((child) => child !== null));
  return made;
}

function source(hit) {
  const place = `${hit.start}–${hit.end}`;
  const name = hit.uri ?? hit.document_id;
  const link = /^https?:\/\//i.test(name)
    ? element("a", { href: name, textContent: name, rel: "noopener noreferrer", dir: "ltr" })
    : element("bdi", { textContent: name });
  return element("div", { className: "source" }, link, ` · ${place}`);
}

// Headings of a passage are lines like "## Title", whatever format its document had.
function headed(text) {
  return text.split(/^(#{1,6} .*)$/m).map((part, index) =>
    index % 2 ? element("strong", { textContent: part.replace(/^#+ +/, "") }) : part,
  );
}

// Offsets of the server count code points; JavaScript's strings count UTF-16 units.
function marked(text, spans) {
  const characters = Array.from(text);
  const parts = [];
  let place = 0;
  for (const [start, end] of [...spans].sort((a, b) => a[0] - b[0])) {
    if (end <= place) continue;
    parts.push(...headed(characters.slice(place, Math.max(start, place)).join("")));
    parts.push(element("mark", {}, ...headed(characters.slice(Math.max(start, place), end).join(""))));
    place = end;
  }
  return [...parts, ...headed(characters.slice(place).join(""))];
}

function hitItem(hit) {
  const name = hit.title ?? hit.document_id;
  const title = element("h3", { textContent: name, title: name, dir: "auto" });
  const language = element("span", { className: "language", textContent: languageName(hit.language) });
  const score = element("span", { className: "score", textContent: hit.score.toFixed(3), title: "score" });
  const passage = element("p", { className: "passage", dir: "auto", lang: hit.language ?? "" }, ...marked(hit.text, hit.highlights));
  return element("li", {}, element("div", { className: "head" }, title, language, score), source(hit), passage);
}

const names = new Intl.DisplayNames([navigator.language || "en"], { type: "language", fallback: "code" });
function languageName(code) {
  try {
    return code ? names.of(code) : "?";
  } catch {
    return code;
  }
}

function say(message) {
  $("message").textContent = message;
}

// ---- searching

function filter() {
  const language = $("language").value.trim();
  const where = $("where").value.trim();
  const wanted = language.split(/[\s,]+/).filter(Boolean);
  const languages = wanted.length ? `lang in (${wanted.join(", ")})` : "";
  return languages && where ? `${languages} and (${where})` : languages || where || null;
}

async function loadLanguages() {
  const { languages } = await (await call(address("stats"))).json();
  $("languages").replaceChildren(
    ...Object.keys(languages).filter((code) => code !== "unknown").map((code) => element("option", { value: code, textContent: languageName(code) })),
  );
}

async function search(offset = 0) {
  const body = { query: $("query").value, top_k: PAGE, offset, mode: $("mode").value, group_by: $("group").value, where: filter() };
  const { hits, took_ms } = await (await call(address("search"), body, running.signal)).json();
  if (offset === 0) $("hits").replaceChildren();
  $("hits").append(...hits.map(hitItem));
  const shown = offset + hits.length;
  $("results-title").textContent = shown ? `${shown} ${shown === 1 ? "result" : "results"} · ${took_ms} ms` : body.where ? "Nothing found with this language and filter" : "Nothing found";
  $("more").hidden = hits.length < PAGE;
  $("results").hidden = false;
}

// ---- asking

async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n");
      const field = (name) => lines.find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
      if (field("data")) yield { event: field("event"), data: JSON.parse(field("data")) };
    }
  }
}

// "[2]" in an answer becomes a link to its source.
function linked(text, citations) {
  const known = new Set(citations.map((cited) => String(cited.n)));
  return text.split(/(\[\d+\])/).map((part) => {
    const n = /^\[(\d+)\]$/.exec(part)?.[1];
    return n && known.has(n) ? element("a", { href: `#cited-${n}`, textContent: part }) : part;
  });
}

function citationItem(cited) {
  const title = element("bdi", { textContent: cited.title ?? cited.document_id });
  const head = element("div", { className: "head" }, element("strong", { textContent: `[${cited.n}]` }), title);
  return element("li", { id: `cited-${cited.n}` }, head, source(cited), element("blockquote", { dir: "auto", textContent: cited.quote }));
}

async function ask() {
  const text = $("answer-text");
  text.replaceChildren();
  $("citations").replaceChildren();
  $("answer").hidden = false;
  text.ariaBusy = "true";
  try {
    const body = { question: $("query").value, where: filter(), stream: true };
    for await (const { event, data } of events(await call(address("ask"), body, running.signal))) {
      if (event === "token") text.append(data.text);
      else if (event === "error") throw new Error(data.error.message);
      else {
        text.replaceChildren(...linked(data.answer, data.citations));
        $("citations").replaceChildren(...data.citations.map(citationItem));
      }
    }
  } finally {
    text.ariaBusy = "false";
  }
}

// Runs one search or answer; a newer one replaces it. False: it failed, and the page says why.
async function run(work) {
  running?.abort();
  const mine = (running = new AbortController());
  say("");
  $("welcome").hidden = true;
  $("results").ariaBusy = "true";
  try {
    await work();
    return true;
  } catch (error) {
    if (error.name === "AbortError") return true;
    say(error.message);
    return false;
  } finally {
    if (running === mine) {
      running = null;
      $("results").ariaBusy = "false";
    }
  }
}

async function act(what, remember = true) {
  if (!$("query").value.trim()) return;
  if (remember) {
    const fields = new URLSearchParams(new FormData($("form")));
    fields.set("do", what);
    history.pushState(null, "", `?${fields}`);
    shownSearch = location.search;
  }
  document.title = `${$("query").value} · rwkv-embed`;
  $(what === "ask" ? "results" : "answer").hidden = true;
  const done = await run(what === "ask" ? ask : () => search());
  if (!done) $("results").hidden = $("answer").hidden = true; // what is there belongs to another question
}

// ---- the map

const hue = (index) => `hsl(${(index * 137.5 + 80) % 360} 65% ${matchMedia("(prefers-color-scheme: dark)").matches ? 65 : 42}%)`;

function languagesOf(shown) {
  const counts = new Map();
  for (const { language } of shown) counts.set(language, (counts.get(language) ?? 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1]);
}

function position(point, canvas) {
  const margin = 14;
  return [
    margin + ((point.x + 1) / 2) * (canvas.clientWidth - 2 * margin),
    margin + ((1 - point.y) / 2) * (canvas.clientHeight - 2 * margin),
  ];
}

function drawMap() {
  const canvas = $("plane");
  const scale = devicePixelRatio || 1;
  canvas.width = canvas.clientWidth * scale;
  canvas.height = canvas.clientHeight * scale;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const order = new Map(languagesOf(points).map(([language], index) => [language, index]));
  for (const point of points) {
    const faded = chosenLanguage !== null && point.language !== chosenLanguage;
    pen.globalAlpha = faded ? 0.08 : 0.75;
    pen.fillStyle = hue(order.get(point.language));
    pen.beginPath();
    pen.arc(...position(point, canvas), faded ? 2.5 : 4, 0, 2 * Math.PI);
    pen.fill();
  }
  if (shownPoint === null) return;
  pen.globalAlpha = 1;
  pen.strokeStyle = getComputedStyle(canvas).color;
  pen.lineWidth = 2;
  pen.beginPath();
  pen.arc(...position(shownPoint, canvas), 7, 0, 2 * Math.PI);
  pen.stroke();
}

function drawLegend() {
  $("legend").replaceChildren(
    ...languagesOf(points).map(([language, count], index) => {
      const dot = element("span", { className: "dot" });
      dot.style.background = hue(index);
      const button = element("button", { type: "button", ariaPressed: String(chosenLanguage === language) }, dot, `${languageName(language)} ${count}`);
      button.onclick = () => {
        chosenLanguage = chosenLanguage === language ? null : language;
        drawLegend();
        showPoint(null);
      };
      return element("li", {}, button);
    }),
  );
}

async function loadMap() {
  const { points: found, total } = await (await call(address("map"))).json();
  points = found;
  chosenLanguage = null;
  $("plane").ariaLabel = `${points.length} of ${total} passages in ${languagesOf(points).length} languages`;
  drawLegend();
  showPoint(null);
}

const visiblePoints = () => points.filter((point) => chosenLanguage === null || point.language === chosenLanguage);

function nearest(event) {
  const box = $("plane").getBoundingClientRect();
  const distance = (point) => {
    const [x, y] = position(point, $("plane"));
    return Math.hypot(x - (event.clientX - box.left), y - (event.clientY - box.top));
  };
  const best = visiblePoints().reduce((a, b) => (a === null || distance(b) < distance(a) ? b : a), null);
  return best && distance(best) < 14 ? best : null;
}

// Arrow keys go to the next point in their direction.
function stepped(key) {
  const [axis, sign] = { ArrowRight: ["x", 1], ArrowLeft: ["x", -1], ArrowUp: ["y", 1], ArrowDown: ["y", -1] }[key];
  const ordered = visiblePoints().sort((a, b) => sign * (a[axis] - b[axis]));
  return ordered[(ordered.indexOf(shownPoint) + 1) % ordered.length] ?? null;
}

function showPoint(point) {
  shownPoint = point;
  drawMap();
  $("point").hidden = point === null;
  if (point === null) return;
  const title = element("strong", { textContent: `${point.title ?? point.document_id} ` });
  const language = element("span", { className: "language", textContent: languageName(point.language) });
  $("point").replaceChildren(title, language, element("div", { dir: "auto", textContent: point.text }));
}

// ---- putting it together

async function loadCollections() {
  const { data } = await (await call("/v1/collections")).json();
  $("collection").replaceChildren(
    ...data.map((info) => element("option", { value: info.name, textContent: `${info.name} (${info.documents})` })),
  );
  $("key-form").hidden = true;
  $("welcome").textContent = data.length
    ? "Ask in your language; the documents may be in another."
    : "There is no collection yet. Make one: rwkv-embed index FOLDER, or POST /v1/collections.";
}

function restoreFromAddress() {
  const fields = new URLSearchParams(location.search);
  for (const name of ["q", "collection", "mode", "group_by", "language", "where"]) {
    const field = $("form").elements.namedItem(name);
    if (fields.has(name)) field.value = fields.get(name);
    if (field.selectedIndex === -1) field.selectedIndex = 0; // an address of another day
  }
  if (fields.get("q")) act(fields.get("do") === "ask" ? "ask" : "search", false);
}

function showStart() {
  running?.abort();
  document.title = "rwkv-embed";
  say("");
  $("query").value = "";
  $("results").hidden = $("answer").hidden = true;
  $("welcome").hidden = false;
}

async function start() {
  try {
    await loadCollections();
    restoreFromAddress();
    if ($("collection").value) await loadLanguages();
  } catch (error) {
    say(error.message);
  }
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  act(event.submitter?.value ?? "search");
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("key").value); // gone when the tab is closed
  say("");
  start();
});
$("more").addEventListener("click", () => run(() => search($("hits").childElementCount)));
$("map-button").addEventListener("click", () => {
  const open = $("map").hidden;
  $("map").hidden = !open;
  $("map-button").ariaExpanded = String(open);
  if (open) loadMap().catch((error) => say(error.message));
});
$("collection").addEventListener("change", () => {
  loadLanguages().catch((error) => say(error.message));
  if (!$("map").hidden) loadMap().catch((error) => say(error.message));
});
$("plane").addEventListener("pointermove", (event) => showPoint(nearest(event)));
$("plane").addEventListener("pointerdown", (event) => showPoint(nearest(event)));
$("plane").addEventListener("pointerleave", () => showPoint(null));
$("plane").addEventListener("keydown", (event) => {
  if (event.key === "Escape") showPoint(null);
  if (!event.key.startsWith("Arrow")) return;
  event.preventDefault();
  showPoint(stepped(event.key));
});
addEventListener("resize", () => !$("map").hidden && drawMap());
addEventListener("popstate", () => {
  if (location.search === shownSearch) return; // a link to a source or to the results, within the page
  shownSearch = location.search;
  restoreFromAddress();
  if (!new URLSearchParams(location.search).get("q")) showStart();
});
start();
