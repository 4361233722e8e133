/** Small images whose metadata is damaged bit by bit, each with other features, and which of their bits matter to whom. */
import { build } from './builder.js'
import { lz4Cluster, zstdByHand } from './codecs.js'
import { sample } from './hostile-sample.js'
import type { BuiltImage, Place } from './image.js'
import { type ImageSpec, imageSpec } from './spec.js'

/** Guest bytes of a mix: small, because every damaged image is read whole. */
const CLUSTERS = 20

function plain(change: Partial<ImageSpec>): ImageSpec {
  const spec = sample(change.clusterBits ?? 9, { headerLength: 104, ...change })
  const cluster = 2 ** spec.clusterBits
  spec.size = CLUSTERS * cluster
  for (const guest of [...spec.clusters.keys()]) if (guest >= CLUSTERS) spec.clusters.delete(guest)
  return spec
}

export const mixes: Record<string, () => BuiltImage> = {
  'data, zeros and deflate': () => build(plain({})),
  'version 2 with snapshots': () => {
    const spec = plain({ version: 2, headerLength: 72 })
    spec.snapshots.push(
      { id: '1', name: 'one', clusters: new Map(spec.clusters), size: Number(spec.size), extraSize: 16 },
      { id: '2', name: 'two', clusters: new Map([...spec.clusters].slice(1)), size: Number(spec.size) },
    )
    return build(spec)
  },
  'bitmaps, feature names and an unknown extension': () =>
    build({
      ...plain({ headerLength: 112, extensions: [{ type: 0x12345678, data: Buffer.from('kept') }] }),
      bitmaps: [{ name: 'dirty', granularityBits: 9, flags: 2, table: [new Uint8Array(512).fill(5, 0, 2)] }],
    }),
  subclusters: () => {
    const spec = imageSpec({ clusterBits: 14, size: 6 * 2 ** 14, extendedL2: true, featureNames: false, headerLength: 104 })
    const source = sample(14)
    for (const guest of [0, 3, 4, 5]) {
      const cluster = source.clusters.get(guest)
      if (cluster !== undefined) spec.clusters.set(guest, cluster)
    }
    const data = source.clusters.get(2)
    if (data?.kind === 'data') spec.clusters.set(2, { kind: 'subclusters', host: true, allocated: 0x0f0f_00ff, zero: 0xf000_ff00, data: data.data })
    return build(spec)
  },
  'zstd and 64-bit refcounts': () => compressed('zstd', zstdByHand, 6),
  'LZ4 and 1-bit refcounts': () => compressed('lz4', lz4Cluster, 0),
}

function compressed(compression: 'zstd' | 'lz4', encode: (data: Uint8Array) => Uint8Array, refcountOrder: number): BuiltImage {
  const spec = plain({ headerLength: 112, refcountOrder })
  const clusters = new Map(spec.clusters)
  for (const [guest, cluster] of clusters) {
    if (cluster.kind !== 'compressed') continue
    const data = new Uint8Array(512).fill(guest + 65)
    clusters.set(guest, { kind: 'compressed', data, payload: encode(data) })
  }
  return build({ ...spec, compression, clusters })
}

/** Every structure that is not guest data, where it is used. Tables of larger clusters count as far as the guest range reaches. */
export function metadata(image: BuiltImage): Place[] {
  const used = [...image.places.values()].filter(
    ({ name }) =>
      !/^(snapshot\[\d+\]\.)?data\[|^compressed\[|^header\.|^extension\[|^bitmap\[\d+\]\.data|^backingName|^snapshot\[\d+\]$|^bitmap\[\d+\]$/.test(
        name,
      ),
  )
  const seen = new Set<number>()
  return used
    .filter(({ offset }) => !seen.has(offset) && seen.add(offset) !== undefined)
    .map((place) => {
      const cluster = 2 ** image.spec.clusterBits
      if (cluster <= 512) return place
      const reach = place.name.includes('l2[') ? (Number(image.spec.size) / cluster + 1) * 16 : 512
      return { ...place, length: Math.min(place.length, reach) }
    })
}

/** What only `check` and writing look at: a reader must not be disturbed by damage there. */
export function onlyForWriting(name: string): boolean {
  return name === 'refcountTable' || name.startsWith('refcountBlock')
}
