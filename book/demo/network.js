// A LeNet-5 of any width, from 28 × 28 pixels to ten logits. Sums have 64 bits; what a layer hands on has 32.

/** Return the logits, one for each digit. */
export function logits(arrays, x) {
  const layer = (compute, name, ...input) => compute(arrays[`${name}.weight`], arrays[`${name}.bias`].values, ...input);
  const seen = layer(conv, "conv2", layer(conv, "conv1", x, 28), 12);
  return layer(linear, "fc2", layer(linear, "fc1", seen).map((y) => Math.max(y, 0)));
}

/** Convolution with filters of 5 × 5, ReLU, and the largest of each 2 × 2. A weight of zero is stepped over. */
function conv({ shape: [filters, channels], values }, bias, x, side) {
  const wide = side - 4, half = wide / 2, out = new Float32Array(filters * half * half);
  for (let filter = 0, at = 0; filter < filters; filter++) {
    const sums = new Float64Array(wide * wide).fill(bias[filter]);
    for (let i = 0; i < 25 * channels; i++) {
      const weight = values[at++], place = i % 25;
      if (weight === 0) continue;
      let from = ((i - place) / 25 * side + (place / 5 | 0)) * side + place % 5;
      for (let to = 0; to < sums.length; from += 4) {
        for (const end = to + wide; to < end;) sums[to++] += weight * x[from++];
      }
    }
    sums.forEach((sum, i) => {
      const to = (filter * half + (i / wide >> 1)) * half + (i % wide >> 1);
      if (sum > out[to]) out[to] = sum; // it begins at 0, which is the ReLU
    });
  }
  return out;
}

function linear({ values }, bias, x) {
  return bias.map((sum, unit) => {
    for (let i = 0; i < x.length; i++) sum += values[unit * x.length + i] * x[i];
    return sum;
  });
}

/** Return a probability for each logit. */
export function softmax(found) {
  const most = Math.max(...found), shares = Array.from(found, (x) => Math.exp(x - most));
  return shares.map((share) => share / shares.reduce((a, b) => a + b));
}

/**
 * Bring a drawing (a square ImageData, white on black) to MNIST's form: its box fits into 20 × 20 pixels, its centre of
 * mass into the middle of 28 × 28. Returns their 784 bytes, or 0 if nothing is drawn.
 */
export function toMnist({ data, width: side }) {
  const ink = (x, y) => (x >= 0 && x < side && data[4 * (y * side + x)]) || 0;
  let left = side, right = 0, top, bottom, mass = 0, sumX = 0, sumY = 0;
  for (let y = 0; y < side; y++) for (let x = 0; x < side; x++) if (ink(x, y)) {
    left = Math.min(left, x);
    right = Math.max(right, x);
    top ??= y;
    bottom = y;
    mass += ink(x, y);
    sumX += ink(x, y) * (x + 0.5);
    sumY += ink(x, y) * (y + 0.5);
  }
  // A new pixel is the mean of 8 × 8 points.
  const size = Math.max(right - left, bottom - top) / 20;
  const point = (sum, n) => Math.floor(sum / mass + ((n + 0.5) / 8 - 14) * size);
  return mass && Uint8Array.from({ length: 784 }, (_, pixel) => {
    let sum = 0;
    for (let i = 0; i < 64; i++) {
      sum += ink(point(sumX, pixel % 28 * 8 + i % 8), point(sumY, (pixel / 28 | 0) * 8 + (i >> 3)));
    }
    return sum / 64;
  });
}
