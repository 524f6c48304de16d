"use strict";
// Draws what the daemon's data say. Text goes into the page as text only: names of files and classes may hold anything.

const POLL_MS = 1000, BATCH_MS = 2000, LAWS_MS = 15000;
const SVG = "http://www.w3.org/2000/svg";
const at = (id) => document.getElementById(id);
let before = null, shown = null, failures = 0;

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

const number = (value) => value >= 9950 ? `${Math.round(value / 1000)}k` : value >= 999.5 ? `${(value / 1000).toFixed(1)}k` : value.toFixed(value < 9.95 ? 1 : 0);
const percent = (share) => `${Math.round(share * 100)} %`;
const mib = (bytes) => `${Math.round(bytes / 1048576)} MiB`;

// A curve with the area below it, of values up to `top`.
function curve(svg, values, top) {
  svg.setAttribute("viewBox", "0 0 100 100");
  const step = 100 / Math.max(values.length - 1, 1);
  const points = values.map((value, nth) => `${(nth * step).toFixed(2)},${(100 - 100 * Math.min(value / top, 1)).toFixed(2)}`);
  svg.replaceChildren(
    shape("rect", { x: 0, y: 0, width: 100, height: 100, class: "track" }),
    ...points.length < 2 ? [] : [
      shape("polygon", { points: `0,100 ${points.join(" ")} 100,100`, class: "area" }),
      shape("polyline", { points: points.join(" "), class: "curve" }),
    ]);
}

async function get(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw Object.assign(new Error(await answer.text()), { isAnswer: true });
  return answer.json();
}

function drawStatus({ status, history }) {
  const draining = status.draining ? ", draining" : "";
  at("daemon").textContent = `${status.version}, pid ${status.pid}, up ${Math.round(status.uptime_s)} s${draining}: ${status.data} (${status.train_samples} train, ${status.val_samples} val)`;
  const verdict = status.verdict;
  at("verdict").firstElementChild.textContent = verdict.text;
  at("verdict").className = verdict.bound === "trainer" ? "trainer" : ["idle", "measuring"].includes(verdict.bound) ? "" : "loader";
  const rates = history.images_per_s;
  const top = Math.max(...rates, 1);
  at("rate").textContent = rates.length ? `${number(rates.at(-1))} images/s, at most ${number(top)}` : "";
  curve(at("rates"), rates, top);
  at("rates-from").textContent = rates.length ? `${Math.round(history.at_s.at(-1) - history.at_s[0])} s ago` : "";
  drawStages(status.stages, history.stages);
  drawTrainers(status);
  drawCaches(status);
  const feeds = status.feeds.map((feed) => [String(feed.feed_id), `${feed.feed_id}: ${feed.split}${feed.share ? `, ${feed.share.name}` : ""}`]);
  const select = at("feed");
  if (feeds.map(([id]) => id).join() !== [...select.options].map((option) => option.value).join()) {
    const chosen = select.value;
    select.replaceChildren(...feeds.map(([id, name]) => new Option(name, id, false, id === chosen)));
    if (select.value !== chosen) drawFeed();
  }
  before = status;
}

function drawStages(stages, history) {
  const rows = stages.map((stage) => {
    const row = element("div", undefined, "stage");
    const shares = history[stage.name] ?? [];
    const svg = shape("svg", { role: "img", "aria-label": `${stage.name}: share of time at work`, preserveAspectRatio: "none" });
    curve(svg, shares, 1);
    row.append(element("span", stage.name), svg, element("b", shares.length ? percent(shares.at(-1)) : "–"));
    return row;
  });
  at("stages").replaceChildren(...rows);
}

function drawTrainers(status) {
  const seconds = before && before.pid === status.pid ? status.uptime_s - before.uptime_s : 0;
  const find = (feed, reader) => before?.feeds.find((x) => x.feed_id === feed)?.trainers.find((x) => x.reader === reader);
  const rows = status.feeds.flatMap((feed) => feed.trainers.map((trainer) => {
    const then = seconds > 0 ? find(feed.feed_id, trainer.reader) : undefined;
    const rate = then ? (trainer.read - then.read) * feed.batch_size / seconds : 0;
    const waits = then ? Math.min(Math.max((trainer.waited_s - then.waited_s) / seconds, 0), 1) : 0;
    const row = element("tr", undefined, waits >= 0.1 ? "slow" : "");
    const evicted = trainer.evicted ? ", evicted" : "";
    const cells = [
      `${feed.feed_id}: ${feed.split}${feed.share ? `, ${feed.share.name}` : ""}`, `${trainer.name} (${trainer.pid})${evicted}`,
      number(rate), percent(waits), trainer.lag, trainer.skipped, `epoch ${trainer.epoch}, batch ${trainer.index} of ${feed.batches}`,
    ];
    row.append(...cells.map((cell) => element("td", String(cell))));
    return row;
  }));
  const none = element("tr");
  none.append(Object.assign(element("td", "no trainer is attached: mixd.connect() in Python"), { colSpan: 7 }));
  at("trainers").replaceChildren(...rows.length ? rows : [none]);
}

function drawCaches(status) {
  const lines = [
    ...status.stores.map((x) => `${x.split} views ${x.height}x${x.width} (${x.view}): ${x.decoded} of ${x.samples} decoded, room for ${x.capacity} (${mib(x.bytes)})`),
    ...status.sources.map((x) => `${x.split} images (${x.size}): ${x.kept} of ${x.samples} kept (${mib(x.bytes)})`),
    ...status.fetched ? [`object store: ${mib(status.fetched.bytes)} fetched; disk cache ${mib(status.fetched.cached_bytes)} of ${mib(status.fetched.budget_bytes)}`] : [],
    ...status.bad_samples.length ? [`${status.bad_samples.length} images failed to decode; first: ${status.bad_samples[0].path}: ${status.bad_samples[0].cause}`] : [],
  ];
  at("caches").replaceChildren(...(lines.length ? lines : ["nothing yet"]).map((line) => element("li", line)));
}

// What was drawn for a tile, on hover and on focus.
function describe(row) {
  const steps = (list) => list.length ? list.join("; ") : "as it is";
  const lines = [`${row.name}: ${row.caption}`, `λ ${row.lambda.toFixed(3)}${row.cut ? `, ${row.cut}` : ""}`, `view: ${steps(row.own)}`];
  if (row.partner) lines.push(`partner's view: ${steps(row.partner)}`);
  return lines;
}

function detail(row) {
  at("detail").hidden = false;
  at("detail").replaceChildren(...describe(row).map((line) => element("p", line)));
}

async function drawBatch(feed) {
  const description = await get(`api/feeds/${feed}/batch`);
  if (!description) return noFeed(new Error("nothing is published yet"));
  const place = `${description.epoch}/${description.index}`;
  if (shown === `${feed} ${place}`) return;
  const sheet = new Image();
  sheet.src = `api/feeds/${feed}/batches/${place}`;
  await sheet.decode();
  const [width, height] = description.tile;
  const focused = [...at("tiles").children].indexOf(document.activeElement);
  const tiles = description.rows.map((row, nth) => {
    const tile = element("div", undefined, "tile");
    tile.tabIndex = 0;
    tile.setAttribute("role", "listitem");
    tile.title = describe(row).join("\n");
    const canvas = Object.assign(element("canvas"), { width, height });
    const [x, y] = [nth % description.columns * width, Math.floor(nth / description.columns) * height];
    canvas.getContext("2d").drawImage(sheet, x, y, width, height, 0, 0, width, height);
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", row.caption);
    tile.append(canvas, element("div", row.caption));
    tile.addEventListener("mouseenter", () => detail(row));
    tile.addEventListener("focus", () => detail(row));
    return tile;
  });
  at("tiles").replaceChildren(...tiles);
  tiles[focused]?.focus({ preventScroll: true });
  const of = description.rows.length < description.rows_of_batch ? `${description.rows.length} of ${description.rows_of_batch} images` : `${description.rows.length} images`;
  at("place").textContent = `epoch ${description.epoch}, batch ${description.index} of ${description.batches}`;
  at("batch-note").textContent = `${of}, ${description.size}; hover or tab for what was drawn`;
  shown = `${feed} ${place}`;
}

async function drawLaws(feed) {
  const laws = await get(`api/feeds/${feed}/laws`);
  if (!laws) return;
  const { rows, lambda, operations, operations_law_name } = laws;
  const svg = at("lambda");
  const top = Math.max(...lambda.shares, ...lambda.law, 1e-9);
  const width = 100 / lambda.shares.length;
  svg.setAttribute("viewBox", "0 0 100 100");
  const bars = lambda.shares.map((share, nth) => shape("rect", { x: nth * width + 0.3, y: 100 - 100 * share / top, width: width - 0.6, height: 100 * share / top, class: "fill" }));
  const steps = lambda.law.flatMap((share, nth) => [`${nth * width},${100 - 100 * share / top}`, `${(nth + 1) * width},${100 - 100 * share / top}`]);
  svg.replaceChildren(...bars, shape("polyline", { points: steps.join(" "), class: "law" }));
  at("lambda-from").textContent = String(lambda.from);
  at("lambda-seen").textContent = `${rows} rows of the last batches`;
  at("lambda-law").textContent = lambda.law_name;
  const most = Math.max(...operations.flatMap((of) => [of.share, of.law]), 1e-9);
  at("operations").replaceChildren(...operations.map((of) => {
    const row = element("div", undefined, "operation");
    const bar = shape("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", role: "img", "aria-label": `${of.name}: ${percent(of.share)}, law ${percent(of.law)}` });
    bar.append(shape("rect", { x: 0, y: 1, width: 100 * of.share / most, height: 8, class: "fill" }), shape("line", { x1: 100 * of.law / most, x2: 100 * of.law / most, y1: 0, y2: 10, class: "law" }));
    row.append(element("span", of.name), bar, element("b", percent(of.share)));
    return row;
  }));
  at("operations-key").textContent = operations.length ? `uses a view; the line: ${operations_law_name}` : "this feed's recipe has none";
}

function noFeed(error) {
  for (const id of ["tiles", "lambda", "operations"]) at(id).replaceChildren();
  for (const id of ["lambda-from", "lambda-seen", "lambda-law", "operations-key"]) at(id).textContent = "";
  at("detail").hidden = true;
  at("place").textContent = "";
  at("batch-note").textContent = error.message;
  shown = null;
}

const ofFeed = (draw) => async () => {
  const feed = at("feed").value;
  if (!feed) return noFeed(new Error("no feed is open"));
  await draw(feed).catch((error) => { if (draw === drawBatch) noFeed(error); });
};

function drawFeed() {
  ofFeed(drawBatch)();
  ofFeed(drawLaws)();
}

// One request at a time of each kind, none while the page is hidden or paused.
function every(interval, work) {
  const run = async () => {
    if (!document.hidden && !at("pause").checked) await work();
    setTimeout(run, interval);
  };
  run();
}

every(POLL_MS, async () => {
  try {
    drawStatus(await get("api/status"));
    failures = 0;
  } catch (error) {
    failures += 1;
    if (failures < 2 && before) return;
    at("verdict").className = "gone";
    at("verdict").firstElementChild.textContent = error.isAnswer ? error.message : `the daemon does not answer: ${error.message}`;
  }
});
every(BATCH_MS, ofFeed(drawBatch));
every(LAWS_MS, ofFeed(drawLaws));
at("feed").addEventListener("change", drawFeed);
