// Deflate (RFC 1951), backwards, with a dictionary: text that counts as already written, so that copies may begin in it.
// A browser's own DecompressionStream takes none. Blocks that are not compressed are left out: no header needs them.

const ORDER = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/** Return [smallest number, extra bits] of each code; `each` codes have one bit more than those before. */
const ranges = (smallest, length, each) => Array.from({ length }, (_, i) => {
  const extra = Math.max(0, Math.floor(i / each) - 1);
  return [(smallest += 2 ** extra) - 2 ** extra, extra];
});
const LENGTHS = [...ranges(3, 28, 4), [258, 0]], DISTANCES = ranges(1, 30, 2);

/** Huffman's codes follow from their lengths. Return the symbols by length, in the order of their codes. */
const table = (lengths) => Array.from({ length: 15 }, (_, i) => (
  [...lengths.keys()].filter((symbol) => lengths[symbol] === i + 1)
));
const repeat = (pairs) => pairs.flatMap(([times, value]) => Array(times).fill(value));
const USUAL = [table(repeat([[144, 8], [112, 9], [24, 7], [8, 8]])), table(repeat([[30, 5]]))];

/** Return {text, used}: what was packed, and how many bytes of `packed` that took; `dictionary` is a text, too. */
export function inflate(packed, dictionary) {
  const out = [...new TextEncoder().encode(dictionary)], start = out.length;
  let at = 0, last = 0; // `at` counts bits
  const fail = () => { throw Error("the header cannot be decompressed"); };
  const bits = (count) => {
    let found = 0;
    for (let i = 0; i < count; i++, at++) found |= (packed[at >> 3] >> (at & 7) & 1) << i;
    return at > 8 * packed.length || out.length > 2 ** 16 ? fail() : found;
  };
  const symbol = (codes) => {
    let code = 0; // shorter ones come first, and those of one length count upwards
    for (const symbols of codes) {
      code = 2 * code + bits(1);
      if (code < symbols.length) return symbols[code];
      code -= symbols.length;
    }
    return fail();
  };
  const described = () => { // codes of the block's own
    const count = bits(5) + 257, all = count + bits(5) + 1, short = Array(19).fill(0), lengths = [];
    for (let i = 0, end = bits(4) + 4; i < end; i++) short[ORDER[i]] = bits(3);
    for (const codes = table(short); lengths.length < all;) {
      const found = symbol(codes);
      if (found < 16) lengths.push(found);
      else if (found === 16) lengths.push(...repeat([[3 + bits(2), lengths.at(-1)]]));
      else lengths.push(...repeat([[found === 17 ? 3 + bits(3) : 11 + bits(7), 0]]));
    }
    return [table(lengths.slice(0, count)), table(lengths.slice(count))];
  };
  while (!last) {
    last = bits(1);
    const [literals, distances] = [fail, () => USUAL, described, fail][bits(2)]();
    for (let found; (found = symbol(literals)) !== 256;) {
      if (found < 256) out.push(found);
      else { // a copy: so many bytes, from so far back
        const [shortest, extra] = LENGTHS[found - 257] ?? fail(), length = shortest + bits(extra);
        const [nearest, more] = DISTANCES[symbol(distances)] ?? fail(), distance = nearest + bits(more);
        if (distance > out.length) fail();
        for (let i = 0; i < length; i++) out.push(out.at(-distance));
      }
    }
  }
  return { text: new TextDecoder().decode(Uint8Array.from(out.slice(start))), used: at + 7 >> 3 };
}
