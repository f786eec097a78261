// Numbers as the explorer writes them: of two that are equally near, Python takes the even one.

const EXACT = 40; // digits behind those that are shown, which tell whether a number lies half-way
const NOTHING = "–";

const isHalf = (rest, before) => /^50*$/.test(rest) && Number(before.at(-1)) % 2 === 0;

// With so many digits behind the point.
export function figure(value, digits = 2) {
  if (value === null || value === undefined) return NOTHING;
  const exact = Math.abs(value).toFixed(digits + EXACT);
  const below = exact.slice(0, -EXACT).replace(/\.$/, "");
  const written = isHalf(exact.slice(-EXACT), below) ? below : Math.abs(value).toFixed(digits);
  return value < 0 && Number(written) ? `-${written}` : written;
}

// With commas between thousands.
export const whole = (value) => (value === null || value === undefined ? NOTHING : Number(value).toLocaleString("en"));

// With two digits that count.
export function short(value) {
  if (value === null || value === undefined) return NOTHING;
  const [mantissa, power] = Math.abs(value)
    .toExponential(1 + EXACT)
    .split("e");
  const below = mantissa.slice(0, 3);
  const [digits, exponent] = isHalf(mantissa.slice(3), below) ? [below, power] : Math.abs(value).toExponential(1).split("e");
  const sign = value < 0 ? "-" : "";
  if (value !== 0 && (exponent < -4 || exponent >= 2)) {
    return `${sign}${Number(digits)}e${exponent < 0 ? "-" : "+"}${String(Math.abs(exponent)).padStart(2, "0")}`;
  }
  return `${sign}${Number(`${digits}e${exponent}`)}`;
}
