// From the picture of a QR code to the bytes in it (ISO/IEC 18004): byte mode, correction level L, versions 27 to 40.
// Nothing is corrected here. The file in the code has a checksum, which tells whether every square was read well.

const BLOCKS = [12, 13, 14, 15, 16, 17, 18, 19, 19, 20, 21, 22, 24, 25]; // by version, from 27
const [DATA, CORRECTS, FINDER, TIMING, FORMAT, REST] = Array(6).keys(); // what a square is for

// The eight masks. One turned over the squares where it gives 0, so that no large area is plain.
const masks = (x, y, xy = x * y) => [
  (x + y) % 2, y % 2, x % 3, (x + y) % 3, ((x / 3 | 0) + (y / 2 | 0)) % 2,
  xy % 2 + xy % 3, (xy % 2 + xy % 3) % 2, ((x + y) % 2 + xy % 3) % 2,
];

/**
 * Read a picture (ImageData) with one pixel for each square, without the light edge. Returns {bytes, version, side,
 * mask, blocks, dark, kinds}: the bytes, and of each square, row by row, whether it is dark, and what it is for.
 */
export function readCode({ data, width: side }) {
  const version = (side - 17) / 4, blocks = BLOCKS[version - 27];
  if (!blocks) throw Error(`a code of ${side} squares a side is none of versions 27 to 40`);
  const dark = Array.from({ length: side * side }, (_, i) => +(data[4 * i] < 128));
  // Beside a corner it says, turned over by another mask, 01 for level L, and which mask was taken.
  const format = [1, 2, 3, 4, 5].reduce((sum, i) => 2 * sum + dark[8 + side * (side - i)], 0) ^ 0b10101;
  const mask = format & 7;
  if (format >> 3 !== 1) throw Error("the QR code is damaged, or not of correction level L");

  // The data runs up and down in columns of two squares, from the right, around everything else.
  const kinds = layout(side, version), path = [];
  for (let right = side - 1; right > 0; right -= 2) {
    if (right === 6) right--; // a column of timing
    for (let i = 0; i < side; i++) {
      const y = right + 1 & 2 ? i : side - 1 - i;
      for (const x of [right, right - 1]) if (kinds[y * side + x] === DATA) path.push(y * side + x);
    }
  }
  const words = new Uint8Array(path.length >> 3);
  path.forEach((at, i) => {
    words[i >> 3] = words[i >> 3] << 1 | dark[at] ^ !masks(at % side, at / side | 0)[mask];
  });

  // Bytes were dealt out to the blocks like cards; the last blocks may have one more.
  const hands = Array.from({ length: blocks }, () => []), dealt = words.length - 30 * blocks;
  const even = dealt - dealt % blocks;
  for (let i = 0; i < dealt; i++) hands[i < even ? i % blocks : blocks - dealt + i].push(words[i]);
  path.forEach((at, i) => { kinds[at] = i < 8 * dealt ? DATA : i < 8 * words.length ? CORRECTS : REST; });

  // Four bits say "bytes follow", sixteen how many: so every byte lies across two.
  const stream = hands.flat(), byte = (i) => (stream[i] & 15) << 4 | stream[i + 1] >> 4;
  const length = byte(0) << 8 | byte(1);
  if (stream[0] >> 4 !== 4 || length + 3 > dealt) throw Error("the QR code is damaged");
  return { bytes: Uint8Array.from({ length }, (_, i) => byte(2 + i)), version, side, mask, blocks, dark, kinds };
}

/** Return what each square is for, if it lies in a fixed place, and DATA everywhere else. */
function layout(side, version) {
  const kinds = new Uint8Array(side * side), far = side - 8;
  const fill = (kind, x, y, width, height) => {
    for (let row = y; row < y + height; row++) kinds.fill(kind, row * side + x, row * side + x + width);
  };
  const count = (version / 7 | 0) + 1, step = version === 32 ? 26 : 2 * Math.ceil((2 * version + 2) / count);
  const centres = [6, ...Array.from({ length: count }, (_, i) => far + 1 - i * step)]; // of alignment
  fill(TIMING, 6, 0, 1, side);
  fill(TIMING, 0, 6, side, 1);
  centres.forEach((x, i) => centres.forEach((y, j) => {
    if (i + j > 1) fill(TIMING, x - 2, y - 2, 5, 5); // the other three lie in corners
  }));
  for (const [x, y] of [[0, 0], [far, 0], [0, far]]) {
    fill(FORMAT, x, y, x ? 8 : 9, y ? 8 : 9);
    fill(FINDER, x, y, 8, 8);
  }
  fill(FORMAT, far - 3, 0, 3, 6); // the version's number, twice
  fill(FORMAT, 0, far - 3, 6, 3);
  return kinds;
}
