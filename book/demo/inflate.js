// Deflate (RFC 1951), backwards, with a dictionary: text that counts as already written, so copies may begin in it.
// A browser's own DecompressionStream takes none. Blocks that are not compressed are left out: no header needs them.

const ORDER = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/** Huffman's codes follow from their lengths. Return the symbols by length, in the order of their codes. */
const table = (lengths) => Array.from({ length: 15 }, (_, i) => (
  [...lengths.keys()].filter((symbol) => lengths[symbol] === i + 1)
));
const usual = Array.from({ length: 288 }, (_, i) => (i < 144 || i > 279 ? 8 : i < 256 ? 9 : 7));
const USUAL = [table(usual), table(Array(30).fill(5))];

/** Return {text, used}: what was packed, and how many bytes of `packed` that took. A byte is a character. */
export function inflate(packed, dictionary) {
  let out = dictionary, at = 0, last = 0; // `at` counts bits
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
      const found = symbol(codes), length = found < 16 ? found : found === 16 ? lengths.at(-1) : 0;
      const times = found < 16 ? 1 : found === 18 ? 11 + bits(7) : 3 + bits(found - 14);
      lengths.push(...Array(times).fill(length));
    }
    return [table(lengths.slice(0, count)), table(lengths.slice(count))];
  };
  const amount = (code, each) => { // `each` codes have one bit more behind them than those before
    const extra = Math.floor(code / each) - 1;
    return extra < 0 ? code : (each + code % each << extra) + bits(extra);
  };
  while (!last) {
    last = bits(1);
    const [literals, distances] = [fail, () => USUAL, described, fail][bits(2)]();
    for (let found; (found = symbol(literals)) !== 256;) {
      if (found < 256) out += String.fromCharCode(found);
      else { // a copy: so many characters, from so far back
        const length = found === 285 ? 258 : 3 + amount(found - 257, 4), distance = 1 + amount(symbol(distances), 2);
        if (distance > out.length) fail();
        for (let i = 0; i < length; i++) out += out.at(-distance);
      }
    }
  }
  return { text: out.slice(dictionary.length), used: at + 7 >> 3 };
}
