/** We and QEMU in turn on one image, thousands of random changes, with snapshots and a bitmap: each finds what the other left. */
import { join } from 'node:path'
import test from 'ava'
import { type CreateOptions, create, type Disk, open } from '../js/index.js'
import { MIB } from './support/fixtures.js'
import { Model } from './support/model.js'
import { caseCount, firstSeed, Prng } from './support/prng.js'
import { qemu, temporaryFolder } from './support/qemu.js'
import { busy, differs, differsForQemu } from './support/writable.js'

const SIZE = 4 * MIB
const TURNS = caseCount(14)
const COMMANDS = 60
const GRANULARITY = 65536

/** Random changes by qemu-io, in one process. */
async function theirs(path: string, model: Model, prng: Prng, clusterSize: number): Promise<void> {
  const commands: string[] = []
  for (let i = 0; i < COMMANDS; i++) {
    const sectors = 1 + prng.int(prng.chance(0.2) ? 800 : 40)
    let [position, length] = [prng.int(SIZE / 512 - sectors) * 512, sectors * 512]
    const choice = prng.int(6)
    if (choice < 4) {
      const byte = 1 + prng.int(255)
      commands.push(`write -P ${byte} ${position} ${length}`)
      model.write(position, Buffer.alloc(length, byte))
    } else if (choice === 4) {
      commands.push(`write -z ${prng.chance(0.5) ? '-u ' : ''}${position} ${length}`)
      model.zero(position, length)
    } else {
      const end = Math.floor((position + length) / clusterSize) * clusterSize
      position = Math.ceil(position / clusterSize) * clusterSize
      length = end - position
      if (length <= 0) continue
      commands.push(`discard ${position} ${length}`)
      model.zero(position, length)
    }
  }
  await qemu.io(path, commands, { discard: true })
}

const KINDS: Record<string, CreateOptions & { clusterSize: number }> = {
  plain: { clusterSize: 65536 },
  'of small clusters': { clusterSize: 4096, refcountBits: 32 },
  'with subclusters': { clusterSize: 16384, extendedL2: true },
  'with lazy refcounts': { clusterSize: 8192, lazyRefcounts: true },
}

for (const [index, [name, options]] of Object.entries(KINDS).entries()) {
  test(`an image ${name}, changed by us and by QEMU in turn`, async (t) => {
    t.timeout(300_000)
    const path = join(temporaryFolder(), 'disk.qcow2')
    const { clusterSize } = options
    await create(path, { size: SIZE, ...options })
    await qemu.img('bitmap', '--add', '-g', String(GRANULARITY), path, 'changes')
    const prng = new Prng(firstSeed(7500) + index)
    let model = new Model(SIZE)
    const began = model.clone()
    const snapshots = new Map<string, Model>()
    for (let turn = 0; turn < TURNS; turn++) {
      const about = `turn ${turn}`
      const some = snapshots.size === 0 ? undefined : prng.pick([...snapshots.keys()])
      const choice = prng.int(4)
      const disk = turn % 2 === 0 ? ((await open(path, { writable: true })) as Disk<number>) : undefined
      if (disk !== undefined) {
        t.is(await differs(disk, model), 'equal', about)
        await busy(disk, { model, clusterSize }, prng.u32(), 4)
      } else {
        t.is(await differsForQemu(path, model), 'equal', about)
        await theirs(path, model, prng, clusterSize)
      }
      if (choice < 2) {
        if (disk !== undefined) await disk.snapshots.create(about)
        else await qemu.img('snapshot', '-c', about, path)
        snapshots.set(about, model.clone())
      } else if (choice === 2 && some !== undefined) {
        if (disk !== undefined) await disk.snapshots.delete({ name: some })
        else await qemu.img('snapshot', '-d', some, path)
        snapshots.delete(some)
      } else if (some !== undefined && disk !== undefined) {
        // QEMU does not do that while there is a bitmap that follows writes.
        await disk.snapshots.apply({ name: some })
        model = (snapshots.get(some) as Model).clone()
      }
      await disk?.close()
      t.is((await qemu.check(path)).code, 0, about)
      for (const [snapshot, was] of snapshots) {
        const opened = (await open(path, { snapshot })) as Disk<number>
        t.is(await differs(opened, was), 'equal', `snapshot ${snapshot} in ${about}`)
        await opened.close()
      }
    }
    const disk = (await open(path, { writable: true })) as Disk<number>
    const dirty = new Set<number>()
    for await (const { start, length } of disk.bitmaps.dirty('changes')) {
      for (let at = start; at < start + length; at += GRANULARITY) dirty.add(at / GRANULARITY)
    }
    for (let granule = 0; granule < SIZE / GRANULARITY; granule++) {
      const [now, then] = [model, began].map((each) => Buffer.from(each.read(granule * GRANULARITY, GRANULARITY)))
      if (!now?.equals(then as Buffer)) t.true(dirty.has(granule), `the bitmap misses ${granule}`)
    }
    t.is(await differs(disk, model), 'equal')
    await disk.close()
  })
}

test('what lay behind the end of a disk that became smaller does not come back when QEMU makes it larger', async (t) => {
  // qemu-img grows by writing another size: what stood in the rest of the last cluster was the guest's again.
  for (const [name, options] of Object.entries(KINDS)) {
    const path = join(temporaryFolder(), 'disk.qcow2')
    await create(path, { size: MIB, ...options })
    await qemu.io(path, [`write -P 1 0 ${MIB}`])
    const disk = await open(path, { writable: true })
    const smaller = MIB / 2 + 512
    await disk.resize(smaller, { shrink: true })
    await disk.close()
    await qemu.img('resize', '-q', '-f', 'qcow2', path, String(MIB))
    const wanted = new Model(MIB)
    wanted.write(0, Buffer.alloc(smaller, 1))
    t.is(await differsForQemu(path, wanted), 'equal', name)
    t.is((await qemu.check(path)).code, 0, name)
  }
})
