// Crash states of a record, and what is wrong with one.
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { Random, SECTOR } from './crash-record.mjs'

const run = promisify(execFile)

/**
 * At most `wanted` states: of each epoch (what was written between two flushes) every prefix, and subsets, all of them if they are few; in every third
 * random one a write keeps only some of its sectors.
 */
export function states(recorded, random, wanted) {
  const { entries } = recorded
  const found = []
  const seen = new Set()
  const add = (state) => {
    const key = createHash('sha1').update(`${state.point} `).update(build(recorded, state)).digest('hex')
    if (!seen.has(key)) found.push(state)
    seen.add(key)
  }
  let first = 0
  for (let index = 0; index <= entries.length; index += 1) {
    if (index < entries.length && !entries[index].flush) continue
    const count = index - first
    for (let point = first; point <= index; point += 1) add({ name: `prefix ${point}`, first, point, chosen: () => true })
    const all = 2 ** count
    const subsets = Math.min(all, 40)
    for (let subset = 0; subset < subsets && count > 1; subset += 1) {
      const bits = all <= 64 ? subset : random.below(all)
      const torn = subset % 3 === 2 ? random.below(1 << 30) : undefined
      const name = `subset ${bits.toString(2)} of ${first}..${index}${torn === undefined ? '' : ` torn ${torn}`}`
      add({ name, first, point: index, torn, chosen: (entry) => Math.floor(bits / 2 ** (entry - first)) % 2 === 1 })
    }
    first = index + 1
  }
  for (let last = found.length - 1; last > 0; last -= 1) {
    const other = random.below(last + 1)
    ;[found[last], found[other]] = [found[other], found[last]]
  }
  return found.slice(0, wanted)
}

/** The bytes of the file after a crash. */
function build({ base, entries }, state) {
  const end = entries.reduce((most, entry) => Math.max(most, entry.bytes ? entry.offset + entry.length : 0), base.length)
  const bytes = Buffer.alloc(end)
  base.copy(bytes)
  let length = base.length
  const torn = state.torn === undefined ? undefined : new Random(state.torn)
  for (let index = 0; index < state.point; index += 1) {
    const entry = entries[index]
    if (index >= state.first && !state.chosen(index)) continue
    if (!entry.bytes) {
      bytes.fill(0, entry.offset, Math.min(entry.offset + entry.length, bytes.length))
      continue
    }
    for (let at = 0; at < entry.length; at += SECTOR) {
      if (torn && index >= state.first && torn.below(2) === 0) continue
      entry.bytes.copy(bytes, entry.offset + at, at, at + SECTOR)
      length = Math.max(length, entry.offset + at + SECTOR)
    }
  }
  return bytes.subarray(0, length)
}

/** What the disk and the snapshots may hold if the power went after `point` entries. */
function expectation({ requests, size }, point) {
  const sectors = size / SECTOR
  let latest = new Uint8Array(sectors)
  const allowed = Array.from(latest, () => new Set([0]))
  const ever = Array.from(latest, () => new Set([0]))
  const snapshots = new Map()
  let applying
  const settle = () => {
    allowed.forEach((set, sector) => {
      set.clear()
      set.add(latest[sector])
    })
  }
  const set = (sector, tag) => {
    latest[sector] = tag
    allowed[sector].add(tag)
    ever[sector].add(tag)
  }
  for (const request of requests) {
    if (request.start > point) break
    const done = request.end <= point
    applying = undefined
    if (request.kind === 'write' || request.kind === 'discard') {
      for (let at = request.begin; at < request.begin + request.length; at += SECTOR) set(at / SECTOR, request.tag ?? 0)
    } else if (request.kind === 'flush') {
      if (done) settle()
    } else if (request.kind === 'create') snapshots.set(request.name, { bytes: latest.slice(), must: done })
    else if (request.kind === 'delete') {
      if (done) snapshots.delete(request.name)
      else snapshots.get(request.name).must = false
    } else {
      const before = latest.slice()
      snapshots.get(request.name).bytes.forEach((tag, sector) => {
        set(sector, tag)
      })
      latest = latest.slice()
      if (done) settle()
      else applying = [before, latest]
    }
  }
  return { allowed, ever, snapshots, applying }
}

/** Kinds of damage; empty if all is well. */
export async function judge(recorded, state, worker) {
  const image = join(recorded.here, `state-${worker}`)
  const raw = `${image}.raw`
  const bytes = build(recorded, state)
  writeFileSync(image, bytes)
  const expected = expectation(recorded, state.point)
  const found = []
  const readable = async () => {
    if (bytes.length > 80 && (bytes[79] & 1) !== 0) {
      found.push('repaired')
      await run('qemu-img', ['check', '-q', '-r', 'all', image]).catch(() => {})
    }
    const text = await run('qemu-img', ['check', '--output=json', image]).then(
      ({ stdout }) => stdout,
      ({ stdout }) => stdout,
    )
    const report = text ? JSON.parse(text) : { 'check-errors': 1 }
    if (report['check-errors'] > 0 || report.corruptions > 0) found.push('check errors')
    if (report.leaks > 0) found.push('leaks')
    await run('qemu-img', ['convert', '-f', 'qcow2', '-O', 'raw', image, raw])
    found.push(...wrongSectors(readFileSync(raw), expected))
    if (recorded.requests.some((request) => request.kind === 'create')) found.push(...(await wrongSnapshots(recorded, image, expected)))
  }
  await readable().catch(() => found.push('check errors'))
  for (const name of [image, raw]) if (existsSync(name)) rmSync(name)
  return found
}

/** The tag of a sector; undefined if it holds more than one. */
function tagOf(disk, sector) {
  const begin = sector * SECTOR
  const tag = disk[begin]
  for (let at = begin + 1; at < begin + SECTOR; at += 1) if (disk[at] !== tag) return undefined
  return tag
}

function wrongSectors(disk, { allowed, ever, applying }) {
  const found = []
  const tags = allowed.map((_, sector) => tagOf(disk, sector))
  tags.forEach((tag, sector) => {
    if (allowed[sector].has(tag)) return
    found.push(tag !== undefined && ever[sector].has(tag) ? 'flushed bytes lost' : 'foreign bytes')
  })
  if (found.length === 0 && applying && !applying.some((side) => tags.every((tag, sector) => tag === side[sector]))) found.push('torn apply')
  return found
}

async function wrongSnapshots(recorded, image, { snapshots }) {
  const { stdout } = await run('qemu-img', ['info', '--output=json', image])
  const listed = (JSON.parse(stdout).snapshots ?? []).map((snapshot) => snapshot.name)
  const differ = async () => {
    for (const name of listed) {
      const known = snapshots.get(name)
      if (!known) return true
      await run('qemu-img', ['convert', '-f', 'qcow2', '-l', name, '-O', 'raw', image, `${image}.raw`])
      const disk = readFileSync(`${image}.raw`)
      if (known.bytes.some((tag, sector) => tagOf(disk, sector) !== tag)) return true
    }
    return false
  }
  for (const [name, { must }] of snapshots) if (must && !listed.includes(name)) return ['snapshot changed']
  if (await differ()) return ['snapshot changed']
  if (listed.length === 0) return []
  const random = new Random(recorded.entries.length)
  const targets = recorded.requests.filter((request) => request.kind === 'write')
  const target = () => targets[random.below(targets.length)].begin
  const writes = Array.from({ length: 30 }, () => ['-c', `write -q -P 170 ${target()} 4096`]).flat()
  const written = await run('qemu-io', ['-f', 'qcow2', '-t', 'unsafe', ...writes, image]).then(
    () => true,
    () => false,
  )
  return !written || (await differ()) ? ['snapshot changed later'] : []
}
