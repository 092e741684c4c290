"use strict";
// The report: what was found, from the verdict down to where the labels come from.
const RESULT = DATA.result, CARDS = DATA.cards;
const BY_NAME = Object.fromEntries(RESULT.checks.map((c) => [c.name, c]));
const percent = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(part && part < 0.01 * whole ? 1 : 0)} %` : "–");
const fixed = (value, digits) => value.toFixed(digits).replace(/^-(0\.0*)$/, "$1");
const isBad = (check, value) => (check.low ? value < check.limit : value > check.limit);

function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
function histogram(check) {
  const { low, high, counts } = check.histogram, width = 190, height = 40, most = Math.max(...counts, 1);
  const step = width / counts.length, root = svg("svg", { width, height: height + 12, role: "img" });
  counts.forEach((count, k) => {
    if (!count) return;
    // Red is what lies beyond the limit as a whole: the bin that the limit cuts holds values of both sides.
    const edge = low + ((check.low ? k + 1 : k) * (high - low)) / counts.length;
    const tall = Math.max(1.5, height * Math.sqrt(count / most));
    root.append(svg("rect", { x: k * step, y: height - tall, width: Math.max(1, step - 0.6), height: tall,
      fill: (check.low ? edge <= check.limit : edge >= check.limit) ? "#b91c1c" : "#64748b" }));
  });
  const at = Math.min(width - 1, Math.max(0, ((check.limit - low) / (high - low)) * width));
  root.append(svg("line", { x1: at, x2: at, y1: 0, y2: height, stroke: "#111", "stroke-dasharray": "3 2" }));
  const text = (x, anchor, value) => {
    const node = svg("text", { x, y: height + 11, "font-size": 10, fill: "#6b7280", "text-anchor": anchor });
    node.textContent = number(value);
    root.append(node);
  };
  text(0, "start", low);
  text(width, "end", high);
  root.append(svg("title", {}));
  root.lastChild.textContent = "root of counts; dashed: limit";
  return root;
}

function head() {
  $("title").textContent = `Label quality: ${RESULT.store}`;
  const s = RESULT.sample;
  const sample = s.all ? `all ${s.of} keyframes` : `${s.keyframes} of ${s.of} keyframes, drawn with seed ${s.seed}`;
  $("lead").textContent = `${RESULT.dataset}, ${s.scenes} scenes, ${RESULT.cameras.length} cameras. Pixels of ${sample} ` +
    `were read, and the tables of all; ${RESULT.seconds} s.`;
  const count = (state) => RESULT.checks.filter((c) => c.state === state).length;
  const words = { pass: "Nothing stands against training on these labels.",
    warn: "Usable; some images are beyond a limit.", fail: "Do not train on these labels before you have looked." };
  const failing = RESULT.checks.filter((c) => c.state === "fail").map((c) => c.title).join("; ");
  $("verdict").classList.add(RESULT.verdict);
  $("verdict").append(el("strong", {}, { pass: "Pass", warn: "Warnings", fail: "Fail" }[RESULT.verdict]),
    el("span", {}, words[RESULT.verdict], failing ? ` Failing: ${failing}.` : "",
      ` ${count("pass")} checks pass, ${count("warn")} warn, ${count("fail")} fail, ${count("none")} not measured.`));
  const more = RESULT.unreadable_count - RESULT.unreadable.length;
  if (more > 0) $("verdict").after(el("p", { class: "note" }, `${more} more keyframes could not be read.`));
  for (const line of RESULT.unreadable) $("verdict").after(el("p", { class: "note" }, `Could not be read: ${line}`));
}

function checks() {
  const order = { fail: 0, warn: 1, pass: 2, none: 3 };
  const rows = [...RESULT.checks].sort((a, b) => order[a.state] - order[b.state]).map((c) => el("tr",
    { class: "row", "data-check": c.name, tabindex: 0,
    onclick: () => { choose("check", c.name); if (chosen.check) $("gallery").scrollIntoView({ behavior: "smooth" }); },
    onkeydown: (event) => { if (event.key === "Enter") event.currentTarget.click(); } },
    el("td", {}, el("span", { class: `state ${c.state}` }, c.state)),
    el("td", {}, el("div", { class: "title" }, c.title),
      el("div", { class: "why" }, c.measures, c.state === "fail" || c.state === "warn" ? ` → ${c.meaning}` : "",
        c.bad_cameras.length ? ` Mostly bad: ${c.bad_cameras.map((k) => RESULT.cameras[k]).join(", ")}.` : "")),
    el("td", { class: "number", "data-label": "median" }, c.count ? `${number(c.value)} ${c.unit}` : "–"),
    el("td", { class: "number", "data-label": "limit" }, `${c.low ? "≥" : "≤"} ${number(c.limit)}`),
    el("td", { class: "number", "data-label": "beyond it" }, c.count ? `${number(c.bad)} of ${number(c.count)} (${percent(c.bad, c.count)})` : "not measured"),
    el("td", { class: "number", "data-label": "allowed" }, percent(c.share_allowed, 1)),
    el("td", {}, c.count ? histogram(c) : "")));
  const names = ["", "check", "median", "limit", "beyond it", "allowed", "distribution"];
  $("checks").append(el("thead", {}, el("tr", {}, ...names.map((n) => el("th", {}, n)))), el("tbody", {}, ...rows));
}

function residual() {
  const found = RESULT.static_residual, box = $("residual");
  if (!found.depth) { box.append(el("p", { class: "empty" }, "Needs LiDAR and flow: not measured.")); return; }
  const edges = found.depth_edges_m;
  const rows = found.depth.map(([count, u, v, length], k) => el("tr", {},
    el("td", {}, edges[k + 1] === null ? `over ${edges[k]} m` : `${edges[k]} to ${edges[k + 1]} m`),
    el("td", { class: "number" }, number(count)),
    ...[u, v, length].map((value) => el("td", { class: "number" }, count ? fixed(value, 2) : "–"))));
  box.append(el("div", {}, el("h3", {}, "Residual by depth, px"), el("table", {}, el("thead", {}, el("tr", {},
    ...["depth", "points", "median u", "median v", "mean length"].map((n) => el("th", {}, n)))), el("tbody", {}, ...rows))));
  const most = Math.max(...found.region.map((r) => r[3]), 1e-6);
  box.append(el("div", {}, el("h3", {}, "By image region: median u, v; mean length, px"), el("div", { class: "regions" },
    ...found.region.map(([count, u, v, length]) => el("div",
      { style: `background: rgba(185, 28, 28, ${count ? (0.35 * length) / most : 0})`, title: `${count} points` },
      count ? `${fixed(u, 2)}, ${fixed(v, 2)}; ${fixed(length, 2)}` : "–")))));
  const motions = Object.entries(found.camera_motion).map(([camera, m]) => el("tr", {},
    el("td", {}, camera === "-1" ? "all cameras" : RESULT.cameras[camera]),
    el("td", { class: "number" }, m.metres.map((x) => fixed(x, 3)).join(", ")),
    el("td", { class: "number" }, m.degrees.map((x) => fixed(x, 3)).join(", "))));
  box.append(el("div", {}, el("h3", {}, "Camera motion that would explain it (median; x forward, y left, z up)"),
    el("table", {}, el("thead", {}, el("tr", {}, ...["camera", "metres", "degrees"].map((n) => el("th", {}, n)))),
      el("tbody", {}, ...motions))));
}

function against() {
  const other = RESULT.against;
  if (!other) return;
  $("against").hidden = false;
  const badge = (c) => (c.worse ? ["fail", "worse"] : c.newly_bad.count ? ["warn", "newly bad"] : c.better ? ["pass", "better"] : ["none", "same"]);
  const place = (f) => (f.t < 0 ? f.scene : `${f.scene}:${f.t}`);
  const row = (c) => el("tr", {},
    el("td", {}, el("span", { class: `state ${badge(c)[0]}` }, badge(c)[1])),
    el("td", { class: "title" }, c.title),
    el("td", { class: "number" }, `${number(c.other)} → ${number(c.own)} ${c.unit}`),
    el("td", { class: "number" }, `${number(c.median_difference)} [${number(c.low)}, ${number(c.high)}]`),
    el("td", { class: "number" }, number(c.pairs)),
    el("td", { class: "number" }, `${c.newly_bad.count} newly bad, ${c.newly_good} repaired`),
    el("td", { class: "why" }, c.newly_bad.frames.slice(0, 6).map(place).join(", ")));
  const names = ["", "check", "median, other → this", "paired difference (95 %)", "pairs", "values", "worst of them"];
  const table = (found) => el("table", {}, el("thead", {}, el("tr", {}, ...names.map((n) => el("th", {}, n)))),
    el("tbody", {}, ...found.map(row)));
  const same = other.checks.filter((c) => badge(c)[0] === "none"), changed = other.checks.filter((c) => badge(c)[0] !== "none");
  $("against").children[1].append(el("p", { class: "lead" }, `Other: ${other.store}; ${other.keyframes} common keyframes.` +
    (other.unreadable ? ` ${other.unreadable} more could not be read.` : "") + oneSided(other.cameras_not_compared)),
    changed.length ? table(changed) : el("p", { class: "empty" }, "No check changed."),
    el("details", {}, el("summary", {}, `${same.length} checks did not change`), table(same)));
  if (DATA.pairs.length) $("pairs").append(el("h3", {}, "Side by side: what moved farthest to its bad side, other store left, this one right"),
    ...DATA.pairs.map(pair));
}
function oneSided(cameras) {
  if (!cameras) return "";
  const told = [[cameras.own, "this store"], [cameras.other, "the other"]].filter(([names]) => names.length);
  return told.map(([names, store]) => ` Not compared: ${names.join(", ")}, which only ${store} has.`).join("");
}
function pair(one) {
  const check = BY_NAME[one.check];
  const side = (title, pictures, value, command) => {
    const shown = (pictures || {})[one.layer] ? one.layer : "image", source = (pictures || {})[shown];
    const copy = el("button", { class: "copy", onclick: () => copyText(command, copy) }, "copy");
    return el("div", {}, el("div", { class: "stack" }, source ? el("img", { src: source, alt: shown }) :
      el("span", { class: "tag" }, one.error || "no picture here"), el("p", {}, `${title}: ${shown}`)),
      el("div", { class: "values" }, el("span", { class: isBad(check, value) ? "bad" : "" },
        `${check.title} ${number(value)} ${check.unit}`)),
      el("div", { class: "command" }, el("code", { title: command }, command), copy));
  };
  return el("div", { class: "pair" }, el("header", {}, el("b", {}, `${one.scene} · ${one.t} · ${one.camera}`),
    el("span", { class: "tag" }, `${check.title}: ${number(one.other)} → ${number(one.own)} ${check.unit}`)),
    side("other", one.other_pictures, one.other, one.other_command), side("this", one.pictures, one.own, one.command));
}

function bars(title, found, unit) {
  const width = 300, height = 70, most = Math.max(...found.counts, 1), step = width / found.counts.length;
  const root = svg("svg", { width, height: height + 14, role: "img" });
  found.counts.forEach((count, k) => root.append(svg("rect", { x: k * step, y: height - (height * count) / most,
    width: Math.max(1, step - 0.5), height: (height * count) / most, fill: "#64748b" })));
  [[0, "start", found.low], [width / 2, "middle", (found.low + found.high) / 2], [width, "end", found.high]].forEach(([x, anchor, value], k) => {
    const node = svg("text", { x, y: height + 12, "font-size": 10, fill: "#6b7280", "text-anchor": anchor });
    node.textContent = found.ends ? found.ends[k] : `${number(value)} ${unit}`;
    root.append(node);
  });
  return el("div", {}, el("h3", {}, title), root);
}
function birdseye(density) {
  const rows = density.per_m2, n = rows.length, size = 6, most = Math.max(...rows.flat(), 1e-9);
  const root = svg("svg", { width: n * size, height: n * size, role: "img" });
  // x is forward: up on the page; y is to the left.
  rows.forEach((row, x) => row.forEach((value, y) => {
    const share = value ? 0.08 + 0.92 * Math.log1p((1000 * value) / most) / Math.log1p(1000) : 0;
    const cell = svg("rect", { x: (n - 1 - y) * size, y: (n - 1 - x) * size, width: size, height: size,
      fill: value ? `rgba(29, 78, 216, ${share})` : "#f1f5f9" });
    cell.append(svg("title", {}));
    cell.lastChild.textContent = `${number(value)} points per m² and sweep`;
    root.append(cell);
  }));
  root.append(svg("path", { d: `M ${(n * size) / 2} ${(n * size) / 2 - 6} l 4 10 h -8 z`, fill: "#b91c1c" }));
  return el("div", {}, el("h3", {}, `From above: points per m², ±${(n * density.cell_m) / 2} m, forward is up; red: the car`), root);
}
function masks() {
  const found = RESULT.masks, box = $("masks-seen").lastElementChild;
  if (!found) { box.append(el("p", { class: "empty" }, "No image in the sample has the cue: not measured.")); return; }
  const rows = found.classes.map((c) => el("tr", {}, el("td", {}, c.class), el("td", { class: "number" }, number(c.instances)),
    el("td", { class: "number" }, number(c.per_image)), el("td", { class: "number" }, percent(c.mean_area, 1)),
    el("td", {}, spark(c.over_time.filter((_, k) => found.images_over_time[k])))));
  const names = ["class", "masks", "per image", "mean area", "per image, start to end of a scene"];
  box.append(el("div", {}, el("h3", {}, `${number(found.images)} images`), el("table", {}, el("thead", {}, el("tr", {},
    ...names.map((n) => el("th", {}, n)))), el("tbody", {}, ...rows))));
  if (!rows.length) box.append(el("p", { class: "empty" }, "No mask in any of them."));
  else box.append(bars("Area, share of the image", { ...found.area_log10, ends: ["0.001 %", "0.3 %", "100 %"] }, ""), bars("Score", found.score, ""));
}
function spark(values) {
  const width = 190, height = 30, most = Math.max(...values, 1e-9), step = width / values.length;
  const root = svg("svg", { width, height, role: "img" });
  values.forEach((value, k) => root.append(svg("rect", { x: k * step, y: height - (height * value) / most,
    width: step - 1, height: (height * value) / most, fill: "#64748b" })));
  root.append(svg("title", {}));
  root.lastChild.textContent = `up to ${number(most)} per image`;
  return root;
}
function truth() {
  const found = RESULT.against_truth, box = $("truth").lastElementChild;
  if (!found) return;
  $("truth").hidden = false;
  const words = { epe: ["end-point error", "px"], zero_epe: ["that of zero flow", "px"], fl_all: ["Fl-all", "share"],
    epe_moving: ["end-point error where things move", "px"], zero_epe_moving: ["that of zero flow there", "px"],
    coverage: ["true flow that the cue covers", "share"], coverage_moving: ["the same where things move", "share"],
    invented: ["flow where there is none", "share"], iou: ["IoU with all that moves", "share"],
    precision: ["precision, pixels", "share"], recall: ["recall, pixels", "share"],
    instance_recall: ["recall, instances", "share"], instance_precision: ["precision, instances", "share"] };
  const table = (title, rows) => el("div", {}, el("h3", {}, title), el("table", {}, el("thead", {}, el("tr", {},
    ...["", "value", title === "Masks of what moves" ? "pixels or instances" : "pixels"].map((n) => el("th", {}, n)))), el("tbody", {}, ...rows.map(([name, one, unit]) =>
    el("tr", {}, el("td", {}, name), el("td", { class: "number" }, one.count ? `${number(one.value)} ${unit}` : "–"),
      el("td", { class: "number" }, number(one.count)))))));
  const named = (figures) => Object.keys(words).filter((name) => name in figures).map((name) => [words[name][0], figures[name], words[name][1]]);
  const edges = RESULT.static_residual.depth_edges_m;
  const depth = (one, k) => [edges[k + 1] === null ? `over ${edges[k]} m` : `${edges[k]} to ${edges[k + 1]} m`, one, "px"];
  if (found.flow) box.append(table("Flow", named(found.flow)), table("End-point error by true depth", found.epe_by_depth.map(depth)));
  if (found.masks) {
    box.append(table("Masks of what moves", named(found.masks)), table("Their pixels that move, by class",
      Object.entries(found.precision_by_class).map(([name, one]) => [name, one, "share"])));
  }
}
function lidar() {
  const found = RESULT.lidar, box = $("lidar").lastElementChild;
  if (!found) { box.append(el("p", { class: "empty" }, "No sweep in the sample: not measured.")); return; }
  const h = found.histograms, share = (x) => (x === null ? "not recorded" : `${number(100 * x)} %`);
  box.append(bars("Range of the points", h.range_m, "m"), bars("Elevation", h.elevation_deg, "°"),
    bars("Azimuth (0: ahead, 90: left)", h.azimuth_deg, "°"), birdseye(found.density));
  const rows = [["points per sweep", number(Math.round(found.points_per_sweep))],
    ["dropped by extraction: own car", share(found.own_car_share)], ["not finite", share(found.not_finite_share)],
    ["seen by no camera", share(found.unseen_share)]];
  box.append(el("div", {}, el("h3", {}, `${number(found.sweeps)} sweeps`), el("table", {}, el("tbody", {},
    ...rows.map(([name, value]) => el("tr", {}, el("td", {}, name), el("td", { class: "number" }, value)))))));
}

function coverage() {
  const found = RESULT.coverage;
  $("coverage").append(el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, "scene"),
    ...found.cues.map((c) => el("th", {}, c)))), el("tbody", {}, ...found.scenes.map((row) => el("tr", {},
    el("td", {}, row.scene), ...found.cues.map((c) => el("td", {}, el("span", { class: `state ${row[c]}` }, row[c]))))))));
  if (found.scenes_left_out) $("coverage").append(el("p", {}, `and ${found.scenes_left_out} more, see occflow status`));
}
function provenance() {
  const keys = ["cue", "licence", "weights_digest", "config_digest", "configurations", "code_version", "units"];
  $("provenance").append(el("table", {}, el("thead", {}, el("tr", {}, ...keys.map((k) => el("th", {}, k)))),
    el("tbody", {}, ...RESULT.provenance.map((row) => el("tr", {}, ...keys.map((k) =>
      el("td", {}, k.endsWith("digest") ? String(row[k]).slice(0, 12) || "–" : row[k])))))));
}
