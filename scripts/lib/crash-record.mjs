// Workloads that QEMU runs over `blklogwrites`, and the record of what it wrote: entries in order, and which request was under way at which of them.
import { execFileSync, spawn } from 'node:child_process'
import { copyFileSync, existsSync, mkdtempSync, openSync, readFileSync, readSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

export const SECTOR = 512
const SIZE = 4 << 20
const CLUSTER = 4096
const FLAGS = { flush: 1n, discard: 4n }

/** Numbers that a seed repeats (splitmix64). */
export class Random {
  constructor(seed) {
    this.state = BigInt(seed)
  }

  below(end) {
    this.state = BigInt.asUintN(64, this.state + 0x9e3779b97f4a7c15n)
    let mixed = this.state
    mixed = BigInt.asUintN(64, (mixed ^ (mixed >> 30n)) * 0xbf58476d1ce4e5b9n)
    mixed = BigInt.asUintN(64, (mixed ^ (mixed >> 27n)) * 0x94d049bb133111ebn)
    return Number((mixed ^ (mixed >> 31n)) % BigInt(end))
  }
}

/** Where the image, its record and what is derived from them live: in memory if that is possible, since nothing is really cut off. */
function folder() {
  return mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'qemu-crash-'))
}

export const workloads = {
  'allocating writes': { options: `cluster_size=${CLUSTER}`, steps: allocating },
  'refcounts that grow': { options: 'cluster_size=512,refcount_bits=64', steps: allocating },
  'lazy refcounts': { options: `cluster_size=${CLUSTER},lazy_refcounts=on`, steps: allocating },
  'discard, then reuse': { options: `cluster_size=${CLUSTER}`, steps: reusing },
  snapshots: { options: `cluster_size=${CLUSTER}`, steps: (random) => snapshotting(random, 1) },
  'snapshots, an L1 table of two sectors': { options: 'cluster_size=512', steps: (random) => snapshotting(random, 16) },
}

/** Writes to anywhere within a part of the disk, of which a few clusters get discarded, and a flush after some. */
function* allocating(random) {
  for (let count = 0; count < 120; count += 1) {
    const begin = random.below(1 << 9) * SECTOR * 3
    const length = (1 + random.below(20)) * SECTOR
    yield { kind: 'write', begin, length }
    if (random.below(4) === 0) yield { kind: 'flush' }
  }
}

/** Clusters are filled, then some are discarded while others are written that have no space yet. */
function* reusing(random) {
  for (let cluster = 0; cluster < 40; cluster += 1) yield { kind: 'write', begin: cluster * CLUSTER, length: CLUSTER }
  yield { kind: 'flush' }
  for (let count = 0; count < 90; count += 1) {
    const begin = random.below(80) * CLUSTER
    if (random.below(2) === 0) yield { kind: 'discard', begin, length: CLUSTER * (1 + random.below(2)) }
    else yield { kind: 'write', begin, length: CLUSTER }
    if (random.below(5) === 0) yield { kind: 'flush' }
  }
}

/** Snapshots are taken, gone back to and deleted, with writes in between. */
function* snapshotting(random, spread) {
  const alive = []
  let taken = 0
  for (let round = 0; round < 22; round += 1) {
    for (let count = 0; count < 6; count += 1) {
      yield { kind: 'write', begin: random.below(60) * spread * CLUSTER, length: CLUSTER }
      if (random.below(4) === 0) yield { kind: 'flush' }
    }
    const pick = random.below(6)
    if (alive.length > 0 && pick < 2) yield { kind: 'apply', name: alive[random.below(alive.length)] }
    else if (alive.length > 2 || (alive.length > 0 && pick === 2)) yield { kind: 'delete', name: alive.splice(random.below(alive.length), 1)[0] }
    else {
      taken += 1
      alive.push(`s${taken}`)
      yield { kind: 'create', name: `s${taken}` }
    }
  }
}

/** Runs a workload; answers what was written and when. */
export async function record(workload, random) {
  const here = folder()
  const at = (name) => join(here, name)
  execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', '-o', workload.options, at('image'), String(SIZE)])
  copyFileSync(at('image'), at('base'))
  writeFileSync(at('log'), '')
  const options = (append) =>
    'driver=qcow2,discard=unmap,file.driver=blklogwrites,file.log-super-update-interval=1,' +
    `${append ? 'file.log-append=on' : 'file.log-sector-size=512'},file.file.driver=file,file.file.discard=unmap,file.file.filename=${at('image')},` +
    `file.log.driver=file,file.log.filename=${at('log')}`
  const log = openSync(at('log'), 'r')
  const entries = () => {
    const word = Buffer.alloc(8)
    return readSync(log, word, 0, 8, 16) === 8 ? Number(word.readBigUInt64LE()) : 0
  }
  const requests = []
  let tag = 0
  let session
  for (const step of workload.steps(random)) {
    const request = { ...step, start: entries() }
    if (['create', 'apply', 'delete'].includes(step.kind)) {
      await session?.end(requests, entries)
      session = undefined
      request.start = entries()
      const flag = { create: '-c', apply: '-a', delete: '-d' }[step.kind]
      execFileSync('qemu-img', ['snapshot', flag, step.name, '--image-opts', options(entries() > 0)])
    } else {
      session ??= await talk(options(entries() > 0))
      request.start = entries()
      if (step.kind === 'write') {
        tag += 1
        if (tag > 255) throw new Error('more writes than tags')
        request.tag = tag
        await session.say(`write -q -P ${tag} ${step.begin} ${step.length}`)
      } else await session.say(step.kind === 'flush' ? 'flush' : `discard -q ${step.begin} ${step.length}`)
    }
    request.end = entries()
    requests.push(request)
  }
  await session?.end(requests, entries)
  return {
    base: readFileSync(at('base')),
    entries: parse(readFileSync(at('log'))),
    requests,
    here,
    size: SIZE,
    dispose: () => rmSync(here, { recursive: true }),
  }
}

/** A qemu-io that takes one command after the other. */
async function talk(options) {
  const child = spawn('qemu-io', ['-t', 'writeback', '--image-opts', options])
  let output = ''
  let told
  child.stdout.on('data', (chunk) => {
    output += chunk
    if (output.endsWith('qemu-io> ')) {
      output = ''
      told()
    }
  })
  child.stderr.pipe(process.stderr)
  const prompt = () => new Promise((resolve) => { told = resolve }) // biome-ignore format: one line
  await prompt()
  return {
    async say(line) {
      const answered = prompt()
      child.stdin.write(`${line}\n`)
      await answered
    },
    async end(requests, entries) {
      const start = entries()
      const gone = new Promise((resolve) => child.on('exit', resolve))
      child.stdin.end('quit\n')
      await gone
      requests.push({ kind: 'flush', start, end: entries() })
    },
  }
}

/** The entries of a log as dm-log-writes lays it out: a sector that describes, then the data. */
function parse(log) {
  const count = Number(log.readBigUInt64LE(16))
  const size = log.readUInt32LE(24)
  const entries = []
  let at = size
  for (let index = 0; index < count; index += 1) {
    const offset = Number(log.readBigUInt64LE(at)) * size
    const length = Number(log.readBigUInt64LE(at + 8)) * size
    const flags = log.readBigUInt64LE(at + 16)
    at += size
    const discard = (flags & FLAGS.discard) !== 0n
    const flush = (flags & FLAGS.flush) !== 0n
    entries.push({ offset, length, flush, bytes: discard ? undefined : log.subarray(at, at + length) })
    if (!discard) at += length
  }
  return entries
}
