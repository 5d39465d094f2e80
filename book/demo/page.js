// The page: a digit is drawn or chosen, and two networks answer. What the stages show is in stages.js.
import { decode } from "./coded.js";
import { logits, softmax, standardize, toMnist } from "./network.js";
import { readCode } from "./qr.js";
import { $, cells, grey, paint, showAnswer, showCode, showFile } from "./stages.js";

const here = (name) => new URL(name, import.meta.url).href;
const get = async (name) => {
  const answer = await fetch(here(name));
  if (!answer.ok) throw Error(`${name} cannot be loaded`);
  return answer;
};
const fromBase64 = (text) => {
  try {
    return Uint8Array.from(atob(text), (c) => c.charCodeAt());
  } catch {
    throw Error("the address is damaged");
  }
};
const canvas = $("draw"), pen = canvas.getContext("2d", { willReadFrequently: true });
const networks = {}; // "small" and "large": from standardized pixels to logits
let digit = null, isDrawing = false, isFresh = true; // digit: 784 bytes

// --- The network in the code, or in the address.

// The file stands after the #, in base64 as addresses write it. All of these files begin alike.
const inAddress = () => (location.hash.startsWith("#TUNQQUNL") ? location.hash.slice(1) : null);

/** Return the picture of a code, one pixel for each square. */
async function picture(name) {
  const image = new Image();
  image.src = here(name);
  await image.decode().catch(() => { throw Error("the picture of the code cannot be loaded"); });
  const context = paint(document.createElement("canvas"), image.width, image.height, () => []).getContext("2d");
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, image.width, image.height);
}

let loads = 0, dictionaries;
/** Load a network from "address" or from the picture of a code. After an error there is none. */
async function load(source) {
  const mine = ++loads, isAddress = source === "address";
  networks.small = null;
  let message = "";
  try {
    dictionaries ??= await (await get("words.json")).json();
    const image = isAddress || await picture(source), start = performance.now();
    const code = isAddress ? { bytes: fromBase64(inAddress().replace(/-/g, "+").replace(/_/g, "/")) } : readCode(image);
    const middle = performance.now(), file = await decode(code.bytes, dictionaries), end = performance.now();
    if (mine !== loads) return; // another was chosen meanwhile
    networks.small = (x) => logits(file.arrays, x);
    $("small-bytes").textContent = code.bytes.length.toLocaleString("en");
    $("small-load").textContent = `${(middle - start).toFixed(1)} ms to read, ${(end - middle).toFixed(1)} ms to decode`;
    $("address").value = location.href.split("#")[0] + "#"
      + btoa(String.fromCharCode(...code.bytes)).replace(/\+/g, "-").replace(/\//g, "_").replace(/=/g, "");
    if (!isAddress) showCode(code);
    showFile(code.bytes, file);
    if (!crypto.subtle) message = "The checksum was not verified: for that, a browser wants a page that came through https.";
  } catch (error) {
    message = `No network was loaded: ${error.message}.`;
  }
  $("message").textContent = message;
  for (const part of cells("code")) part.hidden = isAddress;
  if (!isAddress) $("code").src = here(source);
  await update();
}

// --- The answers.

/** Let a network answer as often as fits into 5 ms: the time shown is the mean. Return a sentence. */
async function ask(which) {
  const x = digit && standardize(digit), start = performance.now();
  let found = null, runs = 0, ms = 0;
  if (x && networks[which]) do {
    found = await networks[which](x);
    ms = performance.now() - start;
  } while (++runs < 20 && ms < 5);
  const shares = found && softmax(found);
  return showAnswer(which, found, shares, found && shares.indexOf(Math.max(...shares)), ms / runs);
}

let isBusy = false, isWanted = false;
/** Let both networks answer, again if more was drawn meanwhile. A screen reader hears it when the pen is up. */
async function update() {
  isWanted = true;
  if (isBusy) return;
  isBusy = true;
  while (isWanted) {
    isWanted = false;
    const said = await ask("small") + await ask("large");
    if (!isDrawing) $("said").textContent = said || (digit ? "No network is here to answer." : "Draw a digit, or choose one.");
  }
  isBusy = false;
}

// --- The digit.

function show(bytes) {
  digit = bytes;
  paint($("seen"), 28, 28, grey(bytes ?? new Uint8Array(784)));
  update();
}

function clear() {
  pen.fillRect(0, 0, canvas.width, canvas.height);
  isFresh = true;
  show(null);
}

canvas.onpointerdown = canvas.onpointermove = (event) => {
  const zoom = canvas.width / canvas.clientWidth, at = [event.offsetX * zoom, event.offsetY * zoom];
  if (event.type === "pointerdown") {
    if (!isFresh) clear();
    canvas.setPointerCapture(event.pointerId);
    isDrawing = true;
    pen.beginPath();
    pen.moveTo(...at);
  }
  if (!isDrawing) return;
  pen.lineTo(...at);
  pen.stroke();
  show(toMnist(pen.getImageData(0, 0, canvas.width, canvas.height)));
};
canvas.onpointerup = canvas.onpointercancel = () => {
  isDrawing = false;
  update();
};
$("clear").onclick = clear;
Object.assign(pen, { lineWidth: 22, lineCap: "round", lineJoin: "round", strokeStyle: "white" });
clear();

for (const { label, index, pixels } of await (await get("examples.json")).json()) {
  const button = document.createElement("button"), bytes = fromBase64(pixels);
  button.append(paint(document.createElement("canvas"), 28, 28, grey(bytes)));
  button.setAttribute("aria-label", `${label}, test image ${index}`);
  button.onclick = () => {
    show(bytes);
    pen.drawImage($("seen"), 0, 0, canvas.width, canvas.height);
    isFresh = false; // the next stroke begins a new drawing
  };
  $("examples").append(button);
}

// --- What else can be pressed.

$("load-large").onclick = async () => {
  const say = (text) => { $("large-load").textContent = text; }, start = performance.now();
  $("load-large").disabled = true;
  say("loading …");
  try {
    const ort = await import("../ort/ort.wasm.min.mjs"), file = await (await get("lenet5.onnx")).arrayBuffer();
    Object.assign(ort.env.wasm, { wasmPaths: here("../ort/"), numThreads: 1 });
    const session = await ort.InferenceSession.create(file);
    networks.large = async (x) => (await session.run({ input: new ort.Tensor(x, [1, 1, 28, 28]) })).logits.data;
    $("large-bytes").textContent = file.byteLength.toLocaleString("en");
    say(`${(performance.now() - start).toFixed(0)} ms, runtime included`);
  } catch (error) {
    $("load-large").disabled = false;
    say(`not loaded: ${error.message}`);
  }
  update();
};
$("copy").onclick = async () => {
  $("address").select();
  const isCopied = await navigator.clipboard?.writeText($("address").value).then(() => true, () => false);
  $("copied").textContent = isCopied ? "Copied." : "The address is selected. Ctrl + C copies it.";
};
for (const input of cells("source")) input.onchange = () => load(input.value);

/** Begin with the network in the address, if there is one. */
function open() {
  const source = inAddress() ? "address" : "thin.svg";
  $("from-address").hidden = !inAddress();
  for (const input of cells("source")) input.checked = input.value === source;
  return load(source);
}
addEventListener("hashchange", () => inAddress() && open());
for (const part of cells("script")) part.hidden = false; // what is no use without one
await open();
