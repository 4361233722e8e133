/** The sound image that the catalogue damages. */
import { deflate } from './codecs.js'
import { tagged } from './model.js'
import { modelOf } from './random-spec.js'
import { type ImageSpec, imageSpec } from './spec.js'

/**
 * Guest clusters 0 to 7: data, nothing, data, compressed, zero, preallocated zero, data, nothing; with clusters of 512 bytes there are more
 * after them, so that the image has two L2 tables.
 */
export function sample(clusterBits: number, change: Partial<ImageSpec> = {}): ImageSpec {
  const cluster = 2 ** clusterBits
  const data = (guest: number): Uint8Array => tagged(guest * cluster, cluster, 1000 + guest).slice()
  const spec = imageSpec({ clusterBits, featureNames: false, size: (clusterBits === 9 ? 80 : 8) * cluster, ...change })
  for (const guest of clusterBits === 9 ? [0, 2, 6, 70] : [0, 2, 6]) spec.clusters.set(guest, { kind: 'data', data: data(guest) })
  if (spec.version === 3) {
    spec.clusters.set(4, { kind: 'zero', allocated: false })
    spec.clusters.set(5, { kind: 'zero', allocated: true })
  }
  if (spec.dataFile === undefined) {
    const packed = data(3).fill(7, cluster / 2)
    spec.clusters.set(3, { kind: 'compressed', data: packed, payload: deflate(packed) })
  }
  return spec
}

export function sampleBytes(spec: ImageSpec): Uint8Array {
  const model = modelOf(spec, spec.clusters, Number(spec.size))
  return model.read(0, model.size)
}
