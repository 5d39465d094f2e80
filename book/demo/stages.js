// What the page shows of the stages between the squares and the answer.

export const $ = (name) => document.getElementById(`qd-${name}`);
export const cells = (name) => document.querySelectorAll(`[data-${name}]`);
const number = (x) => x.toLocaleString("en", { maximumFractionDigits: 1 });
export const write = (name, text) => { $(name).textContent = text; };
/** Write a text into each of the cells of this name; where there is none, nothing. */
const fill = (name, texts) => cells(name).forEach((cell, i) => { cell.textContent = texts[i] ?? ""; });

/** Give a canvas this size, and each pixel the colour [red, green, blue, opacity] of its number. */
function paint(canvas, width, height, colour) {
  const context = Object.assign(canvas, { width, height }).getContext("2d");
  const image = context.createImageData(width, height);
  for (let i = 0; i < width * height; i++) image.data.set(colour(i), 4 * i);
  context.putImageData(image, 0, 0);
}
export const paintDigit = (canvas, bytes) => paint(canvas, 28, 28, (i) => [...Array(3).fill(bytes?.[i]), 255]);
/** Blue above zero, orange below; at zero nothing. */
const tint = (share) => [...(share > 0 ? [37, 99, 235] : [234, 88, 12]), 255 * Math.abs(share)];

export function showCode({ version, side, mask, blocks, dark, kinds }) {
  const jobs = [...cells("kind")], colours = jobs.map((cell) => cell.style.borderColor.match(/\d+/g));
  paint($("regions"), side, side, (i) => [...colours[kinds[i]], dark[i] ? 255 : 50]);
  fill("fact", [version, side, mask, blocks]);
  fill("kind", jobs.map((_, kind) => number(kinds.filter((k) => k === kind).length)));
}

export function showFile(bytes, { header, lengths, arrays }) {
  let at = 0;
  const hex = (byte) => byte.toString(16).padStart(2, "0");
  fill("part", lengths.flatMap((length) => (
    [at, length, Array.from(bytes.slice(at, at += length).slice(0, 6), hex).join(" ")]
  )));
  write("small-bytes", number(at));
  write("header", header);
  fill("array", Object.entries(arrays).flatMap(([name, { shape, count, values, bits, step }]) => [
    name, shape.join(" × "), `${number(count)} of ${number(values.length)}`,
    ...bits.map((b) => number(b / 8)), step?.toPrecision(3),
  ]));

  const counts = { 0: 0 }; // of each step
  for (const canvas of cells("weights")) {
    const { shape: [rows], kept, steps } = arrays[canvas.dataset.weights];
    paint(canvas, kept.length / rows, rows, (i) => tint(kept[i]));
    for (const step of steps) counts[step] = (counts[step] ?? 0) + 1;
  }
  const found = Object.keys(counts), lowest = Math.min(...found), highest = Math.max(...found);
  const most = Math.max(...Object.values(counts)), wide = highest - lowest + 1;
  paint($("steps"), wide, 40, (i) => tint(40 * counts[lowest + i % wide] > (39 - (i / wide | 0)) * most));
  fill("step", [lowest, highest, number(most)]);

  // The filters, side by side: each five pixels wide, and one between them.
  const { shape: [filters], values } = arrays["conv1.weight"], largest = Math.max(...values.map(Math.abs));
  const width = 6 * filters - 1;
  paint($("filters"), width, 5, (i) => {
    const x = i % width, share = values[25 * (x / 6 | 0) + 5 * (i / width | 0) + x % 6] / largest;
    return x % 6 > 4 ? [] : tint(share);
  });
}

/** Show the answer of "small" or "large", if there is one: probabilities, logits, and the milliseconds it took. */
export function showAnswer(which, logits = [], shares = [], ms) {
  const best = shares.indexOf(Math.max(...shares)), percents = shares.map((share) => `${(100 * share).toFixed(1)} %`);
  fill(`of=${which}`, percents);
  cells(`of=${which}`).forEach((cell, i) => {
    cell.style = `--share: ${shares[i] ?? 0}`;
    cell.classList.toggle("qd-best", i === best);
  });
  fill(`logit=${which}`, Array.from(logits, (x) => x.toFixed(3)));
  fill(`result=${which}`, best < 0 ? ["–"] : [best, `${ms.toFixed(2)} ms`]);
  return best < 0 ? "" : `${which === "small" ? "Small" : "Large"} network: ${best}, ${percents[best]}. `;
}
