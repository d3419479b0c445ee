// The page: files of this tab, what is asked about them, and what is seen.

import {ask, dicomObjects} from "./stream.js";
import {perSlice, planesOf} from "./geometry.js";
import {bestSlice, scan, useRaw, volumes} from "./measures.js";
import {clear, fillDetails, make, options, row, showPainted, showVerdict} from "./panels.js";
import {Viewer} from "./viewer.js";
import {drawChart, drawNetwork} from "./diagrams.js";
import {csvOf, milliliters, resultOf, save, saved, short, stem} from "./words.js";

const $ = id => document.getElementById(id);
const KEPT = 700e6; // bytes of arrays that stay in memory; what was looked at longest ago is read again when opened
const MAPS = 4; // side by side, at most
const setup = await (await fetch("page/setup")).json();
const items = [];
let open = null, viewer = null, running = false;

function say(problem, kind = "") {
  $("problem").textContent = problem ?? "";
  $("problem").className = kind;
  $("problem").hidden = !problem;
}

// ---- what it takes

$("version").textContent = setup.model.version;
$("notice").textContent = setup.model.notice;
$("takes").textContent = setup.takes;
$("kinds").textContent = setup.kinds;
$("example").src = `page/samples/${setup.example}`;
const mega = value => `${Math.round(value / 1e6)} million`;
for (const [name, text] of [
  ["Answers", setup.model.classes.map(one => one.replaceAll("_", " ")).join(", ")],
  ["Size", `files up to ${setup.limits.bytes >> 20} MiB; pictures up to ${mega(setup.limits.pixels)} pixels, volumes up to ${mega(setup.limits.voxels)} voxels`],
  ...(setup.prevalence ? [["Prevalence", setup.prevalence]] : []),
]) $("facts").append(make("dt", {textContent: name}), make("dd", {textContent: text}));
for (const name of setup.samples) {
  $("samples").append(make("button", {textContent: short(name), title: name, onclick: () => addSample(name)}));
}

// ---- files

function add(files) {
  if (!files.length) return;
  say();
  for (const file of files) items.push({file, name: file.name, state: "waiting", asked: {}, started: performance.now()});
  $("start").hidden = true;
  $("room").hidden = $("end").hidden = false;
  document.body.classList.remove("empty");
  if (!open) show(items.at(-files.length));
  list();
  work();
}

async function addSample(name) {
  const data = await (await fetch(`page/samples/${name}`)).blob();
  add([new File([data], name)]);
  items.at(-1).asked.assess_anyway = true; // none of them is like the images of a training on real heads
}

for (const input of document.querySelectorAll(".files")) {
  input.addEventListener("change", () => {
    add([...input.files]);
    input.value = "";
  });
}
let inside = 0;
const holdsFiles = event => [...(event.dataTransfer?.types ?? [])].includes("Files");
addEventListener("dragenter", event => holdsFiles(event) && ($("dropping").hidden = !++inside));
addEventListener("dragleave", event => holdsFiles(event) && ($("dropping").hidden = !(inside = Math.max(0, inside - 1))));
addEventListener("dragover", event => event.preventDefault());
addEventListener("drop", event => {
  event.preventDefault(); // nothing dropped replaces the page
  inside = 0;
  $("dropping").hidden = true;
  add([...event.dataTransfer.files]);
});
addEventListener("beforeunload", event => items.length && event.preventDefault());

$("end").onclick = () => {
  const count = items.length;
  for (const item of items) item.abort?.abort();
  items.length = 0;
  open = null;
  if (viewer) viewer.scan = null;
  $("canvas").width = $("canvas").height = 1;
  $("items").replaceChildren();
  $("room").hidden = $("end").hidden = true;
  $("start").hidden = false;
  document.body.classList.add("empty");
  say(`The session has ended: ${count} ${count === 1 ? "image was" : "images were"} removed from this tab; the service keeps none.`, "note");
};

// ---- questions, one after the other

async function work() {
  if (running) return;
  running = true;
  for (let item = next(); item; item = next()) await predict(item);
  running = false;
}

const next = () => (open?.state === "waiting" ? open : items.find(item => item.state === "waiting"));

async function predict(item) {
  item.state = "working";
  item.stage = {stage: "sending"};
  item.abort = new AbortController();
  item.asked.uncertainty ??= /\.(png|jpe?g|bmp|tiff?|webp|jp2)$/i.test(item.name);
  progress(item);
  try {
    if (item.file.size > setup.limits.bytes) {
      throw new Error(`${item.name} is larger than ${setup.limits.bytes >> 20} MiB, the most that is taken; cut it or resample it`);
    }
    const answer = await ask("page/predict", item.file, item.asked, stage => {
      item.stage = stage;
      progress(item);
    }, item.abort.signal);
    item.answer = answer;
    item.seconds = (performance.now() - item.started) / 1000;
    item.state = "answered";
    take(item);
  } catch (error) {
    if (error.name === "AbortError") return;
    item.state = "refused";
    item.error = error.message;
  }
  list();
  if (item === open) show(item);
}

function take(item) {
  const {answer} = item, {result} = answer;
  item.located = {affine: result.affine, picture: answer.picture, located: answer.located};
  item.planes = planesOf({...item.located, shape: answer.files.image.shape});
  item.maps = [];
  item.painted = {};
  item.version = "as it is";
  useRaw(item, false);
  const first = answer.windows[0];
  const home = result.plane ?? (answer.picture ? "picture" : "axial"), at = {};
  for (const plane of Object.values(item.planes)) at[plane.name] = bestSlice(item, plane, home);
  item.view = {
    layout: "one", plane: home, at, window: {...first}, mask: true, map: true,
    maskOpacity: 0.9, mapOpacity: 0.7, threshold: setup.faint, zoom: 1, center: {},
  };
  item.milliliters = answer.result.verdict === "not assessed" ? null : milliliters(item, answer.result.tumor_voxels);
  forget();
}

// Arrays of what was looked at longest ago are dropped; the answer stays in the list.
function forget() {
  const bytes = item => Object.values(item.answer.files).reduce((sum, part) => sum + part.file.byteLength, 0);
  const held = items.filter(item => item.answer?.files && item !== open).sort((a, b) => (a.seen ?? 0) - (b.seen ?? 0));
  let total = [...held, open].filter(item => item?.answer?.files).reduce((sum, item) => sum + bytes(item), 0);
  for (const item of held) {
    if (total <= KEPT) break;
    total -= bytes(item);
    item.answer = {...item.answer, files: null};
    item.mask = null;
    item.maps = [];
  }
}

// ---- the list

function list() {
  $("items").replaceChildren(...items.map(item => row(item, item === open, show)));
  const done = items.filter(item => item.state === "answered" || item.state === "refused").length;
  $("kept").textContent = `${done} of ${items.length} read. Images stay in this tab; the service has deleted its copies.`;
}

$("csv").onclick = () => save(new Blob([csvOf(items)], {type: "text/csv"}), "tumorlens.csv");

// ---- one image

function progress(item) {
  if (item !== open) return;
  const {stage, done, of} = item.stage ?? {stage: "waiting"};
  $("verdict").className = "";
  $("words").textContent = `${item.name}: ${{sending: "being sent", reading: "being read", waiting: "waits for its turn", preparing: "being prepared", predicting: "the network looks at it"}[stage]}`;
  $("numbers").textContent = of ? `slice ${Math.min(done, of)} of ${of}` : "";
  $("progress").hidden = false;
  if (of) Object.assign($("progress"), {max: of, value: done});
  else $("progress").removeAttribute("value");
  clear();
}

function show(item) {
  open = item;
  item.seen = performance.now();
  const ready = item.state === "answered" && item.answer.files;
  if (item.state === "answered" && !item.answer.files) {
    item.state = "waiting"; // its arrays were dropped
    work();
  }
  for (const part of ["view", "under"]) $(part).hidden = !ready;
  $("tools").hidden = !ready;
  $("over-slices").hidden = !ready || item.answer.picture;
  list();
  if (item.state === "waiting" || item.state === "working") return progress(item);
  $("progress").hidden = true;
  if (item.state === "refused") {
    $("verdict").className = "doubt";
    $("words").textContent = "This file cannot be read";
    $("numbers").textContent = item.error;
    return clear();
  }
  showVerdict(item, setup);
  viewer ??= new Viewer($("canvas"), setup, seen);
  fillTools(item);
  showPainted(item, show);
  viewer.show(scan(item), item.view);
  seen();
}

// What of the image is seen has changed.
function seen(event = {}) {
  const item = open, {view} = item;
  if ("under" in event) return under(event.under);
  if (event.resetWindow) Object.assign(view.window, item.answer.windows[0]);
  viewer.scan = scan(item);
  viewer.draw();
  const {low, high} = view.window, whole = item.range;
  $("window").value = item.answer.windows.some(one => one.name === view.window.name) ? view.window.name : "by hand";
  $("width").value = Math.sqrt(Math.min(1, (high - low) / whole.span));
  $("level").value = ((low + high) / 2 - whole.low) / whole.span;
  $("threshold-value").textContent = view.threshold.toFixed(2);
  $("volumes").textContent = volumes(item);
  $("zoom-value").textContent = view.zoom > 1 ? `${view.zoom.toFixed(1)} times` : "";
  $("whole").disabled = $("further").disabled = view.zoom === 1;
  const plane = item.planes[view.plane], {picture} = item.answer;
  if (picture) return;
  $("slice").max = plane.count - 1;
  $("slice").value = view.at[view.plane];
  $("slice-words").textContent = `${view.plane} slice ${view.at[view.plane] + 1} of ${plane.count}`;
  const {files, result} = item.answer, evidence = files[`${item.raw ? "raw_" : ""}evidence`];
  item.slices[view.plane] ??= {
    most: evidence ? perSlice(evidence.shape, evidence.data, plane).most : [],
    area: perSlice(item.mask.shape, item.mask.data, plane).sums,
  };
  drawChart($("chart"), {
    ...item.slices[view.plane], count: plane.count, at: view.at[view.plane], plane: view.plane, threshold: result.threshold,
    probabilities: view.plane === result.plane ? result.slice_probabilities : null,
  });
}

function under(pane) {
  const item = open;
  if (!pane || !pane.inside) return ($("under").textContent = "");
  const {image, mask, maps} = scan(item), parts = [`gray value ${image.data[pane.index].toFixed(image.data[pane.index] % 1 ? 2 : 0)}`];
  for (const map of maps.slice(0, 1)) parts.push(`${map.title} ${map.data[pane.index].toFixed(2)}`);
  if (mask.data[pane.index] > 0) parts.push("in the mask");
  $("under").textContent = parts.join(" · ");
}

// ---- tools

function fillTools(item) {
  const {answer, view} = item, {data} = answer.files.image;
  if (!item.range) {
    let [low, high] = [Infinity, -Infinity];
    for (const value of data) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
    item.range = {low, span: high > low ? high - low : 1};
  }
  $("volume-display").hidden = answer.picture;
  options($("plane"), Object.keys(item.planes), view.plane);
  $("layout").value = view.layout;
  options($("window"), [...answer.windows.map(one => one.name), "by hand"], view.window.name);
  $("mask-on").checked = view.mask;
  $("map-on").checked = view.map;
  $("mask-opacity").value = view.maskOpacity;
  $("map-opacity").value = view.mapOpacity;
  $("threshold").value = view.threshold;
  const {files} = answer, differ = name => files[`raw_${name}`] && files[name] && files[name].data.some((value, i) => value !== files[`raw_${name}`].data[i]);
  item.differs ??= Boolean(differ("mask") || differ("evidence"));
  $("raw-line").hidden = !item.differs;
  $("raw").checked = item.raw;
  item.choice ??= {target: "tumor", method: setup.maps.tumor[0].method, layer: null};
  options($("target"), Object.keys(setup.maps), item.choice.target, name => name.replaceAll("_", " "));
  fillMaps(item);
  $("channel-line").hidden = answer.channels < 2 || setup.model.input_channels > 1;
  options($("channel"), [...Array(answer.channels).keys()].map(String), String(answer.channel ?? 0));
  $("doubt").hidden = answer.result.probability_std !== null;
  fillDetails(item, setup);
  $("save-dicom").hidden = !answer.dicom;
  $("save-words").textContent = answer.picture ? "Mask and map as PNG on the picture's grid." : "Mask and map as NIfTI on the file's grid, with its affine.";
}

// Every layer of the network can be chosen: one at which the method has no map is explained by the method recommended for
// layers, which the page then says.
function fillMaps(item, changed = "") {
  const {choice} = item, offered = setup.maps[choice.target];
  const map = offered.find(one => one.method === choice.method) ?? offered[0];
  choice.method = map.method;
  options($("method"), offered.map(one => one.method), choice.method, name => name.replaceAll("_", " "));
  if (!map.layers.includes(choice.layer)) choice.layer = map.layers.length ? map.usual : null;
  $("layer-part").hidden = !map.layers.length;
  options($("layer"), map.layers, choice.layer);
  const any = offered.find(one => one.method === setup.recommended)?.layers ?? [];
  drawNetwork($("network"), setup.model.layers, [...map.layers, ...any], choice.layer, name => {
    const has = map.layers.includes(name), from = choice.method.replaceAll("_", " ");
    Object.assign(choice, {layer: name, method: has ? choice.method : setup.recommended});
    fillMaps(item, has ? "" : `The method is now ${choice.method.replaceAll("_", " ")}: ${from} has no map at ${name}. `);
  });
  const one = map.one_slice && !item.answer.picture ? "It explains one slice: the one that is shown. " : "";
  $("remark").textContent = changed + one + map.remark;
  $("shown").replaceChildren(...item.maps.map((shown, i) => make("li", {},
    make("span", {textContent: `${shown.title}. ${shown.message}.`}),
    make("button", {textContent: "×", title: `Remove ${shown.title}`, onclick: () => {
      item.maps.splice(i, 1);
      fillMaps(item);
      seen();
    }}))));
  $("beside").disabled = item.maps.length >= MAPS;
}

async function explain(beside) {
  const item = open, {method, layer, target} = item.choice, {view, answer} = item;
  const offered = setup.maps[target].find(one => one.method === method), home = answer.result.plane;
  const number = offered.one_slice && home ? view.at[home] : null;
  const buttons = [$("replace"), $("beside")];
  for (const button of buttons) button.disabled = true;
  $("remark").textContent = "Being computed ...";
  say();
  try {
    const found = await ask("page/explain", item.file, {method, layer, target, slice: number, channel: item.asked.channel}, () => {});
    const where = found.layer && found.layer !== found.method ? ` at ${found.layer}` : "";
    const of = target === "tumor" ? "" : `, of ${target.replaceAll("_", " ")}`;
    const map = {title: `${method.replaceAll("_", " ")}${where}${of}`, method, target, layer: found.layer, message: found.message, data: found.files.map.data, file: found.files.map.file};
    item.maps = beside ? [...item.maps.slice(0, MAPS - 1), map] : [map];
    Object.assign(view, {layout: "one", map: true});
    if (number !== null) view.plane = home;
    item.version = "as it is";
  } catch (error) {
    say(error.message);
  }
  for (const button of buttons) button.disabled = false;
  if (item === open) show(item);
}

async function paint() {
  const item = open;
  say();
  for (const [name, control] of [["tumor painted over", false], ["control", true]]) {
    try {
      item.painting = `${name} ...`;
      showPainted(item, show);
      item.painted[name] = await ask("page/without", item.file, {control, channel: item.asked.channel}, stage => {
        item.painting = stage.of ? `${name}: slice ${stage.done} of ${stage.of}` : `${name} ...`;
        if (item === open) showPainted(item, show);
      });
    } catch (error) {
      say(error.message);
      break;
    } finally {
      item.painting = null;
    }
  }
  if (item === open) showPainted(item, show);
}

function again(item, asked) {
  Object.assign(item.asked, asked);
  Object.assign(item, {state: "waiting", started: performance.now(), range: null, differs: undefined});
  show(item);
  work();
}

const on = (id, event, change) => $(id).addEventListener(event, () => {
  change(open, $(id));
  seen();
});
on("layout", "change", ({view}, box) => (view.layout = box.value));
on("plane", "change", ({view}, box) => Object.assign(view, {plane: box.value, layout: $("layout").value = "one"}));
on("window", "change", ({view, answer}, box) => Object.assign(view.window, answer.windows.find(one => one.name === box.value) ?? {}));
on("width", "input", ({view, range}, box) => setWindow(view, Math.max(1e-3, box.value ** 2) * range.span, (view.window.low + view.window.high) / 2));
on("level", "input", ({view, range}, box) => setWindow(view, view.window.high - view.window.low, range.low + box.value * range.span));
on("mask-on", "change", ({view}, box) => (view.mask = box.checked));
on("map-on", "change", ({view}, box) => (view.map = box.checked));
on("mask-opacity", "input", ({view}, box) => (view.maskOpacity = Number(box.value)));
on("map-opacity", "input", ({view}, box) => (view.mapOpacity = Number(box.value)));
on("threshold", "input", ({view}, box) => (view.threshold = Number(box.value)));
on("slice", "input", ({view}, box) => (view.at[view.plane] = Number(box.value)));
on("raw", "change", (item, box) => {
  useRaw(item, box.checked);
  fillMaps(item);
});
const setWindow = (view, width, level) => Object.assign(view.window, {low: level - width / 2, high: level + width / 2, name: "by hand"});
for (const kind of ["target", "method", "layer"]) {
  $(kind).addEventListener("change", () => {
    open.choice[kind] = $(kind).value;
    fillMaps(open);
  });
}
$("nearer").onclick = () => viewer.zoomBy(1.5);
$("further").onclick = () => viewer.zoomBy(1 / 1.5);
$("whole").onclick = () => viewer.whole();
$("replace").onclick = () => explain(false);
$("beside").onclick = () => explain(true);
$("paint").onclick = paint;
$("anyway").onclick = () => again(open, {assess_anyway: true});
$("channel").onchange = () => again(open, {channel: $("channel").value});
$("doubt").onclick = () => again(open, {uncertainty: true});
const steer = event => {
  open.view.at[open.view.plane] = $("chart").sliceAt(event.clientX);
  seen();
};
$("chart").addEventListener("pointerdown", event => {
  $("chart").setPointerCapture(event.pointerId);
  steer(event);
});
$("chart").addEventListener("pointermove", event => $("chart").hasPointerCapture(event.pointerId) && steer(event));

$("save-png").onclick = async () => save(await viewer.png(), `${stem(open.name)}_view.png`);
$("save-mask").onclick = async () => save(...(await saved(open, scan(open).mask, "mask")));
$("save-map").onclick = async () => {
  const map = scan(open).maps[0];
  if (!map) return say(`${open.name}: there is no map to save; show one first`);
  save(...(await saved(open, {...open.mask, data: map.data, file: map.file}, map.method)));
};
$("save-dicom").onclick = async () => {
  const {name, file, asked} = open;
  say(`${name}: read again for its DICOM objects`, "note");
  try {
    for (const [kind, blob] of await dicomObjects(file, {assess_anyway: asked.assess_anyway})) save(blob, `${stem(name)}_${kind}.dcm`);
    say();
  } catch (error) {
    say(error.message);
  }
};
$("save-json").onclick = () => {
  save(new Blob([resultOf(open, setup.model)], {type: "application/json"}), `${stem(open.name)}_result.json`);
};
document.documentElement.dataset.ready = "true";
