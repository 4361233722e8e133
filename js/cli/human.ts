/** Sizes, times and numbers in the words of qemu-img's human output. */

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB']

/** A size in three significant digits: `196 KiB`, `1.31 MiB`, `0.977 KiB`. */
export function humanSize(bytes: number | bigint): string {
  const value = Number(bytes)
  // The next unit is taken from 1000 on, so that there are never four digits before the point.
  let unit = 0
  while (unit < UNITS.length - 1 && value / 1024 ** unit >= 1000) unit += 1
  return `${threeDigits(value, 10 * unit)} ${UNITS[unit]}`
}

/** `value / 2^shift` as C's `%0.3g` prints it: halves are rounded to even, which `toPrecision` does not do. */
function threeDigits(value: number, shift: number): string {
  if (value === 0) return '0'
  const scaled = value / 2 ** shift
  const decimals = Math.max(0, 2 - Math.floor(Math.log10(scaled)))
  const scale = 10n ** BigInt(decimals)
  const divisor = 1n << BigInt(shift)
  const numerator = BigInt(value) * scale
  let digits = numerator / divisor
  const twice = (numerator % divisor) * 2n
  if (twice > divisor || (twice === divisor && digits % 2n === 1n)) digits += 1n
  const text = digits.toString().padStart(decimals + 1, '0')
  if (decimals === 0) return text.length > 3 ? '1e+03' : text
  const joined = `${text.slice(0, -decimals)}.${text.slice(-decimals)}`
  return joined.replace(/\.?0+$/, '')
}

/** The share of `part` in `whole` in percent, with two digits. */
export function percent(part: number | bigint, whole: number | bigint): string {
  return twoDigits((Number(part) * 100) / Number(whole))
}

/** A number as C's `%.2f` prints it: exact halves go to the even digit, where `toFixed` goes up. */
export function twoDigits(value: number): string {
  // Only odd eighths lie exactly between two hundredths.
  if (Math.abs((value * 8) % 2) !== 1) return value.toFixed(2)
  const hundredths = Math.floor(value * 100)
  return ((hundredths % 2 === 0 ? hundredths : hundredths + 1) / 100).toFixed(2)
}

/** A number as C's `%#x` prints it. */
export function hex(value: number | bigint): string {
  return BigInt(value) === 0n ? '0' : `0x${value.toString(16)}`
}

/** Seconds since 1970 as local time. */
export function localTime(seconds: number): string {
  const date = new Date(seconds * 1000)
  const two = (part: number) => String(part).padStart(2, '0')
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`
}

/** A guest's clock: hours, minutes, seconds, milliseconds. */
export function clock(nanoseconds: bigint): string {
  const seconds = nanoseconds / 1_000_000_000n
  const pad = (value: bigint, width: number) => value.toString().padStart(width, '0')
  const time = `${pad(seconds / 3600n, 4)}:${pad((seconds / 60n) % 60n, 2)}:${pad(seconds % 60n, 2)}`
  return `${time}.${pad((nanoseconds / 1_000_000n) % 1000n, 3)}`
}
