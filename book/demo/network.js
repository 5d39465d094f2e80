// A LeNet-5 of any width, from 28 × 28 pixels to ten logits. Sums have 64 bits; what a layer hands on has 32.

const MEAN = Math.fround(0.1307), DEVIATION = Math.fround(0.3081); // of MNIST's pixels, from 0 to 1

/** Return pixels (0 to 255) as the networks saw them in training. */
export const standardize = (pixels) =>
  Float32Array.from(pixels, (p) => Math.fround(Math.fround(p / 255) - MEAN) / DEVIATION);

/** Return the logits, one for each digit. */
export function logits(arrays, x) {
  const layer = (compute, name, ...input) => compute(arrays[`${name}.weight`], arrays[`${name}.bias`].values, ...input);
  const seen = layer(conv, "conv2", layer(conv, "conv1", x, 28), 12);
  return layer(linear, "fc2", layer(linear, "fc1", seen).map((y) => Math.max(y, 0)));
}

/** Convolution, ReLU, and the largest of each 2 × 2. A weight of zero costs nothing: it is stepped over. */
function conv({ shape: [filters, channels, kernel], values }, bias, x, side) {
  const wide = side - kernel + 1, half = wide / 2, out = new Float32Array(filters * half * half);
  for (let filter = 0, at = 0; filter < filters; filter++) {
    const sums = new Float64Array(wide * wide).fill(bias[filter]);
    for (let i = 0; i < channels * kernel * kernel; i++) {
      const weight = values[at++], place = i % (kernel * kernel);
      if (weight === 0) continue;
      let from = ((i - place) / kernel / kernel * side + Math.floor(place / kernel)) * side + place % kernel;
      for (let to = 0; to < sums.length; from += kernel - 1) {
        for (const end = to + wide; to < end;) sums[to++] += weight * x[from++];
      }
    }
    for (let i = 0; i < sums.length; i++) {
      const to = (filter * half + (i / wide >> 1)) * half + (i % wide >> 1);
      if (sums[i] > out[to]) out[to] = sums[i]; // it begins at 0, which is the ReLU
    }
  }
  return out;
}

function linear({ shape: [length, inputs], values }, bias, x) {
  return Float32Array.from({ length }, (_, unit) => {
    let sum = bias[unit];
    for (let i = 0; i < inputs; i++) sum += values[unit * inputs + i] * x[i];
    return sum;
  });
}

/** Return a probability for each logit. */
export function softmax(found) {
  const most = Math.max(...found), shares = Array.from(found, (x) => Math.exp(x - most));
  return shares.map((share) => share / shares.reduce((a, b) => a + b));
}

/**
 * Bring a drawing (ImageData, white on black) to MNIST's form: its box fits into 20 × 20 pixels, its centre of mass
 * into the middle of 28 × 28. Returns their 784 bytes, or null if nothing is drawn.
 */
export function toMnist({ data, width, height }) {
  const ink = (x, y) => (x >= 0 && x < width && y >= 0 && y < height ? data[4 * (y * width + x)] : 0);
  let left = width, right = 0, top = height, bottom = 0, mass = 0, sumX = 0, sumY = 0;
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) if (ink(x, y)) {
    [left, right, top, bottom] = [Math.min(left, x), Math.max(right, x), Math.min(top, y), Math.max(bottom, y)];
    mass += ink(x, y);
    sumX += ink(x, y) * (x + 0.5);
    sumY += ink(x, y) * (y + 0.5);
  }
  // A new pixel is the mean of 8 × 8 points.
  const size = Math.max(right - left, bottom - top) / 20, point = (centre, n) => Math.floor(centre + ((n + 0.5) / 8 - 14) * size);
  return mass && Uint8Array.from({ length: 784 }, (_, pixel) => {
    let sum = 0;
    for (let i = 0; i < 64; i++) {
      sum += ink(point(sumX / mass, pixel % 28 * 8 + i % 8), point(sumY / mass, (pixel / 28 | 0) * 8 + (i >> 3)));
    }
    return sum / 64;
  });
}
