"use strict";
// Shows what the server says and stops it; everything a robot says about itself is set as text.

const POLL_MS = 250;
const ANSWER_MS = 1200; // a snapshot that takes longer counts as none
const GONE_MS = 1500; // without a snapshot for so long, what is shown is no longer shown as now
const OLD_S = 2; // likewise for a robot that asks nothing
const WINDOW_S = 10; // of the timeline, 0.8 s of it ahead
const AHEAD_S = 0.8;

const at = id => document.getElementById(id);
const known = { run: null, n: 0, robot: null, said: null, views: null, chunks: [], events: new Map() };
let heardMs = -Infinity; // when the last snapshot came, of performance.now()
let heardAt = null; // the same, of the clock on the wall
let isGateWanted = true;
let pressing = null;

// ---- small helpers -----------------------------------------------------------------------------

function make(tag, attributes = {}, ...children) {
  const is = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) is.setAttribute(name, value);
  is.append(...children);
  return is;
}
function draw(tag, attributes, text) {
  const is = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) is.setAttribute(name, value);
  if (text !== undefined) is.textContent = text;
  return is;
}
function write(id, text) { // only what changed, so that a screen reader is not told it again
  const is = at(id);
  if (is.textContent !== text) is.textContent = text;
}
const clock = s => new Date(1000 * s).toLocaleTimeString("en-GB");
const thousands = n => Number(n).toLocaleString("en-US");
const ms = x => x === null || x === undefined ? "–" : `${x < 10 ? x.toFixed(1) : Math.round(x)} ms`;
const ago = s => s < 10 ? `${Math.max(s, 0).toFixed(1)} s ago` : s < 120 ? `${Math.round(s)} s ago`
  : s < 7200 ? `${Math.round(s / 60)} min ago` : `${Math.round(s / 3600)} h ago`;
const numbers = of => Object.entries(of || {}).filter(([, n]) => typeof n === "number");
// The server's clock, which the ages are of.
const serverNow = () => known.said.now + (performance.now() - heardMs) / 1000;

// ---- hearing -----------------------------------------------------------------------------------

async function ask() {
  let next = document.hidden ? 1000 : POLL_MS;
  const robot = known.robot;
  try {
    const query = robot === null ? "" : `&robot=${encodeURIComponent(robot)}`;
    const answer = await fetch(`/live/snapshot?since=${known.n}${query}`,
      { cache: "no-store", signal: AbortSignal.timeout(ANSWER_MS) });
    if (!answer.ok) throw new Error(String(answer.status));
    const said = await answer.json();
    if (robot !== known.robot) next = 0; // another one was chosen meanwhile
    else if (known.run !== null && said.run !== known.run) { forget(); next = 0; } // a new server
    else take(said);
  } catch { /* `judge` says that there is no answer */ }
  judge();
  setTimeout(ask, next);
}

function forget() {
  Object.assign(known, { run: null, n: 0, robot: null, views: null, chunks: [], events: new Map() });
}

function choose(robot) {
  if (robot === known.robot) return;
  Object.assign(known, { n: 0, robot, views: null, chunks: [] });
  if (!known.said) return;
  known.said.robot = robot; // what is known of it is shown now, its pictures come with the next answer
  show({ ...known.said, views: null, events: [] });
}

function take(said) {
  heardMs = performance.now();
  heardAt = new Date();
  if (said.robot !== known.robot && known.robot !== null) { // the chosen one was forgotten
    Object.assign(known, { views: null, chunks: [] });
  }
  known.run = said.run;
  known.n = said.n;
  known.robot = said.robot;
  known.said = said;
  known.chunks = known.chunks.concat(said.chunks).slice(-400);
  for (const event of said.events) { known.events.delete(event.id); known.events.set(event.id, event); }
  while (known.events.size > 200) known.events.delete(known.events.keys().next().value);
  show(said);
}

// What is shown is now, or is said not to be; runs by itself, whatever the network does.
function judge() {
  const silentMs = performance.now() - heardMs;
  const is = silentMs < GONE_MS ? "live" : known.said ? "gone" : "waiting";
  if (document.body.dataset.connection !== is) document.body.dataset.connection = is;
  write("connection", is === "live" ? "live"
    : heardAt ? `no answer since ${heardAt.toLocaleTimeString("en-GB")}` : "no answer");
  document.title = is === "gone" ? "(no answer) Policy server" : known.said?.estop.pressed
    ? "(stopped) Policy server" : "Policy server";
  if (!known.said) return;
  const robot = known.said.robots[known.robot];
  const seenAge = known.views ? serverNow() - known.views.t : NaN;
  const reportAge = robot?.reported ? serverNow() - robot.reported : NaN;
  write("age", known.views ? ago(seenAge) : "");
  at("age").closest(".card").classList.toggle("old", seenAge > OLD_S);
  at("timeline").closest(".card").classList.toggle("old", seenAge > OLD_S);
  for (const id of ["facts", "interventions"]) {
    at(id).closest(".card").classList.toggle("old", reportAge > OLD_S);
  }
  showState(robot, reportAge);
  if (is === "live") showTimeline();
}

// ---- showing -----------------------------------------------------------------------------------

function show(said) {
  const about = said.about;
  write("about", [about.model, about.checkpoint_sha256 && String(about.checkpoint_sha256).slice(0, 12),
    about.device, about.action && `${about.action.horizon} × ${about.action.size} at ${about.action.rate_hz} Hz`,
  ].filter(Boolean).join("  ·  "));
  write("answered", thousands(said.answered));
  write("refused", thousands(said.refused));
  write("per_s", said.per_s.toFixed(1));
  showStop(said.estop);
  showRobots(said);
  if (said.views && said.views.n !== known.views?.n) showViews(known.views = said.views);
  else if (!known.views) showNothing(said);
  showReport(said.robots[said.robot]);
  showLatency(said);
  if (said.events.length) showEvents();
}

function showStop(estop) {
  if (estop.pressed) { clearInterval(pressing); pressing = null; at("estop").classList.remove("asking"); }
  at("estop").setAttribute("aria-pressed", estop.pressed);
  if (!pressing) {
    at("estop").querySelector("b").textContent = estop.pressed ? "Stopped" : "Emergency stop";
    write("estop-note", estop.pressed ? "see how to release it" : "no action leaves the server");
  }
  write("why", estop.reason ? `${estop.reason}.` : "");
  write("release", `curl -X POST -H 'X-Vega: 1' '${location.origin}/estop/release?by=NAME'`);
  if (at("banner").hidden === estop.pressed) at("banner").hidden = !estop.pressed;
}

function showRobots(said) {
  const names = Object.keys(said.robots);
  const nav = at("robots");
  if (JSON.stringify([...nav.children].map(b => b.dataset.robot)) !== JSON.stringify(names)) {
    nav.replaceChildren(...names.map(name => {
      const button = make("button", { type: "button", "data-robot": name },
        make("i", { class: "dot" }), make("span", {}, name || "without a name"));
      button.addEventListener("click", () => choose(name));
      return button;
    }));
  }
  for (const button of nav.children) {
    const robot = said.robots[button.dataset.robot];
    const isFresh = said.now - robot.reported < OLD_S;
    button.setAttribute("aria-pressed", button.dataset.robot === known.robot);
    button.firstChild.className = `dot ${isFresh ? robot.report.state ?? "" : ""}`;
    button.title = `asked last ${ago(said.now - robot.seen)}`;
  }
}

function showNothing(said) {
  if (at("views").querySelector("canvas") || at("views").dataset.said !== String(said.robot)) {
    at("views").dataset.said = String(said.robot);
    at("views").replaceChildren(make("p", { class: "empty" }, said.robot === null
      ? "No robot has asked yet. The simulated one: python scripts/robot_loop.py"
      : "This robot has had no answer yet."));
    at("scale").hidden = true;
    write("instruction", "");
  }
}

// The colours of the project's gate maps: dark is low (the prior speaks), bright is high.
const RAMP = [[36, 18, 84], [56, 64, 148], [36, 118, 160], [40, 168, 134], [148, 208, 80], [252, 236, 112]];
function colour(x) {
  const place = Math.min(Math.max(x, 0), 1) * (RAMP.length - 1);
  const i = Math.min(Math.floor(place), RAMP.length - 2);
  return RAMP[i].map((v, k) => Math.round(v + (place - i) * (RAMP[i + 1][k] - v)));
}
function painted(rows, low, high) { // one pixel per token
  const canvas = make("canvas", { width: rows[0].length, height: rows.length });
  const pen = canvas.getContext("2d");
  rows.forEach((row, y) => row.forEach((value, x) => {
    pen.fillStyle = `rgb(${colour(high - low < 1e-6 ? 0.5 : (value - low) / (high - low)).join(" ")})`;
    pen.fillRect(x, y, 1, 1);
  }));
  return canvas;
}

async function showViews(views) {
  const gates = views.gates;
  const values = Object.values(gates).flat(2);
  const low = Math.min(...values), high = Math.max(...values);
  const toggle = at("gate");
  toggle.setAttribute("aria-disabled", values.length === 0);
  toggle.setAttribute("aria-pressed", isGateWanted && values.length > 0);
  toggle.title = values.length ? "" : "this policy has no gate";
  const isDrawn = isGateWanted && values.length > 0;
  const pictures = await Promise.all(Object.entries(views.images).map(async ([name, source]) => {
    const image = new Image();
    image.src = source;
    await image.decode();
    return [name, image];
  }));
  if (known.views !== views) return; // a newer one came while these were decoded
  const figures = pictures.map(([name, image]) => {
    const canvas = make("canvas", { width: 2 * image.width, height: 2 * image.height, role: "img",
      "aria-label": `camera ${name}${isDrawn && gates[name] ? " with its gate map" : ""}` });
    const pen = canvas.getContext("2d");
    const isGated = isDrawn && gates[name];
    pen.filter = isGated ? "grayscale(1)" : "none";
    pen.drawImage(image, 0, 0, canvas.width, canvas.height);
    if (isGated) {
      pen.filter = "none";
      pen.globalAlpha = 0.45;
      pen.imageSmoothingEnabled = false;
      pen.drawImage(painted(gates[name], low, high), 0, 0, canvas.width, canvas.height);
    }
    return make("figure", {}, canvas, make("figcaption", {}, `${name}, ${image.width} × ${image.height}`));
  });
  at("views").replaceChildren(...figures);
  at("views").dataset.said = "";
  at("scale").hidden = !isDrawn;
  const digits = high - low < 0.05 ? 4 : 2;
  if (isDrawn) { write("low", low.toFixed(digits)); write("high", high.toFixed(digits)); }
  write("instruction", views.instruction);
  at("instruction").title = views.instruction;
}

function showState(robot, age) {
  const report = robot?.report ?? {};
  const isFresh = age <= OLD_S; // NaN: it never reported
  const state = typeof report.state === "string" ? report.state : "says nothing";
  at("state").className = `pill ${isFresh ? state.replaceAll(/[^a-z]/g, "") : ""}`;
  write("state", (report.state === undefined || isFresh ? state : `was ${state}`)
    + (report.dry_run ? ", dry run" : ""));
  write("reason", report.reason ? String(report.reason) : "");
  write("reported", Number.isFinite(age) ? ago(age) : "–");
  write("asked", robot ? ago(serverNow() - robot.seen) : "–");
}

function rowsOf(entries, whole) {
  if (!entries.length) return [make("tr", {}, make("td", { colspan: 3, class: "soft" }, "none"))];
  return entries.sort((a, b) => b[1] - a[1]).map(([name, n]) => make("tr", {},
    make("td", {}, name), make("td", { class: "number" }, thousands(n)),
    make("td", { class: "number soft" }, whole ? `${(100 * n / whole).toFixed(1)} %` : "")));
}

let reportShown = "";
function showReport(robot) {
  const report = robot?.report ?? {};
  const text = JSON.stringify([known.robot, robot?.answered, report]);
  if (text === reportShown) return;
  reportShown = text;
  const count = x => typeof x === "number" ? thousands(x) : "–";
  const facts = [
    ["last report", make("span", { id: "reported" })],
    ["last request", make("span", { id: "asked" })],
    ["chunks answered", count(robot?.answered)],
    ["schedule", typeof report.schedule === "string" ? report.schedule : "–"],
    ["actions, of steps", `${count(report.actions)}, ${count(report.ticks)}`],
    ["stops, failed inferences", `${count(report.stops)}, ${count(report.failed)}`],
    ["answer after, p99", `${ms(report.latency_ms)}, ${ms(report.latency_p99_ms)}`],
  ];
  at("facts").replaceChildren(...facts.map(([what, value]) =>
    make("tr", {}, make("td", {}, what), make("td", {}, value))));
  at("interventions").replaceChildren(...rowsOf(numbers(report.interventions), report.actions));
  at("holds").replaceChildren(...rowsOf(numbers(report.holds), report.ticks));
}

function showEvents() {
  at("events").replaceChildren(...[...known.events.values()].reverse().map(event => make("li",
    { class: event.kind.replaceAll(/[^a-z_]/g, "") }, make("time", {}, clock(event.t)),
    make("span", { class: "kind" }, event.kind), make("span", { class: "text" }, event.text),
    make("span", { class: "times" }, event.times > 1 ? `× ${thousands(event.times)}` : ""))));
}

function showLatency(said) {
  const { bins_ms: edges, counts, p50, p99, of } = said.latency;
  write("p50", ms(p50));
  write("p99", ms(p99));
  write("of", thousands(of));
  const [width, height, base, left] = [440, 126, 108, 6];
  const column = (width - 2 * left) / counts.length;
  const most = Math.max(...counts, 1);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}` });
  counts.forEach((n, i) => {
    const tall = n ? Math.max(n / most * (base - 40), 1.5) : 0;
    const bar = draw("rect", { class: "column", x: left + i * column + 1, width: column - 2,
      y: base - tall, height: tall, rx: 2 });
    bar.append(draw("title", {}, `${i ? edges[i - 1] : 0} to ${edges[i] ?? "more"} ms: ${n}`));
    svg.append(bar);
  });
  svg.append(draw("line", { class: "line", x1: left, x2: width - left, y1: base, y2: base }));
  edges.forEach((edge, i) => {
    if (i % 2 === 1) svg.append(draw("text", { x: left + (i + 1) * column, y: base + 16,
      "text-anchor": "middle" }, edge));
  });
  const place = value => { // bins are not equally wide: within one, in proportion
    const i = edges.findIndex(edge => value < edge);
    if (i < 0) return width - left - column / 2;
    const from = i ? edges[i - 1] : 0;
    return left + (i + (value - from) / (edges[i] - from)) * column;
  };
  const mark = (value, name, text, y, why) => {
    const x = place(value);
    const isRight = x > width - 110;
    const label = draw("text", { class: name === "limit" ? "limit-text" : "strong",
      x: x + (isRight ? -4 : 4), y, "text-anchor": isRight ? "end" : "start" }, text);
    if (why) label.append(draw("title", {}, why));
    svg.append(draw("line", { class: name, x1: x, x2: x, y1: y - 8, y2: base }), label);
  };
  const action = said.about.action;
  if (action) {
    const limit = 1000 * action.horizon / action.rate_hz / 2;
    mark(limit, "limit", `limit ${Math.round(limit)} ms`, 36,
      "with slower answers an asynchronous schedule runs out of actions");
  }
  if (p50 !== null) { mark(p50, "p50", "p50", 12); mark(p99, "p99", "p99", 25); }
  at("histogram").replaceChildren(svg);
  at("histogram").setAttribute("aria-label",
    `Histogram of answer times: half below ${ms(p50)}, 99 of 100 below ${ms(p99)}`);
}

// A chunk is in force from its answer to the next one, or to its last row. Of an open loop the first
// row belongs to the answer; the other schedules count from the question and skip what has passed.
function spans(chunks, action, isOpenLoop) {
  return chunks.map((chunk, i) => {
    const first = isOpenLoop ? chunk.t : chunk.t - (chunk.latency_ms ?? 0) / 1000;
    const last = first + chunk.actions.length / action.rate_hz;
    const end = Math.max(Math.min(last, chunks[i + 1]?.t ?? Infinity), chunk.t);
    return { chunk, first, last, start: chunk.t, end };
  });
}

function showTimeline() {
  const action = known.said.about.action ?? { horizon: 8, rate_hz: 20, low: -1, high: 1, size: 7 };
  const schedule = known.said.robots[known.robot]?.report.schedule;
  const isOpenLoop = !["Asynchronous", "Ensemble"].includes(schedule);
  const now = serverNow();
  const from = now - (WINDOW_S - AHEAD_S);
  const [left, width, top] = [64, 1240, 10];
  const lanes = [["move", 0, 3, 40], ["turn", 3, 6, 40], ["gripper", 6, 7, 18]];
  const height = top + lanes.reduce((sum, lane) => sum + lane[3] + 4, 0);
  const x = t => left + (t - from) / WINDOW_S * (width - left);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height + 18}` });
  const inside = draw("svg", { x: left, y: 0, width: width - left, height,
    viewBox: `${left} 0 ${width - left} ${height}` });
  const paths = { a: "", b: "", c: "", "a gone": "", "b gone": "", "c gone": "" };
  const shown = spans(known.chunks, action, isOpenLoop).filter(span => span.last > from);
  for (const { chunk, first, last, start, end } of shown) {
    const box = (name, a, b, extra) => inside.appendChild(draw("rect", { class: name, x: x(a),
      width: Math.max(x(b) - x(a), 0.5), y: top, height: height - top - 4, ...extra }));
    if (first < start) box("replaced", first, start);
    box("in-force", start, end).append(draw("title", {},
      `answered ${clock(chunk.t)} after ${ms(chunk.latency_ms)}`));
    if (end < last) box("replaced", end, last);
    box("thinking", chunk.t - (chunk.latency_ms ?? 0) / 1000, chunk.t, { y: 2, height: 4, rx: 2 });
    inside.append(draw("line", { class: "start", x1: x(start), x2: x(start), y1: top, y2: height - 4 }));
    let y = top;
    for (const [, from_, to, tall] of lanes) {
      for (let k = from_; k < Math.min(to, action.size); k++) {
        const path = (a, b) => chunk.actions.map((row, i) => {
          const s = Math.max(a, first + i / action.rate_hz);
          const e = Math.min(b, first + (i + 1) / action.rate_hz);
          if (e <= s) return "";
          const share = Math.min(Math.max((row[k] - action.low) / (action.high - action.low), 0), 1);
          const level = (y + tall - 2 - share * (tall - 4)).toFixed(1);
          return `${x(s).toFixed(1)},${level} ${x(e).toFixed(1)},${level} `;
        }).join("");
        const add = (name, points) => { if (points) paths[name] += `M${points}`; };
        const name = "abc"[k - from_];
        add(name, path(start, end));
        add(`${name} gone`, path(first, start));
        add(`${name} gone`, path(end, last));
      }
      y += tall + 4;
    }
  }
  for (const [name, d] of Object.entries(paths)) if (d) inside.append(draw("path", { class: name, d }));
  let y = top;
  for (const [name, , , tall] of lanes) {
    svg.append(draw("line", { class: "line", x1: left, x2: width, y1: y + tall / 2, y2: y + tall / 2 }),
      draw("text", { x: 0, y: y + tall / 2 + 4 }, name));
    y += tall + 4;
  }
  svg.append(inside);
  for (let s = Math.ceil(AHEAD_S - WINDOW_S); s <= 0; s++) {
    svg.append(draw("text", { x: x(now + s), y: height + 13, "text-anchor": "middle" },
      s ? `${s} s`.replace("-", "−") : "now"));
  }
  svg.append(draw("line", { class: "now", x1: x(now), x2: x(now), y1: 0, y2: height }));
  at("timeline").replaceChildren(svg);
  at("timeline").setAttribute("aria-label", `${shown.length} chunks in the last seconds`);
}

// ---- stopping: the one thing this page can do ----------------------------------------------------

async function press() {
  const answer = await fetch("/estop?by=live%20page&reason=stop%20button",
    { method: "POST", headers: { "X-Vega": "1" }, signal: AbortSignal.timeout(ANSWER_MS) });
  if (!answer.ok) throw new Error(`the server said ${answer.status}`);
  return answer;
}

// Asked again until the server has confirmed it: a stop that got lost is not a stop.
function stop() {
  if (pressing || known.said?.estop.pressed && document.body.dataset.connection === "live") return;
  const once = () => press().then(() => {
    clearInterval(pressing);
    pressing = null;
    at("estop").classList.remove("asking");
    showStop({ pressed: true, reason: known.said?.estop.reason || "asked for here" });
  }).catch(() => write("estop-note", "the server does not answer: use the robot's own button"));
  at("estop").classList.add("asking");
  at("estop").querySelector("b").textContent = "Stopping …";
  write("estop-note", "asked the server");
  pressing = setInterval(once, 400);
  once();
}

at("estop").addEventListener("click", stop);
// A space bar hit by chance, on a page that was clicked somewhere, is not meant; Enter and the mouse are.
at("estop").addEventListener("keydown", event => { if (event.key === " ") event.preventDefault(); });
at("estop").addEventListener("keyup", event => { if (event.key === " ") event.preventDefault(); });
at("gate").addEventListener("click", () => {
  if (at("gate").getAttribute("aria-disabled") === "true") return;
  isGateWanted = !isGateWanted;
  if (known.views) showViews(known.views);
});
const ramp = at("ramp").getContext("2d");
for (let i = 0; i < 256; i++) {
  ramp.fillStyle = `rgb(${colour(i / 255).join(" ")})`;
  ramp.fillRect(i, 0, 1, 1);
}
document.addEventListener("visibilitychange", judge);
setInterval(judge, 100);
ask();
