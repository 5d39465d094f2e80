// The page: a digit is drawn or chosen, and two networks answer. What the stages show is in stages.js.
import { decode } from "./coded.js";
import { logits, softmax, toMnist } from "./network.js";
import { readCode } from "./qr.js";
import { $, cells, paintDigit, showAnswer, showCode, showFile, write } from "./stages.js";

const now = () => performance.now();
const here = (name) => new URL(name, import.meta.url).href;
const fromBase64 = (text) => {
  try {
    return Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt());
  } catch {
    throw Error("the address is damaged");
  }
};
const canvas = $("draw"), side = canvas.width, pen = canvas.getContext("2d", { willReadFrequently: true });
const networks = {}; // "small" and "large": from standardized pixels to logits
let digit, isDrawing = false, isFresh = true; // digit: 784 bytes

// --- The network in the code, or in the address.

// The file stands after the #, in base64 as addresses write it. All of these files begin alike.
const inAddress = () => location.hash.startsWith("#TUNQQUNL") && location.hash.slice(1);

/** Show the picture of a code, and return it with one pixel for each square. */
async function picture(name) {
  const image = $("code");
  image.src = here(name);
  await image.decode().catch(() => { throw Error("the picture of the code cannot be loaded"); });
  const width = image.naturalWidth - 8, context = new OffscreenCanvas(width, width).getContext("2d");
  context.drawImage(image, -4, -4); // without the light edge
  return context.getImageData(0, 0, width, width);
}

let loads = 0;
/** Load a network from "address" or from the picture of a code. After an error there is none. */
async function load(source) {
  const mine = ++loads, isAddress = source === "address";
  let message = crypto.subtle ? "" : "The checksum was not verified: browsers do that on a page that came by https.";
  networks.small = null;
  for (const part of cells("code")) part.hidden = isAddress;
  try {
    const image = isAddress || await picture(source), start = now();
    const code = isAddress ? { bytes: fromBase64(inAddress()) } : readCode(image), middle = now();
    const file = await decode(code.bytes, JSON.parse($("words").textContent)), end = now();
    if (mine !== loads) return; // another was chosen meanwhile
    networks.small = (x) => logits(file.arrays, x);
    write("small-load", `${(middle - start).toFixed(1)} ms to read, ${(end - middle).toFixed(1)} ms to decode`);
    const text = btoa(String.fromCharCode(...code.bytes)).replace(/\+/g, "-").replace(/\//g, "_").replace(/=/g, "");
    $("address").value = new URL(`#${text}`, location);
    if (!isAddress) showCode(code);
    showFile(code.bytes, file);
  } catch (error) {
    message = `No network was loaded: ${error.message}.`;
  }
  write("message", message);
  update();
}

// --- The answers.

/** Let a network answer as often as fits into 5 ms: the time shown is the mean. Return a sentence. */
async function ask(which) {
  if (!digit || !networks[which]) return showAnswer(which);
  const x = Float32Array.from(digit, (p) => (p / 255 - 0.1307) / 0.3081); // MNIST's mean and deviation
  const start = now();
  let found, ms = 0, runs = 0;
  for (; runs < 20 && ms < 5; runs++) {
    found = await networks[which](x);
    ms = now() - start;
  }
  return showAnswer(which, found, softmax(found), ms / runs);
}

let wanted = 0; // answers, since there was last nothing to do
/** Let both networks answer, again if more was drawn meanwhile. A screen reader hears it when the pen is up. */
async function update() {
  if (wanted++) return;
  for (let given = 0; given < wanted;) {
    given = wanted;
    const said = await ask("small") + await ask("large");
    if (isDrawing) continue;
    write("said", said || (digit ? "No network is here to answer." : "Draw a digit, or choose one."));
  }
  wanted = 0;
}

// --- The digit.

function show(bytes) {
  digit = bytes;
  paintDigit($("seen"), bytes);
  update();
}

function clear() {
  pen.fillRect(0, 0, side, side);
  isFresh = true;
  show();
}

function stroke({ offsetX, offsetY }) {
  const zoom = side / canvas.clientWidth;
  pen.lineTo(offsetX * zoom, offsetY * zoom);
  pen.stroke();
  show(toMnist(pen.getImageData(0, 0, side, side)));
}

canvas.onpointerdown = (event) => {
  if (!isFresh) clear();
  canvas.setPointerCapture(event.pointerId);
  isDrawing = true;
  pen.beginPath();
  stroke(event);
  stroke(event); // so that there is a dot at least
};
canvas.onpointermove = (event) => isDrawing && stroke(event);
canvas.onpointerup = canvas.onpointercancel = () => {
  isDrawing = false;
  update();
};
$("clear").onclick = clear;
Object.assign(pen, { lineWidth: 22, lineCap: "round", lineJoin: "round", strokeStyle: "white" });
clear();

for (const button of cells("example")) {
  const bytes = fromBase64(button.dataset.example);
  paintDigit(button.firstChild, bytes);
  button.onclick = () => {
    show(bytes);
    pen.drawImage($("seen"), 0, 0, side, side);
    isFresh = false; // the next stroke begins a new drawing
  };
}

// --- What else can be pressed.

$("load-large").onclick = async ({ target }) => {
  const start = now(), say = (text) => write("large-load", text);
  target.disabled = true;
  say("loading …");
  try {
    const ort = await import("../ort/ort.wasm.min.mjs"), file = await (await fetch(here("lenet5.onnx"))).arrayBuffer();
    const session = await ort.InferenceSession.create(file);
    networks.large = async (x) => (await session.run({ input: new ort.Tensor(x, [1, 1, 28, 28]) })).logits.data;
    write("large-bytes", file.byteLength.toLocaleString("en"));
    say(`${(now() - start).toFixed()} ms, runtime included`);
  } catch (error) {
    target.disabled = false;
    say(`not loaded: ${error.message}`);
  }
  update();
};
$("copy").onclick = async () => {
  $("address").select();
  const said = await navigator.clipboard?.writeText($("address").value).then(() => "Copied.", () => "");
  write("copied", said || "The address is selected. Ctrl + C copies it.");
};
for (const input of cells("source")) input.onchange = () => load(input.value);

/** Begin with the network in the address, if there is one. */
function open() {
  const choice = cells("source")[inAddress() ? 2 : 0];
  $("from-address").hidden = !inAddress();
  choice.checked = true;
  load(choice.value);
}
addEventListener("hashchange", () => inAddress() && open());
for (const part of cells("script")) part.hidden = false; // what is no use without one
open();
