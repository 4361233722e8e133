/** Walks the active tables of a sound image, for tests that look at how something was stored rather than at what it reads as. */
import { type Bytes, naiveHeader } from './reader.js'

export interface StoredCluster {
  /** Guest cluster. */
  index: number
  /** First word of its L2 entry. */
  word: bigint
  /** Second word; 0 without extended L2. */
  bitmap: bigint
  /** Of a compressed cluster: where its bytes begin, and the sectors' bytes as far as the file goes. */
  compressed?: { offset: number; bytes: Uint8Array }
}

/** Every mapped cluster in guest order. */
export function storedClusters(file: Bytes): StoredCluster[] {
  const header = naiveHeader(file)
  const cluster = 2 ** header.clusterBits
  const width = (header.incompatible & 16n) !== 0n ? 16 : 8
  const l1 = Buffer.from(file.read(Number(header.l1Offset), header.l1Size * 8))
  const out: StoredCluster[] = []
  for (let i = 0; i < header.l1Size; i++) {
    const offset = Number(l1.readBigUInt64BE(i * 8) & 0x00ff_ffff_ffff_fe00n)
    if (offset === 0) continue
    const l2 = Buffer.from(file.read(offset, cluster))
    for (let k = 0; k < cluster / width; k++) {
      const word = l2.readBigUInt64BE(k * width)
      const bitmap = width === 16 ? l2.readBigUInt64BE(k * width + 8) : 0n
      if (word === 0n && bitmap === 0n) continue
      const stored: StoredCluster = { index: (i * cluster) / width + k, word, bitmap }
      if ((word & (1n << 62n)) !== 0n) {
        const shift = BigInt(62 - (header.clusterBits - 8))
        const host = word & ((1n << shift) - 1n)
        const length = Number((((word & ((1n << 62n) - 1n)) >> shift) + 1n) * 512n - (host % 512n))
        stored.compressed = { offset: Number(host), bytes: file.read(Number(host), length) }
      }
      out.push(stored)
    }
  }
  return out
}
