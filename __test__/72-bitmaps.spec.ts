/** Dirty bitmaps from JavaScript: what they say of random changes, what is stored, and what QEMU makes of it. */
import { join } from 'node:path'
import test from 'ava'
import { create, type Disk, open } from '../js/index.js'
import { failure, MIB } from './support/fixtures.js'
import { firstSeed, Prng } from './support/prng.js'
import { qemu, temporaryFolder } from './support/qemu.js'

const SIZE = 8 * MIB

async function empty(): Promise<string> {
  const path = join(temporaryFolder(), 'disk.qcow2')
  await create(path, { size: SIZE })
  return path
}

async function writable(path: string): Promise<Disk<number>> {
  return (await open(path, { writable: true })) as Disk<number>
}

/** The granules of a bitmap that are dirty. */
async function dirty(disk: Disk<number>, name: string, granularity: number): Promise<Set<number>> {
  const granules = new Set<number>()
  let end = -1
  for await (const { start, length } of disk.bitmaps.dirty(name)) {
    if (start <= end) throw new Error('ranges touch, or are out of order')
    end = start + length
    for (let at = start; at < end; at += granularity) granules.add(at / granularity)
  }
  return granules
}

/** A bitmap beside the one of the image. */
class Mirror {
  readonly granules = new Set<number>()
  enabled = true

  constructor(readonly granularity: number) {}

  touch(position: number, length: number): void {
    if (!this.enabled || length === 0) return
    for (let granule = Math.floor(position / this.granularity); granule * this.granularity < position + length; granule++) this.granules.add(granule)
  }
}

test('enabled bitmaps cover every change, and say nothing of what did not change', async (t) => {
  const path = await empty()
  const prng = new Prng(firstSeed(7200))
  let disk = await writable(path)
  const mirrors = new Map<string, Mirror>()
  for (const granularity of [512, 4096, 65536, MIB]) {
    const name = `of ${granularity}`
    await disk.bitmaps.add(name, { granularity })
    mirrors.set(name, new Mirror(granularity))
  }
  for (let round = 0; round < 60; round++) {
    const position = prng.int(SIZE)
    const length = Math.min(1 + prng.int(prng.chance(0.1) ? 500_000 : 5000), SIZE - position)
    const [name, mirror] = prng.pick([...mirrors])
    switch (prng.int(12)) {
      case 0:
        await disk.bitmaps.clear(name)
        mirror.granules.clear()
        break
      case 1:
        await disk.bitmaps.disable(name)
        mirror.enabled = false
        break
      case 2:
        await disk.bitmaps.enable(name)
        mirror.enabled = true
        break
      case 3:
        await disk.close()
        disk = await writable(path)
        break
      case 4:
        await disk.writeZeroes(position, length, { unmap: true })
        for (const each of mirrors.values()) each.touch(position, length)
        break
      default:
        await disk.write(Buffer.alloc(length, round), { position })
        for (const each of mirrors.values()) each.touch(position, length)
    }
    for (const [each, { granularity, granules }] of mirrors) {
      t.deepEqual([...(await dirty(disk, each, granularity))].sort(), [...granules].sort(), `${each} in round ${round}`)
    }
  }
  const listed = disk.bitmaps.list()
  for (const [name, { granularity, granules, enabled }] of mirrors) {
    t.deepEqual(
      listed.find((bitmap) => bitmap.name === name),
      { name, granularity, enabled, inconsistent: false, dirtyBytes: granules.size * granularity },
    )
  }
  await disk.close()
  t.is((await qemu.check(path)).code, 0)
})

test('a bitmap that is stored is what QEMU reads, and the other way round', async (t) => {
  const path = await empty()
  let disk = await writable(path)
  await disk.bitmaps.add('ours', { granularity: 65536 })
  await disk.write(Buffer.alloc(100_000, 1), { position: MIB })
  await disk.close()
  const { 'format-specific': specific } = (await qemu.info(path)) as { 'format-specific': { data: { bitmaps: unknown[] } } }
  t.deepEqual(specific.data.bitmaps, [{ name: 'ours', granularity: 65536, flags: ['auto'] }])
  // QEMU adds to it, and to one of its own.
  await qemu.img('bitmap', '--add', '-g', '4096', path, 'theirs')
  await qemu.io(path, ['write 4M 8k'])
  disk = await writable(path)
  t.deepEqual([...(await dirty(disk, 'ours', 65536))], [16, 17, 64])
  t.deepEqual([...(await dirty(disk, 'theirs', 4096))], [1024, 1025])
  await disk.bitmaps.merge('ours', 'theirs')
  await disk.bitmaps.remove('theirs')
  t.deepEqual(
    disk.bitmaps.list().map(({ name }) => name),
    ['ours'],
  )
  await disk.close()
  await qemu.img('bitmap', '--disable', path, 'ours')
  const reader = await open(path)
  t.like(reader.bitmaps.list(), [{ name: 'ours', granularity: 65536, enabled: false, inconsistent: false }])
  await reader.close()
  t.is((await qemu.check(path)).code, 0)
})

test('a part of what is dirty can be asked for, and thousands of ranges come in batches', async (t) => {
  const disk = await writable(await empty())
  await disk.bitmaps.add('fine', { granularity: 512 })
  await Promise.all(Array.from({ length: 3000 }, (_, i) => disk.write(Buffer.alloc(512, 1), { position: i * 2048 })))
  t.is((await dirty(disk, 'fine', 512)).size, 3000)
  const part = []
  for await (const range of disk.bitmaps.dirty('fine', { start: 2100, end: 6144 + 100 })) part.push(range)
  t.deepEqual(part, [
    { start: 2100, length: 460 },
    { start: 4096, length: 512 },
    { start: 6144, length: 100 },
  ])
  const controller = new AbortController()
  const stopped = await failure(async () => {
    for await (const _ of disk.bitmaps.dirty('fine', { signal: controller.signal })) controller.abort()
  })
  t.is(stopped.code, 'ERR_QCOW2_CANCELLED')
  await disk.close()
})

test('merging takes several, and a name that is not there is an error', async (t) => {
  const disk = await writable(await empty())
  for (const name of ['a', 'b', 'sum']) await disk.bitmaps.add(name, { granularity: 65536, enabled: name !== 'sum' })
  await disk.write(Buffer.alloc(1), { position: 0 })
  await disk.bitmaps.disable('a')
  await disk.write(Buffer.alloc(1), { position: MIB })
  await disk.bitmaps.merge('sum', ['a', 'b'])
  t.deepEqual([...(await dirty(disk, 'sum', 65536))], [0, 16])
  t.deepEqual([...(await dirty(disk, 'a', 65536))], [0])
  t.is((await failure(() => disk.bitmaps.merge('sum', ['a', 'none']))).code, 'ERR_QCOW2_NO_BITMAP')
  await disk.close()
})

test('a disk that grows has nothing dirty in what is new, and what is written there becomes so', async (t) => {
  const disk = await writable(await empty())
  await disk.bitmaps.add('a')
  await disk.write(Buffer.alloc(1), { position: SIZE - 1 })
  await disk.resize(2 * SIZE)
  await disk.write(Buffer.alloc(1), { position: 2 * SIZE - 1 })
  const granules = await dirty(disk, 'a', 65536)
  t.true(granules.has(SIZE / 65536 - 1))
  t.true(granules.has((2 * SIZE) / 65536 - 1))
  await disk.close()
})

test('what is dirty in a bitmap of another image, open for reading or for writing, is merged', async (t) => {
  const [from, into] = [await empty(), await empty()]
  const source = await writable(from)
  await source.bitmaps.add('coarse', { granularity: 65536 })
  await source.bitmaps.add('fine', { granularity: 512 })
  const positions = Array.from({ length: 5000 }, (_, index) => index * 1024)
  await Promise.all(positions.map((position) => source.write(Buffer.alloc(512, 1), { position })))
  const target = await writable(into)
  await target.bitmaps.add('all', { granularity: 512 })
  await target.bitmaps.merge('all', ['fine'], { from: source })
  t.deepEqual(
    [...(await dirty(target, 'all', 512))],
    positions.map((position) => position / 512),
  )
  await source.close()
  const stored = (await open(from)) as Disk<number>
  await target.bitmaps.clear('all')
  await target.bitmaps.merge('all', 'fine', { from: stored })
  t.is((await dirty(target, 'all', 512)).size, positions.length)
  await target.bitmaps.merge('all', 'coarse', { from: stored })
  t.is((await dirty(target, 'all', 512)).size, Math.ceil((5000 * 1024) / 65536) * 128)
  t.is((await failure(() => target.bitmaps.merge('all', 'none', { from: stored }))).code, 'ERR_QCOW2_NO_BITMAP')
  t.is((await failure(() => target.bitmaps.merge('none', 'fine', { from: stored }))).code, 'ERR_QCOW2_NO_BITMAP')
  await target.resize(SIZE * 2)
  t.is((await failure(() => target.bitmaps.merge('all', 'fine', { from: stored }))).code, 'ERR_QCOW2_BITMAP_SIZES')
  await stored.close()
  t.is((await failure(() => target.bitmaps.merge('all', 'fine', { from: stored }))).code, 'ERR_QCOW2_CLOSED')
  await target.close()
})
