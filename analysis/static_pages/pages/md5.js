// MD5 of a short ASCII text, by RFC 1321: what the lake's questions draw samples by. Browsers have none.
const SHIFTS = [7, 12, 17, 22, 5, 9, 14, 20, 4, 11, 16, 23, 6, 10, 15, 21];
const SINES = Array.from({ length: 64 }, (_, step) => Math.floor(2 ** 32 * Math.abs(Math.sin(step + 1))) | 0);
const PLACES = Array.from({ length: 64 }, (_, step) => [step, 5 * step + 1, 3 * step + 5, 7 * step][step >> 4] % 16);
const HEX = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, "0"));

// The text in blocks of 16 little-endian words: a bit after it, and its length in bits at the end.
function blocksOf(text) {
  const words = new Int32Array(16 * Math.ceil((text.length + 9) / 64));
  for (let at = 0; at < text.length; at += 1) words[at >> 2] |= text.charCodeAt(at) << (8 * (at % 4));
  words[text.length >> 2] |= 0x80 << (8 * (text.length % 4));
  words[words.length - 2] = 8 * text.length;
  return words;
}

export function md5(text) {
  const words = blocksOf(text);
  const sums = new Int32Array([0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476]);
  for (let block = 0; block < words.length; block += 16) {
    let [a, b, c, d] = sums;
    for (let step = 0; step < 64; step += 1) {
      const mixed = step < 16 ? (b & c) | (~b & d) : step < 32 ? (d & b) | (~d & c) : step < 48 ? b ^ c ^ d : c ^ (b | ~d);
      const sum = (a + mixed + SINES[step] + words[block + PLACES[step]]) | 0;
      const shift = SHIFTS[4 * (step >> 4) + (step % 4)];
      const turned = (b + ((sum << shift) | (sum >>> (32 - shift)))) | 0;
      [a, d, c, b] = [d, c, b, turned];
    }
    sums[0] += a;
    sums[1] += b;
    sums[2] += c;
    sums[3] += d;
  }
  let told = "";
  for (const byte of new Uint8Array(sums.buffer)) told += HEX[byte];
  return told;
}
