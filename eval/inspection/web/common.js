"use strict";
// What both pages share: building elements from text alone (nothing here parses markup), and marks of keyframes as
// rejected. Served, every mark is written and taken back at once; as a file, marks are kept until they are exported.
const DATA = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "class") node.className = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.map((child) => (child instanceof Node ? child : document.createTextNode(String(child)))));
  return node;
}
function number(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Math.abs(value) >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
}

const marks = new Map(); // a reviewer's, by keyframe
let kept = []; // of checks, and those that no longer hold: shown, and exported as they came
let note = "", touched = false, asks = 0;
let unsaved = false; // whether leaving the page loses marks, or that some were taken back
const markKey = (scene, t) => JSON.stringify([scene, t]);
const isMarked = (scene, t) => marks.has(markKey(scene, t));

function asFile(frames) {
  const fields = ["scene", "t", "token", "by", "reason", "fingerprints"];
  const plain = frames.map((mark) => Object.fromEntries(fields.map((key) => [key, mark[key]])));
  return JSON.stringify({ schema: "occflow.exclusions", schema_version: 1, store: DATA.store, frames: plain }, null, 1);
}
const exclusions = () => asFile([...kept, ...marks.values()]);

function takeIn(frames) {
  const others = new Map();
  marks.clear();
  for (const mark of frames) {
    if (mark.by === "reviewer" && !mark.stale) marks.set(markKey(mark.scene, mark.t), mark);
    else others.set(JSON.stringify([mark.scene, mark.t, mark.by]), mark);
  }
  kept = [...others.values()];
}
async function ask(path, frames) {
  const how = frames ? { method: "POST", headers: { "Content-Type": "application/json" }, body: asFile(frames) } : {};
  const mine = ++asks;
  try {
    const reply = await fetch(path, how);
    const text = await reply.text();
    if (!reply.ok) throw new Error(text);
    if (mine !== asks) return; // a later change's answer says more
    const found = JSON.parse(text);
    takeIn(found.frames);
    note = frames || found.frames.length ? found.file : "";
  } catch (error) {
    note = `Not written: ${error.message}`;
    touched = true;
  }
  showMarks();
}
async function mark(one) {
  touched = true;
  if (DATA.served) return ask("api/exclusions", [one]);
  marks.set(markKey(one.scene, one.t), one);
  unsaved = true;
  showMarks();
}
async function withdraw(one) {
  touched = true;
  if (DATA.served) return ask("api/withdrawals", [one]);
  marks.delete(markKey(one.scene, one.t));
  kept = kept.filter((other) => other !== one);
  unsaved = true;
  showMarks();
}
function toggle(one) {
  const there = marks.get(markKey(one.scene, one.t));
  return there ? withdraw(there) : mark(one);
}

function showMarks() {
  const mine = [...marks.values()].sort((a, b) => (a.scene < b.scene ? -1 : a.scene > b.scene ? 1 : a.t - b.t));
  const line = (one, why) => el("li", {}, el("span", {}, `${one.scene} · ${one.t}${why ? ` (${why})` : ""}`),
    ...(one.by === "reviewer" ? [el("button", { class: "undo", onclick: () => withdraw(one) }, "take back")] : []));
  $("marks").replaceChildren(...mine.map((one) => line(one, one.reason)),
    ...kept.map((one) => line(one, one.stale ? `no longer holds: ${one.stale}` : one.by)));
  $("count").textContent = `${marks.size || "No"} keyframe${marks.size === 1 ? "" : "s"} rejected` +
    (kept.length ? `, ${kept.length} other mark${kept.length === 1 ? "" : "s"}` : "");
  $("note").textContent = note;
  $("tray").hidden = !(marks.size || kept.length || touched);
  document.dispatchEvent(new Event("marks"));
}
function save() {
  const link = el("a", { href: URL.createObjectURL(new Blob([exclusions()], { type: "application/json" })), download: "exclusions.json" });
  link.click();
  unsaved = false;
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
async function load(file) {
  touched = true;
  try {
    const content = JSON.parse(await file.text());
    if (content.schema !== "occflow.exclusions" || content.schema_version !== 1) throw new Error("not a list of exclusions");
    const read = content.frames.map((one) => ({ token: "", by: "reviewer", reason: "", fingerprints: {}, ...one }));
    takeIn([...read, ...kept, ...marks.values()]); // what was marked before stays
    note = `from ${file.name}`;
  } catch (error) { note = `${file.name}: ${error.message}`; }
  showMarks();
}
window.addEventListener("beforeunload", (event) => { if (unsaved) event.preventDefault(); });
