// What the stages between the squares and the answer have to show.

export const $ = (name) => document.getElementById(`qd-${name}`);
export const cells = (name) => [...document.querySelectorAll(`[data-${name}]`)];
const number = (x) => x.toLocaleString("en", { maximumFractionDigits: 1 });
// Of data, correction, finders, timing, format and rest; then weights above zero and below.
const COLOURS = [[21, 128, 61], [126, 34, 206], [30, 64, 175], [14, 116, 144], [190, 18, 60], [75, 85, 99]];
const ABOVE = [234, 88, 12], BELOW = [37, 99, 235];

/** Give a canvas this size, and each pixel the colour [red, green, blue, alpha] of its number. */
export function paint(canvas, width, height, colour) {
  const context = Object.assign(canvas, { width, height }).getContext("2d"), image = context.createImageData(width, height);
  for (let i = 0; i < width * height; i++) image.data.set(colour(i), 4 * i);
  context.putImageData(image, 0, 0);
  return canvas;
}
export const grey = (bytes) => (i) => [bytes[i], bytes[i], bytes[i], 255];

/** A small picture, which the line below it describes. */
function figure(width, height, colour, text) {
  const made = document.createElement("figure"), caption = document.createElement("figcaption");
  made.append(paint(document.createElement("canvas"), width, height, colour), caption);
  caption.append(text);
  return made;
}

function fill(table, lines) {
  table.replaceChildren(...lines.map((line) => {
    const row = document.createElement("tr");
    for (const text of line) row.insertCell().append(text);
    return row;
  }));
}

export function showCode({ version, side, mask, blocks, dark, kinds }) {
  paint($("regions"), side, side, (i) => [...COLOURS[kinds[i]].map((c) => (dark[i] ? c : 200 + c / 5)), 255]);
  $("squares").textContent = `Version ${version}: ${side} × ${side} squares, mask ${mask}, ${blocks} blocks.`;
  cells("kind").forEach((cell, kind) => {
    cell.textContent = number(kinds.filter((k) => k === kind).length);
    cell.style.borderColor = `rgb(${COLOURS[kind]})`;
  });
}

export function showFile(bytes, { header, used, plain, coded, arrays }) {
  const all = Object.entries(arrays), weights = all.filter(([name]) => name.endsWith("weight"));
  let at = 0;
  fill($("bytes"), [6, 2, 4, used, plain, coded].map((length, i) => {
    const first = [...bytes.slice(at, at + Math.min(length, 6))].map((byte) => byte.toString(16).padStart(2, "0"));
    at += length;
    return [number(at - length), number(length), first.join(" "), ["the letters MCPACK", "version of the format", "checksum",
      `header, ${header.length} characters deflated`, "plain numbers: sizes of steps", "positions and values"][i]];
  }));
  $("header").textContent = header;
  fill($("arrays"), all.map(([name, { shape, count, values, bits, plain: [step] }]) => [
    name, shape.join(" × "), `${number(count)} of ${number(values.length)}`, ...bits.map((b) => number(b / 8)), step.toPrecision(3),
  ]));
  $("positions").replaceChildren(...weights.map(([name, { shape, kept }]) => (
    figure(kept.length / shape[0], shape[0], (i) => [...BELOW, 255 * kept[i]], name)
  )));
  // The histogram: a column for each step, as high as it is frequent.
  const steps = weights.flatMap(([, array]) => array.steps), lowest = Math.min(...steps), width = Math.max(...steps) - lowest + 1;
  const counts = Array(width).fill(0);
  for (const step of steps) counts[step - lowest]++;
  const most = Math.max(...counts), common = counts.indexOf(most);
  $("steps").replaceChildren(figure(width, 40, (i) => [...BELOW, counts[i % width] / most * 40 >= 40 - (i / width | 0) && 255],
    `From ${lowest} to ${lowest + width - 1}. The commonest step is ${common + lowest}: ${number(most)} of ${number(steps.length)}.`));
  const { shape: [length], values } = arrays["conv1.weight"], largest = Math.max(...values.map(Math.abs));
  $("filters").replaceChildren(...Array.from({ length }, (_, filter) => figure(5, 5, (i) => {
    const value = values[25 * filter + i];
    return [...(value > 0 ? ABOVE : BELOW), 255 * Math.abs(value) / largest];
  }, filter + 1)));
}

/** Show the answer of "small" or "large": probabilities, logits, and the milliseconds that it took. */
export function showAnswer(which, logits, shares, best, ms) {
  const percent = (share) => `${(100 * share).toFixed(1)} %`;
  cells(`of=${which}`).forEach((cell, i) => {
    cell.textContent = logits ? percent(shares[i]) : "";
    cell.style.setProperty("--share", logits ? shares[i] : 0);
    cell.className = i === best ? "qd-best" : "";
  });
  cells(`logit=${which}`).forEach((cell, i) => { cell.textContent = logits ? logits[i].toFixed(3) : ""; });
  $(`${which}-answer`).textContent = logits ? best : "–";
  $(`${which}-ms`).textContent = logits ? `${ms.toFixed(2)} ms` : "";
  return logits ? `${which === "small" ? "Small" : "Large"} network: ${best}, ${percent(shares[best])}. ` : "";
}
