/** The key expansion of AES (FIPS 197, section 5.2): what a key becomes in the memory of whoever uses it. */

/** Product in GF(2^8) modulo x^8 + x^4 + x^3 + x + 1. */
function times(a: number, b: number): number {
  let product = 0
  for (let bit = 7; bit >= 0; bit--) {
    product = (product << 1) ^ (product & 0x80 ? 0x11b : 0)
    if ((b >> bit) & 1) product ^= a
  }
  return product
}

const SBOX = Uint8Array.from({ length: 256 }, (_, byte) => {
  const inverse = Array.from({ length: 256 }, (_, other) => other).find((other) => times(byte, other) === 1) ?? 0
  let out = 0x63
  for (let turn = 0; turn < 5; turn++) out ^= ((inverse << turn) | (inverse >> (8 - turn))) & 0xff
  return out
})

/** All round keys for encrypting, one behind the other; then those for decrypting that the equivalent inverse cipher (section 5.3.5) has in their place. */
export function aesRoundKeys(key: Buffer): Buffer {
  const words = key.length / 4
  const rounds = words + 6
  const out = Buffer.alloc((rounds + 1) * 16)
  key.copy(out)
  let constant = 1
  for (let word = words; word < (rounds + 1) * 4; word++) {
    let part = [...out.subarray(word * 4 - 4, word * 4)]
    if (word % words === 0) {
      part = [...part.slice(1), ...part.slice(0, 1)].map((byte) => SBOX[byte] ?? 0)
      part[0] = (part[0] ?? 0) ^ constant
      constant = times(constant, 2)
    } else if (words > 6 && word % words === 4) part = part.map((byte) => SBOX[byte] ?? 0)
    for (const [at, byte] of part.entries()) out[word * 4 + at] = byte ^ (out[(word - words) * 4 + at] ?? 0)
  }
  const inverse = Buffer.alloc((rounds - 1) * 16)
  const mix = [14, 11, 13, 9]
  for (let at = 0; at < inverse.length; at++) {
    const column = 16 + (at & ~3)
    for (let other = 0; other < 4; other++) {
      const factor = mix[(other - (at & 3) + 4) % 4] ?? 0
      inverse[at] = (inverse[at] ?? 0) ^ times(factor, out[column + other] ?? 0)
    }
  }
  return Buffer.concat([out, inverse])
}
