"use strict";
// Everything shown is set as text, never as markup: names come from users.
const content = JSON.parse(document.getElementById("content").textContent);
// Told apart in colour blindness (M. Okabe, K. Ito, "Color Universal Design", 2008).
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"];
const SHAPES = { decode: "#0072B2", prefill: "#D55E00" };
const CAUSES = ["static", "busy", "compute", "hbm", "kv", "link", "host"];
const WORDS = {
  static: "static power", busy: "busy floor", compute: "arithmetic", hbm: "HBM: weights, activations",
  kv: "HBM: KV cache", link: "communication", host: "rest of the server",
};
const DEGREES = { tensor_parallel: "TP", expert_parallel: "EP", pipeline_parallel: "PP", data_parallel: "DP" };

// ---- words and numbers -------------------------------------------------------------
function digits(value, count = 3) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  return String(Number(value.toPrecision(count)));
}
const milliseconds = (seconds) => `${digits(seconds * 1e3)} ms`;
const percent = (share) => `${share > 0 ? "+" : ""}${(100 * share).toFixed(Math.abs(share) < 0.0995 ? 1 : 0)} %`;
const words = (name) => name.replaceAll("_", " ");
function layout(row) {
  const split = Object.entries(DEGREES).filter(([name]) => row[name] > 1);
  return split.map(([name, short]) => `${short}${digits(row[name])}`).join(" ") || "TP1";
}
function describe(row) {
  return `${digits(row.gpus)} × ${row.gpu}, ${layout(row)}, batch ${digits(row.batch)}, ${clock(row.clock_hz)}`;
}
const clock = (hertz) => (hertz > 1e11 ? "any clock" : `${Math.round(hertz * 1e-6)} MHz`);

// ---- elements ----------------------------------------------------------------------
function element(name, attributes = {}, text = null, parent = null) {
  const svg = parent instanceof SVGElement || name === "svg";
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}
const at = (id) => document.getElementById(id);
function table(parent, heads, rows) {
  parent.replaceChildren();
  const made = element("table", {}, null, parent);
  const top = element("tr", {}, null, element("thead", {}, null, made));
  for (const head of heads) element("th", { scope: "col" }, head, top);
  const body = element("tbody", {}, null, made);
  for (const cells of rows) {
    const row = element("tr", {}, null, body);
    for (const cell of cells) {
      const [text, kind] = Array.isArray(cell) ? cell : [cell, ""];
      element("td", kind ? { class: kind } : {}, text, row);
    }
  }
}
function legend(parent, entries) {
  for (const [label, colour] of entries) {
    const entry = element("span", {}, null, parent);
    element("i", { style: `background:${colour}` }, null, entry);
    entry.append(label);
  }
}
const tooltip = at("tooltip");
function tell(event, text) {
  tooltip.textContent = text;
  tooltip.hidden = false;
  const box = tooltip.getBoundingClientRect();
  const where = event.clientX === undefined ? event.target.getBoundingClientRect() : null;
  const x = where ? where.right : event.clientX, y = where ? where.bottom : event.clientY;
  tooltip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - box.width - 8))}px`;
  tooltip.style.top = `${Math.max(4, Math.min(y + 14, innerHeight - box.height - 8))}px`;
}
const hush = () => { tooltip.hidden = true; };
function explained(mark, text) {
  mark.addEventListener("pointermove", (event) => tell(event, text));
  mark.addEventListener("pointerleave", hush);
}

// ---- axes --------------------------------------------------------------------------
function logarithmic(values, from, to) {
  let low = Math.min(...values), high = Math.max(...values);
  const room = Math.max(0.04 * Math.log(high / low), 0.02);
  low *= Math.exp(-room); high *= Math.exp(room);
  const scale = (value) => from + ((Math.log(value / low)) / Math.log(high / low)) * (to - from);
  scale.inverse = (place) => low * Math.exp(((place - from) / (to - from)) * Math.log(high / low));
  scale.ticks = ticks(low, high);
  return scale;
}
function ticks(low, high) {
  for (const steps of [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 5, 7], [1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9]]) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1)
      for (const step of steps) {
        const value = step * 10 ** power;
        if (value >= low && value <= high) found.push(value);
      }
    if (found.length >= 4) return found;
  }
  return [low, high];
}
function axes(svg, box, x, y, labels, format) {
  for (const value of x.ticks) {
    element("line", { class: "grid", x1: x(value), x2: x(value), y1: box.top, y2: box.bottom }, null, svg);
    element("text", { x: x(value), y: box.bottom + 17, "text-anchor": "middle" }, format.x(value), svg);
  }
  for (const value of y.ticks) {
    element("line", { class: "grid", x1: box.left, x2: box.right, y1: y(value), y2: y(value) }, null, svg);
    element("text", { x: box.left - 7, y: y(value) + 4, "text-anchor": "end" }, format.y(value), svg);
  }
  element("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }, null, svg);
  element("line", { class: "axis", x1: box.left, x2: box.left, y1: box.top, y2: box.bottom }, null, svg);
  element("text", { x: (box.left + box.right) / 2, y: box.bottom + 36, "text-anchor": "middle" }, labels.x, svg);
  element("text", { transform: `translate(16 ${(box.top + box.bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, labels.y, svg);
}

// ---- the cloud and its front -------------------------------------------------------
const points = content.points.map((values) => {
  const point = Object.fromEntries(content.columns.map((name, index) => [name, values[index]]));
  point.colour = COLOURS[point.gpu % COLOURS.length];
  point.gpu = content.gpus[point.gpu];
  return point;
});
function drawFront() {
  const svg = at("front"), box = { left: 70, right: 1060, top: 14, bottom: 430 };
  svg.setAttribute("viewBox", "0 0 1080 480");
  const x = logarithmic(points.map((point) => point.seconds_per_output_token), box.left, box.right);
  const y = logarithmic(points.map((point) => point.joules_per_output_token), box.bottom, box.top);
  axes(svg, box, x, y, { x: "time per output token (ms)", y: "joules per output token" },
    { x: (value) => digits(value * 1e3), y: (value) => digits(value) });
  const line = content.front.map((index) => points[index]);
  element("polyline", { points: line.map((point) => `${x(point.seconds_per_output_token)},${y(point.joules_per_output_token)}`).join(" "),
    fill: "none", stroke: "currentColor", "stroke-width": 1.2, opacity: 0.6 }, null, svg);
  const onFront = new Set(content.front);
  const marks = points.map((point, index) => {
    const best = onFront.has(index);
    const attributes = { class: "dot", cx: x(point.seconds_per_output_token), cy: y(point.joules_per_output_token),
      r: best ? 5 : 2.6, fill: point.colour, "fill-opacity": best ? 1 : 0.45 };
    if (best) Object.assign(attributes, { tabindex: 0, role: "button", "aria-label": summary(point) });
    const mark = element("circle", attributes, null, svg);
    mark.dataset.index = index;
    return mark;
  });
  for (const index of content.front) svg.append(marks[index]); // above the cloud
  legend(at("legend"), content.gpus.map((name, index) => [name, COLOURS[index % COLOURS.length]]));
  interact(svg, marks, x, y, box);
}
function summary(point) {
  return `${describe(point)}\n${digits(point.joules_per_output_token)} J/token, ${milliseconds(point.seconds_per_output_token)} per token, ` +
    `first token ${milliseconds(point.seconds_prefill)}\n${digits(point.output_tokens_per_second_per_gpu)} tokens/s and ${digits(point.watts_per_gpu)} W per GPU`;
}
function interact(svg, marks, x, y, box) {
  let start = null, brush = null;
  const place = (event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    return [Math.min(box.right, Math.max(box.left, point.x)), Math.min(box.bottom, Math.max(box.top, point.y))];
  };
  const found = (event) => event.target.dataset && event.target.dataset.index !== undefined ? Number(event.target.dataset.index) : null;
  const choose = (index) => {
    marks.forEach((mark, other) => mark.classList.toggle("chosen", other === index));
    show(points[index]);
  };
  svg.addEventListener("pointermove", (event) => {
    if (start) { stretch(place(event)); return; }
    const index = found(event);
    if (index === null) hush(); else tell(event, summary(points[index]));
  });
  svg.addEventListener("pointerleave", hush);
  svg.addEventListener("focusin", (event) => { const index = found(event); if (index !== null) tell(event, summary(points[index])); });
  svg.addEventListener("focusout", hush);
  svg.addEventListener("keydown", (event) => {
    const index = found(event);
    if (index !== null && (event.key === "Enter" || event.key === " ")) { event.preventDefault(); choose(index); }
  });
  svg.addEventListener("pointerdown", (event) => { if (event.button === 0) { start = place(event); event.preventDefault(); } });
  addEventListener("pointerup", (event) => {
    if (!start) return;
    const end = place(event), moved = Math.hypot(end[0] - start[0], end[1] - start[1]) > 5;
    const index = found(event);
    if (moved) select(start, end); else if (index !== null) choose(index); else clear();
    start = null;
  });
  addEventListener("keydown", (event) => { if (event.key === "Escape") clear(); });
  function stretch(end) {
    brush ??= element("rect", { class: "brush" }, null, svg);
    const left = Math.min(start[0], end[0]), top = Math.min(start[1], end[1]);
    for (const [name, value] of Object.entries({ x: left, y: top, width: Math.abs(end[0] - start[0]), height: Math.abs(end[1] - start[1]) }))
      brush.setAttribute(name, value);
  }
  function select(a, b) {
    stretch(b);
    const inside = (value, scale, axis) => scale(value) >= Math.min(a[axis], b[axis]) && scale(value) <= Math.max(a[axis], b[axis]);
    const chosen = points.filter((point, index) => {
      const within = inside(point.seconds_per_output_token, x, 0) && inside(point.joules_per_output_token, y, 1);
      marks[index].classList.toggle("outside", !within);
      return within;
    });
    list(chosen, `Best of the ${chosen.length.toLocaleString("en-US")} brushed`);
  }
  function clear() {
    if (brush) { brush.remove(); brush = null; }
    marks.forEach((mark) => mark.classList.remove("outside", "chosen"));
    at("selected").replaceChildren("Nothing yet.");
    list(points, "Best of all that are shown");
  }
  list(points, "Best of all that are shown");
}
function show(point) {
  const parent = at("selected");
  parent.replaceChildren();
  const made = element("dl", {}, null, parent);
  const lines = {
    GPUs: `${digits(point.gpus)} × ${point.gpu}`, layout: layout(point), batch: digits(point.batch), clock: clock(point.clock_hz),
    "J per output token": digits(point.joules_per_output_token), "time per token": milliseconds(point.seconds_per_output_token),
    "first token": milliseconds(point.seconds_prefill), "tokens/s per GPU": digits(point.output_tokens_per_second_per_gpu),
    "W per GPU": digits(point.watts_per_gpu),
  };
  for (const [term, value] of Object.entries(lines)) {
    element("dt", {}, term, made);
    element("dd", {}, value, made);
  }
}
function list(chosen, heading) {
  at("brushed-heading").textContent = heading;
  const best = [...chosen].sort((a, b) => a.joules_per_output_token - b.joules_per_output_token).slice(0, 8);
  table(at("brushed"), ["deployment", "J/token", "ms/token", "TTFT ms", "W/GPU"], best.map((point) => [
    describe(point), digits(point.joules_per_output_token), digits(point.seconds_per_output_token * 1e3),
    digits(point.seconds_prefill * 1e3), digits(point.watts_per_gpu)]));
}

// ---- answer, recommendations, what if ----------------------------------------------
function interval(row, name, scale = 1) {
  const range = row[`${name}_interval`];
  return range ? `${digits(range[0] * scale)} – ${digits(range[1] * scale)}` : "–";
}
function drawAnswer() {
  const asked = content.question, load = asked.workload, best = content.recommended[0];
  at("title").textContent = content.title;
  const limits = Object.entries(asked.limits).map(([name, value]) =>
    name.endsWith("_seconds") ? `${words(name.slice(0, -8)).toUpperCase()} up to ${milliseconds(value)}` : `${words(name)} ${digits(value)}`);
  at("question").textContent = `${asked.model} under ${asked.stack}: prompts of ${digits(load.prompt_tokens)} and outputs of ` +
    `${digits(load.output_tokens)} tokens; ${limits.join(", ") || "no limits on latency"}; least ${words(asked.objective)}. ` +
    `${asked.deployments.toLocaleString("en-US")} deployments compared, ${asked.feasible.toLocaleString("en-US")} within limits.`;
  at("answer").textContent = `${describe(best)}${best.binds.length ? `, held by ${best.binds.join(" and ")}` : ""}.`;
  const tiles = [
    ["energy per output token", `${digits(best.joules_per_output_token)} J`, interval(best, "joules_per_output_token")],
    ["time per output token", milliseconds(best.seconds_per_output_token), interval(best, "seconds_per_output_token", 1e3)],
    ["first token, bare prefill", milliseconds(best.seconds_prefill), ""],
    ["output tokens per second", digits(best.output_tokens_per_second), ""],
    ["power per GPU", `${digits(best.watts_per_gpu)} W`, ""],
  ];
  for (const [name, value, range] of tiles) {
    const tile = element("div", { class: "tile" }, null, at("tiles"));
    element("small", {}, name, tile);
    element("b", {}, value, tile);
    if (range && range !== "–") element("small", {}, `80 %: ${range}`, tile);
  }
}
function drawRecommended() {
  table(at("recommended"),
    ["GPUs", "layout", "batch", "clock", "J/token", "80 %", "ms/token", "80 %", "TTFT ms", "tokens/s", "W/GPU", "held by"],
    content.recommended.map((row) => [
      `${row.gpus} × ${row.gpu}`, [layout(row), "words"], digits(row.batch), clock(row.clock_hz),
      digits(row.joules_per_output_token), interval(row, "joules_per_output_token"),
      digits(row.seconds_per_output_token * 1e3), interval(row, "seconds_per_output_token", 1e3),
      digits(row.seconds_prefill * 1e3), digits(row.output_tokens_per_second), digits(row.watts_per_gpu),
      [row.binds.join(", ") || "nothing", "words"]]));
}
function drawWhatIf() {
  const base = content.what_ifs[0];
  const cell = (row, name, scale, higher) => {
    if (row[name] === undefined) return "";
    const change = row[name] / base[name] - 1, text = digits(row[name] * scale);
    if (row === base || Math.abs(change) < 5e-4) return text;
    return [`${text} (${percent(change)})`, (change > 0) === higher ? "good" : "bad"];
  };
  table(at("what-if"), ["change", "J/token", "ms/token", "TTFT ms", "tokens/s", "W/GPU", ""], content.what_ifs.map((row) => [
    row.change, cell(row, "joules_per_output_token", 1, false), cell(row, "seconds_per_output_token", 1e3, false),
    cell(row, "seconds_prefill", 1e3, false), cell(row, "output_tokens_per_second", 1, true), cell(row, "watts_per_gpu", 1, false),
    [row.problem, "words bad"]]));
}

// ---- causes, roofline, tornado -----------------------------------------------------
function drawCauses() {
  const svg = at("causes"), rows = content.recommended, height = 34;
  const causes = rows.map((row) => row.breakdown.joules_per_output_token_by_cause);
  const totals = causes.map((cause) => Object.values(cause).reduce((sum, value) => sum + value, 0));
  const used = CAUSES.filter((name) => causes.some((cause) => cause[name] > 0));
  const colours = Object.fromEntries(CAUSES.map((name, index) => [name, [...COLOURS, "#8a8f98"][index]]));
  svg.setAttribute("viewBox", `0 0 1080 ${rows.length * height + 10}`);
  const scale = 700 / Math.max(...totals);
  rows.forEach((row, index) => {
    const top = index * height + 6;
    element("text", { x: 232, y: top + 16, "text-anchor": "end" }, `${row.gpus} × ${row.gpu} ${layout(row)}`, svg);
    let left = 240;
    for (const name of used) {
      const width = (causes[index][name] ?? 0) * scale;
      const bar = element("rect", { x: left, y: top, width: Math.max(0, width - 1), height: height - 12, fill: colours[name] }, null, svg);
      explained(bar, `${WORDS[name]}: ${digits(causes[index][name])} J per output token, ${(100 * causes[index][name] / totals[index]).toFixed(0)} %`);
      left += width;
    }
    element("text", { x: left + 6, y: top + 16 }, `${digits(totals[index])} J`, svg);
  });
  legend(at("causes-legend"), used.map((name) => [WORDS[name], colours[name]]));
}
function drawRoofline() {
  const svg = at("roofline"), box = { left: 70, right: 1060, top: 14, bottom: 390 };
  svg.setAttribute("viewBox", "0 0 1080 440");
  const { roofs, operations } = content.roofline;
  const peaks = Object.entries(roofs).filter(([name]) => name !== "HBM");
  const highest = Math.max(...peaks.map(([, peak]) => peak));
  const ridges = peaks.map(([, peak]) => peak / roofs.HBM);
  const x = logarithmic([...operations.map((operation) => operation.flop_per_byte), ...ridges.map((ridge) => 2 * ridge)], box.left, box.right);
  const y = logarithmic([...operations.map((operation) => operation.flop_per_s), highest * 1.2], box.bottom, box.top);
  axes(svg, box, x, y, { x: "FLOP per byte of HBM traffic", y: "TFLOP/s per GPU" }, { x: digits, y: (value) => digits(value * 1e-12) });
  for (const [name, peak] of peaks) {
    const ridge = Math.max(peak / roofs.HBM, x.inverse(box.left));
    const foot = Math.max(x.inverse(box.left), y.inverse(box.bottom) / roofs.HBM);
    element("polyline", { points: `${x(foot)},${y(foot * roofs.HBM)} ${x(ridge)},${y(peak)} ${box.right},${y(peak)}`, fill: "none", stroke: "currentColor", opacity: 0.7 }, null, svg);
    element("text", { class: "small", x: box.right - 4, y: y(peak) - 5, "text-anchor": "end" }, name, svg);
  }
  const slowest = Math.max(...operations.map((operation) => operation.seconds));
  for (const operation of operations) {
    const dot = element("circle", { cx: x(operation.flop_per_byte), cy: y(operation.flop_per_s), r: 3 + 9 * Math.sqrt(operation.seconds / slowest),
      fill: SHAPES[operation.phase], "fill-opacity": 0.65 }, null, svg);
    explained(dot, `${operation.name} (${operation.phase})\n${digits(operation.flop_per_byte)} FLOP/byte, ${digits(operation.flop_per_s * 1e-12)} TFLOP/s\n` +
      `${digits(operation.seconds * 1e3)} ms, ${(100 * operation.flop_per_s / Math.min(operation.peak_flop_per_s, operation.flop_per_byte * roofs.HBM)).toFixed(0)} % of its roof`);
  }
  legend(at("roofline-legend"), Object.entries(SHAPES));
}
function drawTornado() {
  const svg = at("tornado"), rows = content.tornado, height = 24, middle = 640;
  svg.setAttribute("viewBox", `0 0 1080 ${rows.length * height + 30}`);
  const widest = Math.max(...rows.flatMap((row) => [Math.abs(row.more), Math.abs(row.less)]));
  rows.forEach((row, index) => {
    const top = index * height + 4;
    element("text", { x: 292, y: top + 13, "text-anchor": "end" }, words(row.input.replace(/^[a-z]+\./, "")), svg);
    element("text", { class: "small", x: 300, y: top + 13 }, row.origin, svg);
    for (const [name, colour] of [["more", COLOURS[0]], ["less", COLOURS[5]]]) {
      const width = (Math.abs(row[name]) / widest) * 240;
      const bar = element("rect", { x: row[name] < 0 ? middle - width : middle, y: top, width, height: height - 8, fill: colour }, null, svg);
      explained(bar, `${words(row.input)} a tenth ${name}: ${percent(row[name])} joules per output token`);
      const left = row[name] < 0;
      element("text", { class: "small", x: left ? middle - width - 5 : middle + width + 5, y: top + 12, "text-anchor": left ? "end" : "start" }, percent(row[name]), svg);
    }
  });
  element("line", { class: "axis", x1: middle, x2: middle, y1: 0, y2: rows.length * height }, null, svg);
  element("text", { x: middle, y: rows.length * height + 20, "text-anchor": "middle" }, "blue: a tenth more, orange: a tenth less", svg);
}

// ---- commands, basis ---------------------------------------------------------------
function drawCommands() {
  for (const [name, text] of Object.entries(content.commands)) {
    at("run").hidden = false;
    const head = element("h3", {}, `${name} `, at("commands"));
    const block = element("pre", {}, text, at("commands"));
    const button = element("button", { type: "button" }, "copy", head);
    button.addEventListener("click", async () => {
      try { await navigator.clipboard.writeText(text); button.textContent = "copied"; }
      catch { getSelection().selectAllChildren(block); button.textContent = "selected"; }
    });
  }
}
function drawBasis() {
  const parent = at("basis"), shown = new Set();
  for (const row of content.recommended) {
    const basis = row.provenance, key = `${basis.chip} ${basis.stack}`;
    if (shown.has(key)) continue;
    shown.add(key);
    element("h3", {}, `${basis.chip} under ${basis.stack}`, parent);
    const origin = Object.entries(basis.coefficients).map(([name, list]) => `${list.length} ${name}`).join(", ");
    element("p", {}, basis.calibrated ? `Calibrated on ${basis.fitted_rows} measured runs (${basis.fitted_on.join(", ")}). Coefficients: ${origin}.`
      : `Not calibrated on measurements. Coefficients: ${origin}.`, parent);
    const notes = element("ul", {}, null, parent);
    for (const note of basis.notes) element("li", {}, note, notes);
  }
  const reasons = Object.entries(content.question.infeasible_by_reason).filter(([, count]) => count > 0)
    .map(([name, count]) => `${words(name)} ${count.toLocaleString("en-US")}`);
  if (reasons.length) element("p", {}, `Ruled out, some by several limits: ${reasons.join(", ")}.`, parent);
  element("p", {}, "Time to first token is that of one bare prefill, without queueing, unless a limit says otherwise. Energy is that of the GPUs unless the rest of the server is named.", parent);
  at("made").textContent = `jaxlens ${content.version}, ${content.created}`;
}

drawAnswer();
drawFront();
drawRecommended();
drawWhatIf();
drawCauses();
drawRoofline();
drawTornado();
drawCommands();
drawBasis();
