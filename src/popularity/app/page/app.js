"use strict";
// Every text goes into the page as text, never as markup.
const $ = (id) => document.getElementById(id);
const form = $("draft");
const DAYS = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const MASSES = { image: "the picture itself", visual: "pictures of classes", text: "texts of classes", other_levels: "other levels" };
let image = "", options = {}, kept = null, current = null, asked = 0;

function make(tag, properties = {}, ...children) {
  const { class: name, ...rest } = properties;
  const node = document.createElement(tag);
  if (name) node.className = name;
  for (const [key, value] of Object.entries(rest)) key in node && key !== "list" ? (node[key] = value) : node.setAttribute(key, value);
  node.append(...children.filter((child) => child !== null));
  return node;
}
const put = (id, ...children) => $(id).replaceChildren(...children);
const fixed = (value) => value.toFixed(2).replace("-", "−");
const signed = (value) => (value < 0 ? "" : "+") + fixed(value);
const count = (value) => value === null ? "–" : value < 1e9 ? Math.round(value).toLocaleString("en") : value.toExponential(1);

async function ask(path, body) {
  const response = await fetch(path, body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  const found = await response.json().catch(() => ({ error: response.statusText }));
  if (!response.ok) throw new Error(found.error);
  return found;
}
function say(id, text, wrong = false) {
  $(id).textContent = text;
  $(id).classList.toggle("wrong", wrong);
}
// Runs a task of a button: says that it runs, and what went wrong.
async function run(button, where, task) {
  button.setAttribute("aria-busy", "true");
  const started = performance.now();
  say(where, "Computing …");
  try {
    await task();
    say(where, `Done in ${((performance.now() - started) / 1000).toFixed(1)} s.`);
  } catch (error) {
    say(where, error.message, true);
  }
  button.removeAttribute("aria-busy");
}
function draft() {
  const post = {}, columns = {};
  for (const [name, value] of new FormData(form)) if (typeof value === "string" && value.trim()) post[name] = value;
  // Fields without a name: further columns of a table, whose names may be those of other fields.
  for (const field of $("further").querySelectorAll("input")) if (field.value.trim()) columns[field.dataset.column] = field.value;
  if (Object.keys(columns).length) post.columns = columns;
  return { post, image };
}

// A bar to the right (up) or left (down) of the middle.
function bar(share) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "-1 0 2 1");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const rect = document.createElementNS(svg.namespaceURI, "rect");
  for (const [key, value] of Object.entries({ x: Math.min(0, share), y: 0, width: Math.abs(share), height: 1, class: share < 0 ? "down" : "up" })) rect.setAttribute(key, value);
  svg.append(rect);
  return svg;
}
function bars(rows) {
  const most = Math.max(1e-9, ...rows.map(([, value]) => Math.abs(value)));
  return make("dl", { class: "signed" }, ...rows.flatMap(([name, value]) => [
    make("dt", {}, make("bdi", {}, name)),
    make("dd", { class: "half" }, bar(value / most)),
    make("dd", { class: "number" }, signed(value)),
  ]));
}
function table(title, header, rows) {
  const cells = (row, index) => row.map((cell, column) => make(column ? "td" : "th", column ? (column >= index ? { class: "number" } : {}) : { scope: "row" }, cell));
  return make("div", { class: "scroll", tabIndex: 0, role: "region", "aria-label": title },
    make("table", {},
      make("thead", {}, make("tr", {}, ...header.map((name, column) => make("th", { scope: "col", class: column ? "number" : "" }, name)))),
      make("tbody", {}, ...rows.map((row) => make("tr", {}, ...cells(row, 1))))));
}

function tile(name, value, note) {
  return make("li", {}, make("span", { class: "name" }, name), make("strong", {}, value), make("span", { class: "note" }, note));
}
function show({ prediction: found, prototypes, limits }) {
  current = { post: draft().post, found };
  $("empty").hidden = true;
  $("found").hidden = $("changes").hidden = false;
  const intervals = Object.entries(found.intervals).map(([coverage, [low, high]]) => {
    const views = found.views_intervals[coverage].map(count).join(" – ") + ` ${counted()}`;
    return low === null ? tile(`${coverage * 100} %`, "–", "too few posts to state bounds")
      : tile(`${Math.round(coverage * 100)} % interval`, `${fixed(low)} – ${fixed(high)}`, views);
  });
  put("tiles", tile("popularity", fixed(found.popularity), `error about ${fixed(found.error_scale)}`), tile(counted(), count(found.views), "2^popularity − 1"), ...intervals);
  put("limits", ...limits.map((text) => make("li", {}, text)));
  put("notes", ...found.notes.map((text) => make("li", {}, text)));
  $("expected").textContent = `from the expected value ${found.expected_value.toFixed(2)} to ${found.popularity.toFixed(2)}`;
  put("blocks", bars(Object.entries(found.shap_by_block)));
  put("columns", bars(found.shap_by_feature.map((one) => [
    `${one.block}: ${one.feature} = ${one.value === null ? "missing" : typeof one.value === "number" ? +one.value.toPrecision(4) : one.value}`, one.shap_value])));
  put("prototypes", make("div", { class: "near" }, ...Object.entries(prototypes).flatMap(([kind, near]) => near.map((one) => prototype(kind, one)))));
  const masses = Object.entries(found.attention_mass).map(([name, share]) => [MASSES[name], share]);
  const weights = Object.entries(found.attention_weights).flatMap(([kind, list]) => list.slice(0, 3).map((one) => [`${one.name} (${kind === "visual" ? "pictures" : "texts"})`, one.weight]));
  put("attention", masses.length ? table("Attention of the picture", ["on", "share"], [...masses, ...weights].map(([name, share]) => [name, `${(100 * share).toFixed(0)} %`])) : make("p", {}, "Without a picture there is none."));
  compare();
  if (innerWidth < 1000) $("answer").scrollIntoView();
}
function prototype(kind, { name, cosine, posts }) {
  return make("div", {}, make("h4", {}, make("bdi", {}, name), " ", make("small", {}, `by ${kind === "visual" ? "picture" : "text"}, cos ${cosine.toFixed(2)}`)),
    make("ul", { class: "posts three" }, ...posts.map((post) => {
      const picture = !post.picture ? make("div", { class: "noimage" }, "no image") : make("img", { src: `/api/pictures/${encodeURIComponent(post.pid)}`, alt: post.title || "stored post" });
      return make("li", { class: "post" }, picture, make("p", {}, make("bdi", {}, post.title)), make("p", { class: "line" }, post.popularity === null ? "test post" : `popularity ${post.popularity.toFixed(2)}`));
    })));
}
function compare() {
  if (!kept) return put("comparison");
  const [a, b] = [kept.found, current.found];
  const names = [...new Set([...Object.keys(a.shap_by_block), ...Object.keys(b.shap_by_block)])];
  const row = (name, x, y) => [name, fixed(x), fixed(y), signed(y - x)];
  const changed = [...new Set([...Object.keys(plain(kept.post)), ...Object.keys(plain(current.post))])].filter((name) => plain(kept.post)[name] !== plain(current.post)[name]);
  put("comparison", table("Kept post and this one", ["", "kept", "this one", "difference"], [
    row("popularity", a.popularity, b.popularity),
    [counted(), count(a.views), count(b.views), ""],
    row("expected value", a.expected_value, b.expected_value),
    ...names.map((name) => row(`SHAP ${name}`, a.shap_by_block[name] ?? 0, b.shap_by_block[name] ?? 0)),
    ...changed.map((name) => [name, plain(kept.post)[name] ?? "–", plain(current.post)[name] ?? "–", ""]),
  ]));
}
async function predict() {
  const mine = ++asked;
  const found = await ask("/api/predict", draft());
  if (mine === asked) show(found);
}

// Weekday and hour: a day a call, so that the map fills from the top. Arrows move in it, Enter takes an hour over.
async function hours() {
  const body = draft(), mine = ++asked, rows = [];
  const day = (new Date(`${body.post.date}Z`).getUTCDay() + 6) % 7, hour = new Date(`${body.post.date}Z`).getUTCHours();
  const grid = make("tbody"), caption = make("p");
  const head = make("tr", {}, make("th"), ...Array.from({ length: 24 }, (_, index) => make("th", { scope: "col" }, String(index))));
  put("variants", make("h3", {}, "Popularity by weekday and hour, UTC"), caption, make("div", { class: "scroll", role: "region", "aria-label": "Popularity by weekday and hour" }, make("table", { class: "map" }, make("thead", {}, head), grid)));
  for (let each = 0; each < 7 && mine === asked; each++) {
    rows.push((await ask("/api/what-if", { ...body, what: "hours", values: [String(each)] })).variants);
    const all = rows.flat().map((one) => one.popularity), low = Math.min(...all), range = Math.max(1e-6, Math.max(...all) - low);
    grid.replaceChildren(...rows.map((row, y) => make("tr", {}, make("th", { scope: "row" }, DAYS[y]), ...row.map((one, x) => {
      const cell = make("button", { type: "button", tabIndex: x + y ? -1 : 0, title: `${one.label}: ${one.popularity.toFixed(2)}, ${signed(one.difference)}` }, one.popularity.toFixed(1));
      cell.setAttribute("aria-label", `${one.label}, popularity ${one.popularity.toFixed(2)}`);
      if (y === day && x === hour) cell.setAttribute("aria-current", "true");
      cell.style.background = `color-mix(in oklab, #f29b52 ${100 * ((one.popularity - low) / range)}%, #8cc4f5)`;
      cell.onclick = () => { form.elements.date.value = one.changed.date.slice(0, 16); form.requestSubmit(); };
      return make("td", {}, cell);
    }))));
    caption.textContent = `From ${low.toFixed(2)} (blue) to ${(low + range).toFixed(2)} (orange). Press an hour to take it over.`;
  }
}
addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -24, ArrowDown: 24 }[event.key];
  if (!step || !event.target.closest(".map")) return;
  const cells = [...document.querySelectorAll(".map button")], next = cells[cells.indexOf(event.target) + step];
  if (next) { event.preventDefault(); cells.forEach((cell) => { cell.tabIndex = -1; }); next.tabIndex = 0; next.focus(); }
});
// A post with its further columns beside its fields.
const plain = ({ columns, ...fields }) => ({ ...columns, ...fields });
const counted = () => options.counted ?? "views";
const lines = (id) => $(id).value.split("\n").map((line) => line.trim()).filter(Boolean).slice(0, 5);
const VALUES = { titles: () => lines("titles"), users: () => lines("others") };
async function vary(what) {
  if (what === "hours") return hours();
  const mine = ++asked;
  const { popularity, variants } = await ask("/api/what-if", { ...draft(), what, values: VALUES[what]?.() ?? [] });
  if (mine !== asked) return undefined;
  const title = make("h3", {}, `The post has ${popularity.toFixed(2)}; with the change`);
  if (what === "crops") {
    return put("variants", title, make("div", { class: "crops" }, ...variants.map((one) => make("figure", {}, make("img", { src: one.picture, alt: `crop: ${one.label}` }), make("figcaption", {}, `${one.label}: ${one.popularity.toFixed(2)} (${signed(one.difference)})`)))), make("p", {}, "A crop is a new JPEG file; its size in bytes counts, too."));
  }
  const sorted = [...variants].sort((a, b) => b.difference - a.difference);
  return put("variants", title, table("Variants", ["change", "popularity", counted(), "difference"], sorted.map((one) => [one.label, one.popularity.toFixed(2), count(one.views), signed(one.difference)])));
}

async function rank(file) {
  const { coverage, drafts } = await ask("/api/rank", { csv: await file.text() });
  put("ranked", table("Ranked drafts", ["draft", "popularity", counted(), `${coverage * 100} % interval`, "notes"], drafts.map((one) => [
    `${one.row}: ${one.title || "no title"}`,
    one.popularity === null ? "–" : one.popularity.toFixed(2),
    count(one.views),
    one.interval[0] === null ? "–" : `${fixed(one.interval[0])} – ${fixed(one.interval[1])}`,
    make("td", {}, one.problem || String(one.notes.length || "")).textContent,
  ])));
}
async function take(file) {
  image = file ? (await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  })).split(",")[1] ?? "" : "";
  if ($("shown").src) URL.revokeObjectURL($("shown").src);
  if (file) $("shown").src = URL.createObjectURL(file); else $("shown").removeAttribute("src");
  $("shown").hidden = $("no-image").hidden = !file;
  $("drop-text").textContent = file ? file.name : "Drop a picture, or choose one";
}
$("shown").onerror = () => { $("shown").hidden = true; };
$("image").onchange = (event) => take(event.target.files[0]);
$("no-image").onclick = () => { $("image").value = ""; take(null); };
for (const kind of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
  });
}
form.onsubmit = (event) => { event.preventDefault(); run(form.querySelector(".main"), "status", predict); };
form.elements.category.oninput = () => {
  const known = options.classes?.[form.elements.category.value];
  put("subcategories", ...(known ?? Object.values(options.classes ?? {}).flat()).map((value) => make("option", { value })));
};
$("keep").onclick = () => { kept = current; compare(); };
$("csv").onchange = (event) => event.target.files[0] && run($("csv"), "ranked-status", () => rank(event.target.files[0]));
for (const button of document.querySelectorAll("[data-what]")) button.onclick = () => run(button, "progress", () => vary(button.dataset.what));

ask("/api/options").then((found) => {
  options = found;
  put("categories", ...Object.keys(found.classes).map((value) => make("option", { value })));
  put("further", ...Object.entries(found.columns).map(([name, values], index) => make("label", {}, make("bdi", {}, name), " ",
    make("input", { "data-column": name, autocomplete: "off", maxLength: 10000, ...(values.length ? { list: `further-${index}` } : { inputMode: "decimal" }) }),
    make("datalist", { id: `further-${index}` }, ...values.map((value) => make("option", { value }))))));
  $("further-names").textContent = Object.keys(found.columns).map((name) => `, ${name}`).join("");
  put("users", ...found.users.map((value) => make("option", { value })));
  form.elements.category.oninput();
  form.elements.date.value ||= found.last.slice(0, 16);
}).catch((error) => say("status", error.message, true));
