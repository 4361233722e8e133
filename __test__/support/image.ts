/** What the tests' own writer made: bytes, and where each structure lies in them. */
import { type ImageSpec, l2Entries } from './spec.js'

/** A structure in the file. */
export interface Place {
  name: string
  offset: number
  length: number
}

/** An image in memory with the places of its structures. Damage is done on a copy. */
export class BuiltImage {
  readonly spec: ImageSpec
  readonly bytes: Buffer
  readonly dataFile: Buffer | undefined
  readonly places: ReadonlyMap<string, Place>

  constructor(spec: ImageSpec, bytes: Buffer, dataFile: Buffer | undefined, places: ReadonlyMap<string, Place>) {
    this.spec = spec
    this.bytes = bytes
    this.dataFile = dataFile
    this.places = places
  }

  place(name: string): Place {
    const place = this.places.get(name)
    if (place === undefined) throw new Error(`no ${name} in this image; there are ${[...this.places.keys()].join(', ')}`)
    return place
  }

  at(name: string): number {
    return this.place(name).offset
  }

  /** A copy to be damaged. */
  copy(): BuiltImage {
    return new BuiltImage(this.spec, Buffer.from(this.bytes), this.dataFile, this.places)
  }

  patch(offset: number, bytes: Uint8Array): this {
    this.bytes.set(bytes, offset)
    return this
  }

  u8(offset: number, value: number): this {
    this.bytes.writeUInt8(value, offset)
    return this
  }

  u16(offset: number, value: number): this {
    this.bytes.writeUInt16BE(value, offset)
    return this
  }

  u32(offset: number, value: number): this {
    this.bytes.writeUInt32BE(value >>> 0, offset)
    return this
  }

  u64(offset: number, value: number | bigint): this {
    this.bytes.writeBigUInt64BE(BigInt.asUintN(64, BigInt(value)), offset)
    return this
  }

  readU64(offset: number): bigint {
    return this.bytes.readBigUInt64BE(offset)
  }

  /** Where the L2 entry of an active guest cluster lies. */
  l2Entry(guestCluster: number): number {
    const entries = l2Entries(this.spec)
    return this.at(`l2[${Math.floor(guestCluster / entries)}]`) + (guestCluster % entries) * (this.spec.extendedL2 ? 16 : 8)
  }

  /** The file without what lies at and after `length`. */
  cut(length: number): Buffer {
    return this.bytes.subarray(0, length)
  }
}
