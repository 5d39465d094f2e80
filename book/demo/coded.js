// From the bytes of an entropy-coded file to the arrays of a LeNet-5. helpers/files/coded.py says what stands where.
import { inflate } from "./inflate.js";

const WORD = 2 ** 32;
const product = (shape) => shape.reduce((a, b) => a * b);

/** Takes decision after decision out of one long number, into which a range coder (Martin 1979) put them. */
class Reader {
  units = new Map(); // of the latest matrix with so many rows: which are alive
  lines = new Map(); // of the latest single row of this length: what is not zero
  bits = 0; // spent
  next = 2;

  constructor(words) { // whole numbers of 32 bits
    this.words = words;
    // The range that is left, and where in it the number lies. Both have 64 bits: two halves, as JavaScript's numbers
    // are exact to 2^53 only.
    this.high = this.low = WORD - 1;
    [this.atHigh, this.atLow] = words;
  }

  /** Return 0 or 1. `state`, [decisions, ones] so far in this context, gives the probability of a 1, and is updated. */
  decide(state) {
    const one = Math.max(Math.floor((5 * state[1] + 2) * 65536 / (5 * state[0] + 4)), 1); // of 2^16
    const zero = Math.floor((65536 - one) * (2 ** 24 - 2) / 65536) + 1; // of 2^24, as `constriction` rounds it
    // The border between 0 and 1: a 2^24th of the range, times `zero`, in halves again (>>> 0 keeps the last 32 bits).
    const part = this.high * 256 + (this.low >>> 24), top = Math.floor(part / 65536) * zero;
    const rest = (top & 65535) * 65536 + (part & 65535) * zero, low = rest >>> 0;
    const high = Math.floor(top / 65536) + Math.floor(rest / WORD);
    const answer = +(this.atHigh > high || (this.atHigh === high && this.atLow >= low));
    if (answer) { // what lies above it
      const whole = (this.low & 0xff000000) >>> 0;
      this.high -= high + (whole < low);
      this.low = (whole - low) >>> 0;
      this.atHigh -= high + (this.atLow < low);
      this.atLow = (this.atLow - low) >>> 0;
    } else {
      this.high = high;
      this.low = low;
    }
    if (this.high === 0) { // the range gets short: go on with the next word
      this.high = this.low;
      this.low = 0;
      this.atHigh = this.atLow;
      this.atLow = this.words[this.next++] ?? 0;
    }
    this.bits -= Math.log2((answer ? one : 65536 - one) / 65536);
    state[0] += 1;
    state[1] += answer;
    return answer;
  }

  alive(length, context) {
    const states = [[0, 0], [0, 0]];
    return Array.from({ length }, (_, i) => this.decide(states[context(i)]));
  }

  /** Return which places of a matrix are not zero, row by row. */
  positions(rows, columns) {
    const most = Math.max(0, ...[...this.units.keys()].filter((count) => columns % count === 0));
    const unit = this.units.get(most), line = this.lines.get(rows);
    const filled = this.alive(columns, (i) => unit?.[Math.floor(i * most / columns)] ?? 0);
    if (rows === 1) {
      this.lines.set(columns, filled);
      return filled;
    }
    const active = this.alive(rows, (i) => line?.[i] ?? 0), kept = new Uint8Array(rows * columns), states = [];
    this.units.set(rows, active);
    const places = [...filled.keys()].filter((column) => filled[column]);
    active.forEach((isAlive, row) => {
      let ones = 0, last = 0; // the last four answers, as bits
      if (isAlive) places.forEach((column, before) => {
        const length = 32 - Math.clz32((before + 4) / (ones + 1)), few = last & last - 1 ? 2 : +!!last;
        const answer = kept[row * columns + column] = this.decide(states[3 * length + few] ??= [0, 0]);
        ones += answer;
        last = (2 * last + answer) & 15;
      });
    });
    return kept;
  }

  /** Return `length` numbers below `alphabet`, each bit in the context of those before it. */
  values(length, alphabet) {
    const width = 32 - Math.clz32(alphabet - 1), states = [];
    return Array.from({ length }, () => {
      let node = 1;
      for (let i = 0; i < width; i++) node = 2 * node + this.decide(states[node] ??= [0, 0]);
      return node - 2 ** width;
    });
  }

  /** Return an array of the header; `floats` takes plain numbers. */
  array([, , shape, hasPositions, kind, ...how], floats) {
    const rows = shape[1] ? shape[0] : 1, size = product(shape), start = this.bits;
    const kept = hasPositions ? this.positions(rows, size / rows) : Array(size).fill(1), middle = this.bits;
    const count = kept.reduce((a, b) => a + b), isGrid = kind === "grid", isRaw = kind === "raw";
    const plain = floats(isRaw ? count : how[isGrid ? 2 : 0]), lowest = isGrid ? how[0] : 0;
    if (count > 65536) throw Error("the file holds more than this page decodes");
    const numbers = isRaw ? [...plain.keys()] : this.values(count, isGrid ? how[1] - hasPositions : how[0]);
    // On a grid a value is scale · step. Where positions are known, the step 0 has no number.
    const steps = numbers.map((n) => n + lowest + (hasPositions && n + lowest >= 0));
    let next = 0;
    const values = Float32Array.from(kept, (one, i) => {
      if (!one) return 0;
      const n = next++, scale = plain[plain.length > 1 ? Math.floor(i * rows / size) : 0];
      return isGrid ? scale * steps[n] + 0 : plain[numbers[n]];
    });
    return { shape, kept, count, values, plain, steps: isGrid ? steps : [], bits: [middle - start, this.bits - middle] };
  }
}

/** Decode a file: {header, used, plain, coded, arrays}; `dictionaries` are words of headers, by the format's version. */
export async function decode(bytes, dictionaries) {
  const words = dictionaries[bytes[6]];
  if (String.fromCharCode(...bytes.subarray(0, 6)) !== "MCPACK" || !words) throw Error("this is no coded network");
  if (crypto.subtle) { // a browser has it where the page came through https, or from this machine
    const sum = await crypto.subtle.digest("SHA-256", bytes.filter((_, i) => i < 8 || i > 11));
    if (new Uint8Array(sum, 0, 4).some((byte, i) => byte !== bytes[8 + i])) {
      throw Error("the checksum does not match: a byte was read wrongly, or changed");
    }
  }
  const { text, used } = inflate(bytes.subarray(12), words), lines = JSON.parse(text), rest = bytes.slice(12 + used);
  const plain = lines.shift(), name = bytes[6] === 4 ? lines.shift() : "lenet5";
  if (name !== "lenet5" || !isLenet(lines)) throw Error("the file holds no LeNet-5");
  const reader = new Reader(new Uint32Array(rest.slice(plain).buffer)), view = new DataView(rest.buffer, 0, plain);
  let taken = 0;
  const floats = (length) => Float32Array.from({ length }, () => view.getFloat32(4 * taken++, true));
  const arrays = Object.fromEntries(lines.map((line) => [line[0], reader.array(line, floats)]));
  return { header: text, used, plain, coded: rest.length - plain, arrays };
}

/** Return whether these are the layers of a LeNet-5, of any width: each reads what the one before it makes. */
function isLenet(lines) {
  const shapes = Object.fromEntries(lines.map(([name, type, shape]) => [name, type === "<f4" && shape]));
  const [first, second, hidden] = ["conv1", "conv2", "fc1"].map((layer) => shapes[`${layer}.weight`]?.[0]);
  const layers = { conv1: [first, 1, 5, 5], conv2: [second, first, 5, 5], fc1: [hidden, 16 * second], fc2: [10, hidden] };
  return lines.length === 8 && Object.entries(layers).every(([layer, shape]) => product(shape) < 2 ** 21
    && `${shapes[`${layer}.weight`]}|${shapes[`${layer}.bias`]}` === `${shape}|${shape[0]}`);
}
