"use strict";
// Every keyframe of the store, drawn by the server when it is asked for. The address names the place: it can be kept.
function named() {
  const asked_for = new URLSearchParams(location.hash.slice(1));
  return { scene: Math.max(0, DATA.scenes.findIndex(([name]) => name === asked_for.get("scene"))),
    t: Math.floor(Number(asked_for.get("t"))) || 0, camera: Math.max(0, DATA.cameras.indexOf(asked_for.get("camera"))) };
}
const at = { ...named(), a: "image", b: "masks", swipe: 100 };
let asked = 0, now = null;

const length = () => DATA.scenes[at.scene][1];
const query = (more) => new URLSearchParams({ scene: DATA.scenes[at.scene][0], t: at.t,
  camera: DATA.cameras[at.camera], ...more }).toString();
const place = () => `${DATA.scenes[at.scene][0]} · keyframe ${at.t} of 0–${length() - 1} · ${DATA.cameras[at.camera]}`;

function controls() {
  const bar = $("controls");
  const choice = (label, id, options, change) => bar.append(el("label", {}, label, el("select", { id, onchange: change },
    ...options.map((text, k) => el("option", { value: k }, text)))));
  choice("scene", "scene", DATA.scenes.map(([name]) => name), (event) => go({ scene: Number(event.target.value), t: 0 }));
  bar.append(el("label", {}, "keyframe", el("input", { type: "range", id: "frame", min: 0, max: length() - 1, value: 0,
    oninput: (event) => go({ t: Number(event.target.value) }) })));
  for (const side of ["a", "b"]) {
    choice(side === "a" ? "layer" : "swipe to", side, DATA.layers, (event) => go({ [side]: DATA.layers[event.target.value] }));
  }
  bar.append(el("label", {}, "swipe", el("input", { type: "range", id: "swipe", min: 0, max: 100, value: at.swipe,
    oninput: (event) => { at.swipe = Number(event.target.value); swipe(); } })));
  DATA.cameras.forEach((name, k) => bar.append(el("button", { class: "camera", onclick: () => go({ camera: k }) }, name)));
  bar.append(el("button", { id: "reject", class: "reject", onclick: reject }, "reject keyframe"));
}
function swipe() { $("swipe").value = at.swipe; $("over").style.clipPath = `inset(0 0 0 ${at.swipe}%)`; }
async function answer(address, read) {
  try {
    const reply = await fetch(address);
    return reply.ok ? await read(reply) : { error: await reply.text() };
  } catch { return { error: "the server does not answer" }; }
}
function show(image, caption, layer) {
  caption.textContent = layer;
  image.style.visibility = "hidden";
  image.onload = () => { image.style.visibility = ""; };
  image.onerror = async () => {
    const address = image.src, found = await answer(address, () => ({ error: "no picture" }));
    if (image.src === address) caption.textContent = `${layer}: ${found.error}`;
  };
  image.src = `api/picture?${query({ layer })}`;
  image.alt = layer;
}
async function go(change) {
  Object.assign(at, change);
  at.scene = Math.min(DATA.scenes.length - 1, Math.max(0, at.scene));
  at.t = Math.min(length() - 1, Math.max(0, at.t));
  $("title").textContent = place();
  $("scene").value = at.scene;
  $("frame").max = length() - 1;
  $("frame").value = at.t;
  for (const side of ["a", "b"]) $(side).value = DATA.layers.indexOf(at[side]);
  document.querySelectorAll("button.camera").forEach((node, k) => node.classList.toggle("on", k === at.camera));
  const [left, right] = $("stack").querySelectorAll("p");
  show($("under"), left, at.a);
  show($("over"), right, at.b);
  swipe();
  history.replaceState(null, "", `#${query({})}`);
  showReject();
  const mine = ++asked;
  const found = await answer(`api/values?${query({})}`, (reply) => reply.json());
  if (mine !== asked) return;
  now = { values: [], ...found };
  const own = now.values.filter((row) => !row.camera || row.camera === DATA.cameras[at.camera]);
  const unread = now.error ? [el("span", { class: "bad" }, `Could not be read: ${now.error}`)] : [];
  $("values").replaceChildren(...unread, ...own.map((row) => el("span", { class: row.bad ? "bad" : "" },
    `${row.check} ${number(row.value)} ${row.unit} (limit ${row.limit})`)));
}
function showReject() {
  const there = isMarked(DATA.scenes[at.scene][0], at.t);
  $("reject").textContent = there ? "rejected: take back" : "reject keyframe";
  $("reject").classList.toggle("on", there);
}
async function reject() {
  const scene = DATA.scenes[at.scene][0];
  if (!now || now.t !== at.t || now.scene !== scene) return; // not of this keyframe yet
  const bad = now.values.filter((row) => row.bad).map((row) => row.check);
  await toggle({ scene, t: at.t, token: now.token, by: "reviewer",
    reason: now.error ? "could not be read" : [...new Set(bad)].join(", "),
    fingerprints: now.fingerprints });
}
document.addEventListener("marks", showReject);
window.addEventListener("hashchange", () => go(named())); // an address of this page that was kept, opened in it
let waiting = null;
$("stack").addEventListener("mousemove", (event) => {
  const box = $("under").getBoundingClientRect();
  const u = Math.floor(((event.clientX - box.left) / box.width) * DATA.size[1]);
  const v = Math.floor(((event.clientY - box.top) / box.height) * DATA.size[0]);
  if (u < 0 || v < 0 || u >= DATA.size[1] || v >= DATA.size[0]) return;
  clearTimeout(waiting);
  waiting = setTimeout(async () => {
    const reply = await fetch(`api/probe?${query({ u, v })}`);
    if (!reply.ok) return;
    const found = await reply.json();
    $("probe").textContent = Object.entries(found).map(([k, x]) => `${k} ${Array.isArray(x) ? x.join(", ") : x ?? "none"}`).join("   ");
  }, 60);
});
document.addEventListener("keydown", (event) => {
  if (event.target.tagName === "SELECT" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.tagName === "INPUT" && event.key.startsWith("Arrow")) return; // the slider's own
  const moves = { ArrowRight: { t: at.t + 1 }, ArrowLeft: { t: at.t - 1 }, ArrowDown: { scene: at.scene + 1, t: 0 },
    ArrowUp: { scene: at.scene - 1, t: 0 } };
  if (moves[event.key]) { event.preventDefault(); go(moves[event.key]); }
  else if (/^[1-9]$/.test(event.key) && Number(event.key) <= DATA.cameras.length) go({ camera: Number(event.key) - 1 });
  else if (event.key === "x") reject();
});
$("legend").src = DATA.legend;
controls();
go({});
ask("api/exclusions");
