/**
 * Damages one mix in every way and reads each result, in a process of its own: its memory is measured, and a crash or a hang is the
 * parent's to see. Words: mix, what to do (`flips` or `cuts`), file for the last step, file for the report.
 */
import { openSync, writeFileSync, writeSync } from 'node:fs'
import { check, info, open } from '../../js/index.js'
import { metadata, mixes, onlyForWriting } from './flip-mixes.js'
import type { BuiltImage } from './image.js'
import { type Answer, answer, readRange } from './ours.js'
import { bytesOf, type NaiveDisk, naiveDisk, Unreadable } from './reader.js'

export interface FlipReport {
  /** Damaged images that were tried. */
  tried: number
  /** How many read to the right bytes, and how many were refused. */
  right: number
  refused: number
  /** What must not be: wrong bytes, untyped errors. */
  wrong: string[]
  codes: Record<string, number>
  /** Peak of resident memory in MiB, and what it was before the first image. */
  peak: number
  before: number
}

interface Witness {
  size: bigint
  bytes: Uint8Array
  /** First guest byte of a cluster without a right answer, by cluster. */
  holes: Set<number>
}

/** The most of a disk that is read: a flipped size may be exabytes. */
const WINDOW = 2 ** 17

/** Images that are read at once: the pool has more than one thread. Of larger ones fewer: the limit is meant for one. */
const flying = (image: BuiltImage): number => (image.bytes.length > 65536 ? 4 : 16)

function witness(bytes: Buffer, cluster: number): Witness | undefined {
  let disk: NaiveDisk
  try {
    disk = naiveDisk(bytesOf(bytes))
  } catch (error) {
    if (error instanceof Unreadable) return undefined
    throw error
  }
  const length = Number(disk.size < BigInt(WINDOW) ? disk.size : BigInt(WINDOW))
  const out = new Uint8Array(length)
  const holes = new Set<number>()
  for (let at = 0; at < length; at += cluster) {
    try {
      out.set(disk.read(BigInt(at), Math.min(cluster, length - at)), at)
    } catch (error) {
      if (!(error instanceof Unreadable)) throw error
      holes.add(at)
    }
  }
  return { size: disk.size, bytes: out, holes }
}

async function ours(bytes: Buffer, cluster: number): Promise<Answer<{ size: bigint; parts: Answer<Uint8Array>[] }>> {
  const opened = await answer('open', open(bytes, { bigint: true, backingFiles: 'deny' }))
  if ('error' in opened) return opened
  const disk = opened.value
  const size = BigInt(disk.virtualSize)
  const length = Number(size < BigInt(WINDOW) ? size : BigInt(WINDOW))
  const whole = await answer('read', readRange(disk, 0, length))
  const parts: Answer<Uint8Array>[] = []
  if ('value' in whole) for (let at = 0; at < length; at += cluster) parts.push({ value: whole.value.subarray(at, Math.min(at + cluster, length)) })
  else for (let at = 0; at < length; at += cluster) parts.push(await answer('read', readRange(disk, at, Math.min(cluster, length - at))))
  await disk.close()
  return { value: { size, parts } }
}

interface Damage {
  bytes: Buffer
  step: string
  /** A reader must not be disturbed. */
  readable: boolean
}

function* cuts(image: BuiltImage): Generator<Damage, void, undefined> {
  for (let length = 0; length < image.bytes.length; length++) yield { bytes: image.cut(length), step: `cut to ${length}`, readable: false }
}

function* flips(image: BuiltImage): Generator<Damage, void, undefined> {
  for (const { name, offset, length } of metadata(image))
    for (let bit = 0; bit < length * 8; bit++) {
      const bytes = Buffer.from(image.bytes)
      const at = offset + (bit >> 3)
      bytes[at] = (bytes[at] ?? 0) ^ (0x80 >> (bit & 7))
      yield { bytes, step: `${name}, byte ${bit >> 3} (${at} of the file), bit ${7 - (bit & 7)}`, readable: onlyForWriting(name) }
    }
}

async function main(): Promise<void> {
  const [mix, kind, stepFile, reportFile] = process.argv.slice(2)
  const made = mixes[mix ?? '']
  if (made === undefined || stepFile === undefined || reportFile === undefined) throw new Error('words: mix, kind, step file, report file')
  const image = made()
  const cluster = 2 ** image.spec.clusterBits
  const steps = openSync(stepFile, 'w')
  const report: FlipReport = { tried: 0, right: 0, refused: 0, wrong: [], codes: {}, peak: 0, before: 0 }
  const note = (what: string): void => {
    if (report.wrong.length < 20) report.wrong.push(what)
  }
  const refusal = (code: string): void => {
    report.refused++
    report.codes[code] = (report.codes[code] ?? 0) + 1
  }

  const one = async (bytes: Buffer, step: string, readable: boolean): Promise<void> => {
    // The file names the images that were in flight, should the process end here.
    writeSync(steps, `${step}\n`.padStart(96), (report.tried % flying(image)) * 96)
    report.tried++
    // What is measured is what images need, not how long this test's own copies of them lie about.
    if (report.tried % 200 === 0) globalThis.gc?.()
    const want = witness(bytes, cluster)
    const got = await ours(bytes, cluster)
    if ('error' in got) {
      refusal(got.error.code)
      if (readable) note(`${step}: refused with ${got.error.code}, though only writing looks there`)
    } else if (want === undefined) note(`${step}: read, though there is no right answer`)
    else if (want.size !== got.value.size) note(`${step}: size ${got.value.size}, it is ${want.size}`)
    else {
      let right = true
      got.value.parts.forEach((part, i) => {
        const at = i * cluster
        if ('error' in part) {
          right = false
          report.codes[part.error.code] = (report.codes[part.error.code] ?? 0) + 1
          if (readable) note(`${step}: cluster ${i} refused with ${part.error.code}, though only writing looks there`)
        } else if (want.holes.has(at)) note(`${step}: cluster ${i} read, though it has no right answer`)
        else if (Buffer.compare(part.value, want.bytes.subarray(at, at + part.value.length)) !== 0) note(`${step}: cluster ${i} has wrong bytes`)
      })
      if (right) report.right++
      else report.refused++
    }
    await answer('info', info(bytes))
    await answer('check', check(bytes))
  }

  await one(Buffer.from(image.bytes), 'undamaged', true)
  if (report.right !== 1) throw new Error(`the undamaged image does not read: ${report.wrong.join()} ${JSON.stringify(report.codes)}`)
  report.before = process.memoryUsage.rss() / 2 ** 20
  const damages = kind === 'cuts' ? cuts(image) : flips(image)
  const worker = async (): Promise<void> => {
    for (const { bytes, step, readable } of damages) await one(bytes, step, readable)
  }
  await Promise.all(Array.from({ length: flying(image) }, worker))
  report.peak = process.resourceUsage().maxRSS / 1024
  writeFileSync(reportFile, JSON.stringify(report))
}

main().catch((error: unknown) => {
  console.error(error)
  process.exitCode = 1
})
