// From the bytes of an entropy-coded file to the arrays of a LeNet-5. helpers/files/coded.py says what stands where.
import { inflate } from "./inflate.js";

const WORD = 2n ** 32n;
// Names and shapes of a LeNet-5, of up to 99 filters and 999 neurons: each layer reads what the one before it makes.
const LENET = RegExp("^conv1.bias (\\d\\d?) conv1.weight \\1,1,5,5 conv2.bias (\\d\\d?) conv2.weight \\2,\\1,5,5 "
  + "fc1.bias (\\d{1,3}) fc1.weight \\3,(\\d+) fc2.bias 10 fc2.weight 10,\\3$");

/** Return a function that decodes the next array, by its line in the header. `plain` are numbers, `words` 32 bits. */
function decoder(plain, words) {
  const units = []; // of the latest matrix with so many rows: which are alive
  const lines = []; // of the latest single row of this length: what is not zero
  let taken = 0, bits = 0; // plain numbers; and what was spent on decisions
  let next = 0;
  const word = () => BigInt(words[next++] ?? 0);
  // A range coder (Martin 1979) put all decisions into one long number. What is left of its range, and its place there:
  let range = WORD * WORD - 1n, at = word() * WORD + word();

  /** Return 0 or 1. What came before in this context, [decisions, ones], gives the probability of a 1. */
  const decide = (states, context) => {
    const state = states[context] ??= [0, 0];
    const one = Math.max(Math.floor((5 * state[1] + 2) * 65536 / (5 * state[0] + 4)), 1); // of 2^16
    const zero = Math.floor((65536 - one) * (2 ** 24 - 2) / 65536) + 1; // of 2^24, as `constriction` rounds it
    const unit = range >> 24n, border = unit * BigInt(zero), answer = +(at >= border);
    if (answer) at -= border;
    range = answer ? (unit << 24n) - border : border;
    if (range < WORD) { // it gets short: go on with the next word
      range *= WORD;
      at = at * WORD + word();
    }
    bits -= Math.log2((answer ? one : 65536 - one) / 65536);
    state[0]++;
    state[1] += answer;
    return answer;
  };

  /** Return which units are alive, each in the context of one before, which has `each` of them. */
  const alive = (length, before = [], each = 1) => {
    const states = [];
    return Array.from({ length }, (_, i) => decide(states, before[Math.floor(i / each)] ?? 0));
  };

  /** Return which places of a matrix are not zero, row by row. */
  const positions = (rows, columns) => {
    const most = Math.max(0, ...Object.keys(units).filter((count) => columns % count === 0));
    const filled = alive(columns, units[most], columns / most);
    if (rows === 1) return lines[columns] = filled;
    const active = units[rows] = alive(rows, lines[rows]), kept = new Uint8Array(rows * columns), states = [];
    const places = [...filled.keys()].filter((column) => filled[column]);
    active.forEach((isAlive, row) => {
      let ones = 0, last = 0; // the last four answers, as bits
      if (isAlive) places.forEach((column, before) => {
        const length = 32 - Math.clz32((before + 4) / (ones + 1)), few = last & last - 1 ? 2 : +!!last;
        const answer = kept[row * columns + column] = decide(states, 3 * length + few);
        ones += answer;
        last = (2 * last + answer) & 15;
      });
    });
    return kept;
  };

  /** Return `length` numbers below `alphabet`, each bit in the context of those before it. */
  const numbers = (length, alphabet) => {
    const width = 32 - Math.clz32(alphabet - 1), states = [];
    return Array.from({ length }, () => {
      let node = 1;
      for (let i = 0; i < width; i++) node = 2 * node + decide(states, node);
      return node - 2 ** width;
    });
  };

  return ([, , shape, sparse, kind, ...how]) => { // the last of `how`: plain numbers
    const rows = shape[1] ? shape[0] : 1, size = shape.reduce((a, b) => a * b), start = bits;
    const kept = sparse ? positions(rows, size / rows) : Array(size).fill(1), middle = bits;
    const isGrid = kind === "grid", places = [];
    for (let i = -1; (i = kept.indexOf(1, i + 1)) >= 0;) places.push(i);
    const count = places.length;
    if (count > 65536) throw Error("the file holds more than this page decodes");
    const own = plain.slice(taken, taken += how.at(-1) ?? count), values = new Float32Array(size);
    const found = kind === "raw" ? [...own.keys()] : numbers(count, isGrid ? how[1] - sparse : how[0]);
    // On a grid a value is scale · step. Where positions are known, the step 0 has no number.
    const steps = isGrid ? found.map((n) => n + how[0] + (sparse && n + how[0] >= 0)) : [];
    places.forEach((place, i) => {
      values[place] = isGrid ? own[Math.floor(place * own.length / size)] * steps[i] + 0 : own[found[i]];
    });
    return { shape, kept, count, values, steps, step: own[0], bits: [middle - start, bits - middle] };
  };
}

/**
 * Decode a file: its header, the lengths of its parts, and its arrays by name. `dictionaries` are texts of which
 * headers are made, by the format's version.
 */
export async function decode(bytes, dictionaries) {
  const words = dictionaries[bytes[6]];
  if (String.fromCharCode(...bytes.slice(0, 6)) !== "MCPACK" || !words) throw Error("this is no coded network");
  if (crypto.subtle) { // a browser has it where the page came through https, or from this machine
    const sum = await crypto.subtle.digest("SHA-256", bytes.filter((_, i) => i < 8 || i > 11));
    if (new Uint8Array(sum, 0, 4).some((byte, i) => byte !== bytes[8 + i])) {
      throw Error("the checksum does not match: a byte was read wrongly, or changed");
    }
  }
  const { text: header, used } = inflate(bytes.slice(12), words), [plain, ...more] = JSON.parse(header);
  const lines = more.filter(Array.isArray), rest = bytes.slice(12 + used); // a network may say its name first
  const known = LENET.exec(lines.map(([name, type, shape]) => `${name} ${type === "<f4" && shape}`).sort().join(" "));
  if (+known?.[4] !== 16 * known?.[2]) throw Error("the file holds no LeNet-5");
  const next = decoder(new Float32Array(rest.slice(0, plain).buffer), new Uint32Array(rest.slice(plain).buffer));
  const arrays = Object.fromEntries(lines.map((line) => [line[0], next(line)]));
  return { header, lengths: [6, 2, 4, used, plain, rest.length - plain], arrays };
}
