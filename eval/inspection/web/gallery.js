"use strict";
// The cards, their filters, and what a check found bad. A card is a picture with values; layers A and B are shared by
// all cards, the slider swipes between them.
const chosen = { why: "", check: "", scene: "", camera: "", class: "", bad: false, a: "", b: "", swipe: 50 };
let current = -1;

function choose(name, value) {
  chosen[name] = chosen[name] === value && name === "check" ? "" : value;
  const input = document.querySelector(`[data-filter="${name}"]`);
  if (input) input.value = chosen[name];
  document.querySelectorAll("#checks tr.row").forEach((row) =>
    row.classList.toggle("chosen", row.dataset.check === chosen.check));
  affected();
  draw();
}
function quoted(word) { return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`; }
function affected() {
  // Where the chosen check is beyond its limit, worst first: a link when served, else the command that opens it.
  const check = BY_NAME[chosen.check], box = $("affected");
  box.hidden = !check || !check.bad;
  if (box.hidden) return;
  const rows = check.worst.filter((one) => isBad(check, one.value));
  const entry = (one) => {
    const camera = one.camera >= 0 ? RESULT.cameras[one.camera] : "";
    const place = [one.scene, one.t >= 0 ? one.t : "", camera].filter((part) => part !== "").join(" · ");
    const text = `${place}: ${number(one.value)}`;
    if (!one.scene) return el("li", {}, text);
    const t = Math.max(0, one.t);
    if (DATA.served) return el("li", {}, el("a", { href: browseAt(one.scene, t, camera) }, text));
    const words = ["occflow", "inspect", RESULT.store, "--scene", one.scene, "--frame", String(t)];
    const command = words.concat(camera ? ["--camera", camera] : []).map(quoted).join(" ");
    const line = el("li", { class: "command" }, el("code", { title: command }, text));
    line.append(el("button", { class: "copy", onclick: (event) => copyText(command, event.target) }, "copy command"));
    return line;
  };
  box.replaceChildren(el("h3", {}, `${check.title}: beyond ${number(check.limit)} ${check.unit}` +
    (rows.length < check.bad ? `, the worst ${rows.length} of ${number(check.bad)}` : "")), el("ul", {}, ...rows.map(entry)));
}
const browseAt = (scene, t, camera) => `browse#${new URLSearchParams({ scene, t, camera })}`;
function filters() {
  const bar = $("filters");
  const select = (name, label, options) => bar.append(el("label", {}, label, el("select",
    { "data-filter": name, onchange: (event) => choose(name, event.target.value) },
    ...options.map(([value, text]) => el("option", { value }, text)))));
  const among = (values) => [["", "all"], ...[...new Set(values)].sort().map((v) => [v, v])];
  select("why", "shown", [["", "worst and random"], ["worst", "worst"], ["random", "random"]]);
  select("check", "check", [["", "all"], ...RESULT.checks.filter((c) => c.count).map((c) => [c.name, c.title])]);
  select("scene", "scene", among(CARDS.map((c) => c.scene)));
  select("camera", "camera", among(CARDS.map((c) => c.camera || "")).filter(([v], k) => k === 0 || v));
  select("class", "class", among(CARDS.flatMap((c) => c.classes || [])));
  const layers = [...new Set(CARDS.flatMap((c) => Object.keys(c.pictures || {})))].map((n) => [n, n]);
  select("a", "layer", [["", "what the check looks at"], ...layers]);
  select("b", "swipe to", [["", "nothing"], ...layers]);
  bar.append(el("label", {}, "swipe", el("input", { type: "range", min: 0, max: 100, value: 50, id: "swipe",
    oninput: (event) => { chosen.swipe = Number(event.target.value); swipe(); } })));
  bar.append(el("button", { id: "only-bad", onclick: (event) => {
    chosen.bad = !chosen.bad; event.target.classList.toggle("on", chosen.bad); draw(); } }, "only beyond a limit"));
  if (!DATA.served) {
    bar.append(el("label", {}, "go on with exported marks", el("input", { type: "file", id: "load", accept: ".json",
      onchange: (event) => event.target.files.length && load(event.target.files[0]) })));
  }
  bar.append(el("span", { class: "tag", id: "shown" }));
  if (DATA.legend) bar.after(el("img", { class: "legend", src: DATA.legend, alt: "colour scales" }));
}
const badNames = (card) => Object.entries(card.values || {}).filter(([n, v]) => BY_NAME[n] && isBad(BY_NAME[n], v)).map(([n]) => n);
function visible(card) {
  const bad = badNames(card);
  return (!chosen.why || card.why === chosen.why) && (!chosen.scene || card.scene === chosen.scene) &&
    (!chosen.camera || card.camera === chosen.camera) && (!chosen.class || (card.classes || []).includes(chosen.class)) &&
    (!chosen.check || card.check === chosen.check || bad.includes(chosen.check)) && (!chosen.bad || bad.length > 0);
}
function picture(card) {
  const pictures = card.pictures || {}, best = pictures[card.layer] ? card.layer : "image", layer = chosen.a || best;
  const stack = el("div", { class: "stack" }), own = pictures[layer], other = pictures[chosen.b];
  if (own) stack.append(el("img", { src: own, alt: layer }));
  else stack.append(el("span", { class: "tag" }, card.error || `no ${layer} here`));
  stack.append(el("p", {}, layer));
  if (own && other) {
    stack.append(el("img", { src: other, alt: chosen.b, class: "over" }), el("p", { class: "right" }, chosen.b));
  }
  return stack;
}
const place = (one) => `${one.scene} · ${one.t} · ${one.camera || ""}`;
function markOf(one) {
  return { scene: one.scene, t: one.t, token: one.token || "", by: "reviewer", fingerprints: one.fingerprints || {},
    reason: badNames(one).join(", ") || one.why };
}
function card(one) {
  const bad = new Set(badNames(one)), rejected = isMarked(one.scene, one.t);
  const value = (name) => {
    const check = BY_NAME[name];
    return el("span", { class: bad.has(name) ? "bad" : "", title: check ? check.measures : "" }, check ?
      `${check.title} ${number(one.values[name])} ${check.unit} (limit ${check.low ? "≥" : "≤"} ${number(check.limit)})` : name);
  };
  const names = Object.keys(one.values || {}), first = names.filter((name) => bad.has(name) || name === one.check);
  const rest = el("details", {}, el("summary", {}, `all ${names.length} values`),
    el("div", { class: "values" }, ...names.filter((name) => !first.includes(name)).map(value)));
  const reject = el("button", { class: `reject${rejected ? " on" : ""}`, onclick: () => toggle(markOf(one)) },
    rejected ? "rejected: take back" : "reject keyframe");
  const copy = el("button", { class: "copy", onclick: () => copyText(one.command, copy) }, "copy");
  return el("div", { class: `card${rejected ? " rejected" : ""}`, "data-key": markKey(one.scene, one.t) },
    el("header", {}, el("b", {}, DATA.served ? el("a", { href: browseAt(one.scene, one.t, one.camera) }, place(one)) : place(one)),
      el("span", { class: "tag" }, one.why === "worst" && BY_NAME[one.check] ? `worst: ${BY_NAME[one.check].title}` : one.why)),
    picture(one), el("div", { class: "values" }, ...first.map(value)), ...(names.length ? [rest] : []),
    el("div", { class: "command" }, el("code", { title: one.command || "" }, one.command || ""), copy, reject));
}
function copyText(text, button) {
  const done = () => { button.textContent = "copied"; };
  if (navigator.clipboard && window.isSecureContext) { navigator.clipboard.writeText(text).then(done, () => select(text, button)); }
  else select(text, button);
}
function select(text, button) {
  // Without a clipboard (file://) the command is shown and selected: Ctrl+C copies it.
  const code = button.parentElement.querySelector("code"), range = document.createRange();
  code.textContent = text;
  range.selectNodeContents(code);
  getSelection().removeAllRanges();
  getSelection().addRange(range);
  try { if (document.execCommand("copy")) button.textContent = "copied"; } catch { button.textContent = "Ctrl+C"; }
}
function swipe() {
  document.querySelectorAll("img.over").forEach((image) => { image.style.clipPath = `inset(0 0 0 ${chosen.swipe}%)`; });
}
let shown = [];
function draw() {
  shown = CARDS.filter(visible);
  $("cards").replaceChildren(...(shown.length ? shown.map(card) : [el("p", { class: "empty" }, "No card matches.")]));
  $("shown").textContent = `${shown.length} of ${CARDS.length}; keys: j, k, x`;
  swipe();
  focusCard();
}
function focusCard() {
  document.querySelectorAll(".card").forEach((node, k) => node.classList.toggle("current", k === current));
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.target.tagName === "SELECT") return;
  if (event.key === "j" || event.key === "k") {
    current = Math.min(shown.length - 1, Math.max(0, current + (event.key === "j" ? 1 : -1)));
    focusCard();
    const node = document.querySelectorAll(".card")[current];
    if (node) node.scrollIntoView({ block: "center" });
  } else if (event.key === "x" && shown[current]) toggle(markOf(shown[current]));
});
document.addEventListener("marks", draw);
$("export").hidden = DATA.served;
$("export").addEventListener("click", save);
head(); checks(); against(); residual(); masks(); lidar(); truth(); filters(); coverage(); provenance(); draw();
if (DATA.served) ask("api/exclusions");
