// The page: what the visitor does -> what is shown. Pictures and arithmetic are in picture.js, what
// is done with a mask in mask.js, ONNX Runtime Web in network.js.

import { blackAndWhite, count, cutOut, dice, maskOn, runLengths, tinted } from "./mask.js";
import { onGraphicsCard, predict, threads } from "./network.js";
import { enlargedMask, readPicture, Refusal, shrink } from "./picture.js";

const $ = (id) => document.getElementById(id);
const MASK = /_mask\.\w+$/i; // a file's name that ends so is a true mask

let facts; // page.json: models, size, threshold, examples, runtime
let last = Promise.resolve(); // what the visitor asked for last
export const state = {}; // name, canvas, small, probabilities, mask, truth

start();

async function start() {
  facts = await (await fetch("page.json")).json();
  const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
  const { models, runtime, size } = facts;
  const more = Object.entries(runtime.files).find(([name]) => name.endsWith("jspi.wasm"))[1].bytes;
  const extra = `${megabytes(models.float.bytes)}, and ${megabytes(more)} of runtime`;
  const sizes = [megabytes(models.int8.bytes), megabytes(models.float.bytes), extra];
  document.querySelectorAll("#kinds small").forEach((one, i) => (one.textContent = sizes[i]));
  document.querySelector("[value=gpu]").parentElement.hidden = !onGraphicsCard;
  $("size").textContent = `${size[1]} x ${size[0]}`;
  const where = runtime.url.startsWith("http") ? `, loaded from ${new URL(runtime.url).host}` : "";
  $("runtime").textContent = `(${runtime.npm.replace("@", " ")}${where})`;
  $("threshold").value = facts.threshold;
  $("examples").append(...facts.examples.map(exampleButton));
  listen();
  showThreshold();
  $("unstarted").remove();
  document.querySelector("main").hidden = false;
}

function exampleButton(photo, i) {
  const mask = photo.replace(".jpg", "_mask.gif"); // as in Carvana's layout
  const button = document.createElement("button");
  const picture = document.createElement("img");
  Object.assign(picture, { src: photo, alt: `Example ${i + 1}, a rendered car`, width: 480 });
  picture.height = 320;
  button.append(picture);
  button.onclick = () => attempt(async () => take(await fetched(photo), await fetched(mask)));
  return button;
}

async function fetched(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Refusal(`${address} is missing; write the page again.`);
  return new File([await answer.blob()], address.split("/").pop());
}

function listen() {
  for (const id of ["file", "camera"]) $(id).onchange = () => chosen($(id), (one) => take(one));
  $("truth").onchange = () => chosen($("truth"), compareWith);
  $("kinds").onchange = () => state.small && attempt(segment);
  $("views").onchange = draw;
  $("threshold").oninput = () => {
    showThreshold();
    if (state.probabilities) cut();
  };
  $("save-mask").onclick = () => {
    savePicture(blackAndWhite(state.mask, state.canvas.width), "_mask.png");
  };
  $("save-cutout").onclick = () => savePicture(cutOut(state.canvas, state.mask), "_cutout.png");
  $("save-code").onclick = saveCode;
  const over = (is) => $("stage").classList.toggle("over", is);
  document.ondragover = (event) => {
    event.preventDefault();
    over(true);
  };
  document.ondragleave = () => over(false);
  document.ondrop = (event) => {
    event.preventDefault();
    over(false);
    attempt(() => dropped([...event.dataTransfer.files]));
  };
}

function chosen(input, use) {
  const [file] = input.files;
  input.value = ""; // so that the same file can be chosen again
  if (file) attempt(() => use(file));
}

function dropped(files) {
  const masks = files.filter((file) => MASK.test(file.name));
  const photos = files.filter((file) => !MASK.test(file.name));
  if (photos.length === 1 && masks.length < 2) return take(photos[0], masks[0]);
  if (!photos.length && masks.length === 1 && state.canvas) return compareWith(masks[0]);
  throw new Refusal(`Of ${files.length} files, one photo, and its NAME_mask.png, can be shown.`);
}

/**
 * Do what the visitor asked for, one thing after the other; what is refused is said, and what was
 * shown before stays.
 */
function attempt(work) {
  last = last.then(async () => {
    $("refusal").textContent = "";
    $("stage").setAttribute("aria-busy", "true");
    try {
      await work();
    } catch (error) {
      if (!(error instanceof Refusal)) console.error(error);
      say("");
      $("refusal").textContent = error.message;
    }
    $("stage").setAttribute("aria-busy", "false");
  });
}

function say(text) {
  $("status").textContent = text;
}

/** The next picture of the screen, so that what was said is seen before the work goes on. */
const painted = () => new Promise((resolve) => setTimeout(resolve, 30));

async function take(file, maskFile) {
  say(`Reading ${file.name} ...`);
  await painted();
  const canvas = await readPicture(file);
  const started = performance.now();
  const small = shrink(canvas, facts.size, facts.colour);
  const shrinking = performance.now() - started;
  const truth = maskFile && (await trueMask(maskFile, canvas));
  Object.assign(state, { name: file.name, canvas, small, shrinking, truth });
  state.probabilities = state.mask = null;
  for (const id of ["save-mask", "save-cutout", "save-code"]) $(id).disabled = true;
  for (const id of ["share", "dice", "network-time", "picture-time"]) $(id).textContent = "–";
  [$("photo").width, $("photo").height] = [canvas.width, canvas.height];
  $("photo").getContext("2d").drawImage(canvas, 0, 0);
  $("layers").hidden = false;
  $("invitation").hidden = true;
  $("stage").classList.remove("empty");
  $("truth").disabled = false;
  draw();
  await segment();
}

async function trueMask(file, { width, height }) {
  const canvas = await readPicture(file);
  if (canvas.width !== width || canvas.height !== height) {
    const sizes = `${canvas.width} x ${canvas.height} pixels, its photo ${width} x ${height}`;
    throw new Refusal(`${file.name} has ${sizes}; give the mask at the photo's own size.`);
  }
  return maskOn(canvas, file.name);
}

async function compareWith(file) {
  state.truth = await trueMask(file, state.canvas);
  if (state.mask) showResult();
}

async function segment() {
  const kind = document.querySelector("[name=kind]:checked").value;
  say(`The network looks at ${state.name}; at first it is loaded ...`);
  await painted();
  const { probabilities, milliseconds } = await predict(facts, kind, state.small);
  Object.assign(state, { probabilities, kind, milliseconds });
  cut();
  const { width, height } = state.canvas;
  say(`${state.name}, ${width} x ${height} pixels: ${$("share").textContent} of them object.`);
}

/** Probabilities -> mask: all that a moved threshold needs. */
function cut() {
  const { width, height } = state.canvas;
  const started = performance.now();
  state.mask = enlargedMask(
    state.probabilities, facts.size, [height, width], Number($("threshold").value),
  );
  state.enlarging = performance.now() - started;
  draw();
  showResult();
}

function draw() {
  const { canvas, mask } = state;
  if (!canvas) return;
  const view = document.querySelector("[name=view]:checked").value;
  const layer = $("layer");
  [layer.width, layer.height] = [canvas.width, canvas.height]; // also empties it
  $("layers").classList.toggle("cutout", Boolean(mask) && view === "cutout");
  if (!mask || view === "photo") return;
  const picture = view === "mask" ? tinted(mask, canvas.width) : cutOut(canvas, mask);
  layer.getContext("2d").putImageData(picture, 0, 0);
}

function showThreshold() {
  $("chosen").textContent = Number($("threshold").value).toFixed(2);
}

function showResult() {
  const { kind, mask, truth } = state;
  const many = threads > 1 ? `${threads} threads` : "one thread";
  const device = kind === "gpu" ? "graphics card" : many;
  $("share").textContent = `${((100 * count(mask)) / mask.length).toFixed(1)} %`;
  $("dice").textContent = truth ? dice(mask, truth).toFixed(4) : "add the true mask";
  $("network-time").textContent = `${state.milliseconds.toFixed(0)} ms (${device})`;
  $("picture-time").textContent = `${(state.shrinking + state.enlarging).toFixed(0)} ms`;
  for (const id of ["save-mask", "save-cutout", "save-code"]) $(id).disabled = false;
}

function savePicture(picture, ending) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [picture.width, picture.height];
  canvas.getContext("2d").putImageData(picture, 0, 0);
  canvas.toBlob((blob) => save(blob, ending), "image/png");
}

/** A line as `python -m unetlib predict --output FILE.csv` writes it. */
function saveCode() {
  const name = /[",\n]/.test(state.name) ? `"${state.name.replaceAll('"', '""')}"` : state.name;
  const text = `img,rle_mask\n${name},${runLengths(state.mask)}\n`;
  save(new Blob([text], { type: "text/csv" }), "_mask.csv");
}

function save(blob, ending) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = state.name.replace(/\.[^.]*$/, "") + ending;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // it may be read after the click
}
