/** Internal snapshots from JavaScript: taken, applied, deleted, renamed, opened; beside requests, and judged by QEMU. */
import { join } from 'node:path'
import test from 'ava'
import { type CreateOptions, create, type Disk, open } from '../js/index.js'
import { MIB } from './support/fixtures.js'
import { describeDifference, type Model, Model as NewModel, tagged } from './support/model.js'
import { firstSeed, Prng } from './support/prng.js'
import { qemu, temporaryFolder } from './support/qemu.js'
import { busy, differs, differsForQemu } from './support/writable.js'

const SIZE = 4 * MIB

async function empty(options: CreateOptions = {}): Promise<string> {
  const path = join(temporaryFolder(), 'disk.qcow2')
  await create(path, { size: SIZE, ...options })
  return path
}

async function writable(path: string): Promise<Disk<number>> {
  return (await open(path, { writable: true })) as Disk<number>
}

async function snapshotDiffers(disk: Disk<number>, id: string, model: Model): Promise<string> {
  const snapshot = await disk.snapshots.open({ id })
  try {
    return await differs(snapshot, model)
  } finally {
    await snapshot.close()
  }
}

const KINDS: Record<string, CreateOptions> = {
  plain: {},
  'of small clusters': { clusterSize: 4096, refcountBits: 8 },
  'with subclusters': { extendedL2: true },
  'with lazy refcounts': { lazyRefcounts: true, clusterSize: 8192 },
  'of version 2': { compat: '0.10', clusterSize: 8192 },
}

for (const [index, [name, options]] of Object.entries(KINDS).entries()) {
  test(`snapshots of an image ${name} never change, whatever is done to the disk and to each other`, async (t) => {
    const path = await empty(options)
    const clusterSize = options.clusterSize as number | undefined
    const prng = new Prng(firstSeed(7100) + index)
    let model = new NewModel(SIZE)
    const taken = new Map<string, Model>()
    let disk = await writable(path)
    for (let round = 0; round < 24; round++) {
      await busy(disk, { model, clusterSize: clusterSize ?? 65536 }, prng.u32(), 2)
      const some = taken.size === 0 ? undefined : prng.pick([...taken.keys()])
      switch (prng.int(5)) {
        case 0:
        case 1:
          taken.set((await disk.snapshots.create(`round ${round}`)).id, model.clone())
          break
        case 2:
          if (some === undefined) break
          await disk.snapshots.delete({ id: some })
          taken.delete(some)
          break
        case 3:
          if (some === undefined) break
          await disk.snapshots.apply({ id: some })
          model = (taken.get(some) as Model).clone()
          break
        default:
          await disk.close()
          t.is((await qemu.check(path)).code, 0, `round ${round}`)
          disk = await writable(path)
      }
      t.is(await differs(disk, model), 'equal', `round ${round}`)
      t.deepEqual(
        disk.snapshots
          .list()
          .map(({ id }) => id)
          .sort(),
        [...taken.keys()].sort(),
      )
      for (const [id, was] of taken) t.is(await snapshotDiffers(disk, id, was), 'equal', `snapshot ${id} in round ${round}`)
    }
    await disk.close()
    t.is((await qemu.check(path)).code, 0)
    t.is(await differsForQemu(path, model), 'equal')
    for (const [id, was] of taken) {
      const raw = join(temporaryFolder(), 'snapshot.raw')
      await qemu.img('convert', '-q', '-f', 'qcow2', '-l', `snapshot.id=${id}`, '-O', 'raw', path, raw)
      const { readFile } = await import('node:fs/promises')
      t.is(describeDifference(await readFile(raw), was.read(0, SIZE)), 'equal', `QEMU reads snapshot ${id} differently`)
    }
  })
}

test('ids, names, dates and clocks are kept as QEMU keeps them', async (t) => {
  const path = await empty()
  const disk = await writable(path)
  const date = new Date('2024-05-06T07:08:09.250Z')
  const first = await disk.snapshots.create({ name: 'täglich', date, vmClockNsec: 3_723_000_000_000n, icount: 42 })
  t.like(first, { id: '1', name: 'täglich', date, vmClockNsec: 3_723_000_000_000n, icount: 42n, diskSize: SIZE, vmStateSize: 0 })
  const before = Date.now()
  const second = await disk.snapshots.create('second')
  t.is(second.id, '2')
  t.true(Math.abs(second.date.getTime() - before) < 60_000)
  await disk.snapshots.delete('täglich')
  t.is((await disk.snapshots.create('third')).id, '3')
  await disk.snapshots.rename('third', 'drei')
  t.deepEqual(
    disk.snapshots.list().map(({ id, name }) => [id, name]),
    [
      ['2', 'second'],
      ['3', 'drei'],
    ],
  )
  await disk.close()
  const { snapshots } = (await qemu.info(path)) as unknown as { snapshots: Record<string, unknown>[] }
  t.deepEqual(
    snapshots.map(({ id, name }) => [id, name]),
    [
      ['2', 'second'],
      ['3', 'drei'],
    ],
  )
  t.is(snapshots[0]?.['date-sec'], second.dateSec)
})

test('an id goes before a name, and either can be said', async (t) => {
  const disk = await writable(await empty())
  for (const [name, byte] of [
    ['2', 11],
    ['1', 22],
  ] as const) {
    await disk.write(Buffer.alloc(512, byte), { position: 0 })
    await disk.snapshots.create(name)
  }
  const read = async (which: string | { id: string } | { name: string }): Promise<number | undefined> => {
    const snapshot = await disk.snapshots.open(which)
    const { buffer } = await snapshot.read(Buffer.alloc(1), { position: 0 })
    await snapshot.close()
    return buffer[0]
  }
  t.deepEqual([await read('1'), await read({ id: '1' }), await read({ name: '1' }), await read({ name: '2' })], [11, 11, 22, 11])
  await disk.close()
})

test('a snapshot holds what was accepted before it, and nothing that came later', async (t) => {
  const disk = await writable(await empty())
  const model = new NewModel(SIZE)
  const requests: Promise<unknown>[] = []
  const snapshots: Promise<{ id: string }>[] = []
  const models: Model[] = []
  for (let i = 0; i < 6; i++) {
    for (let j = 0; j < 30; j++) {
      const position = j * 100_000 + i * 1000
      const bytes = tagged(position, 3000)
      requests.push(disk.write(bytes, { position }))
      model.write(position, bytes)
    }
    // Nobody waits for the writes: each round writes over the one before, so they do here.
    await Promise.all(requests)
    const late = tagged(3_500_000 + i, 700)
    requests.push(disk.write(late, { position: 3_500_000 }))
    model.write(3_500_000, late)
    snapshots.push(disk.snapshots.create(`s${i}`))
    models.push(model.clone())
    const after = tagged(0, 5000)
    requests.push(disk.write(after, { position: 0 }))
    model.write(0, after)
  }
  await Promise.all(requests)
  for (const [i, taken] of snapshots.entries()) t.is(await snapshotDiffers(disk, (await taken).id, models[i] as Model), 'equal', `s${i}`)
  t.is(await differs(disk, model), 'equal')
  await disk.close()
})

test('applying a snapshot of another size gives the disk that size', async (t) => {
  const path = await empty()
  const disk = await writable(path)
  await disk.write(Buffer.alloc(SIZE, 5), { position: 0 })
  await disk.snapshots.create('small')
  await disk.resize(3 * SIZE)
  await disk.write(Buffer.alloc(SIZE, 6), { position: 2 * SIZE })
  await disk.snapshots.create('large')
  await disk.snapshots.apply('small')
  t.is(disk.virtualSize, SIZE)
  t.is(disk.chain[0]?.virtualSize, SIZE)
  t.true((await disk.read(Buffer.alloc(SIZE), { position: 0 })).buffer.every((byte) => byte === 5))
  t.deepEqual(
    disk.snapshots.list().map(({ diskSize }) => diskSize),
    [SIZE, 3 * SIZE],
  )
  await disk.snapshots.apply('large')
  t.is(disk.virtualSize, 3 * SIZE)
  t.true((await disk.read(Buffer.alloc(SIZE), { position: 2 * SIZE })).buffer.every((byte) => byte === 6))
  const small = await disk.snapshots.open('small')
  t.is(small.virtualSize, SIZE)
  t.is(small.chain[0]?.virtualSize, SIZE)
  await small.close()
  await disk.close()
  t.is((await qemu.info(path))['virtual-size'], 3 * SIZE)
  t.is((await qemu.check(path)).code, 0)
})

test('a snapshot that is open goes on reading while its disk is written, and after it is closed', async (t) => {
  const path = await empty()
  const disk = await writable(path)
  const model = new NewModel(SIZE)
  await busy(disk, { model, clusterSize: 65536 }, 9, 4)
  const { id } = await disk.snapshots.create('a')
  const was = model.clone()
  const snapshot = await disk.snapshots.open(id)
  for (let i = 0; i < 5; i++) {
    await busy(disk, { model, clusterSize: 65536 }, i, 3)
    t.is(await differs(snapshot, was), 'equal')
  }
  await disk.close()
  t.is(await differs(snapshot, was), 'equal')
  await snapshot.close()
  await (await open(path, { writable: true })).close()
  t.is((await qemu.check(path)).code, 0)
})

test("QEMU's snapshots are applied and deleted by us, and ours by QEMU", async (t) => {
  const path = await empty()
  await qemu.io(path, ['write -P 1 0 1M'])
  await qemu.img('snapshot', '-c', 'theirs', path)
  await qemu.io(path, ['write -P 2 0 2M'])
  let disk = await writable(path)
  await disk.snapshots.create('ours')
  await disk.snapshots.apply('theirs')
  const model = new NewModel(SIZE)
  model.write(0, Buffer.alloc(MIB, 1))
  t.is(await differs(disk, model), 'equal')
  await disk.close()
  t.is((await qemu.check(path)).code, 0)
  await qemu.img('snapshot', '-a', 'ours', path)
  model.write(0, Buffer.alloc(2 * MIB, 2))
  t.is(await differsForQemu(path, model), 'equal')
  await qemu.img('snapshot', '-d', 'ours', path)
  disk = await writable(path)
  await disk.snapshots.delete('theirs')
  await disk.close()
  t.is(await differsForQemu(path, model), 'equal')
  t.is((await qemu.check(path)).code, 0)
})
