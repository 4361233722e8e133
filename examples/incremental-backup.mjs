// Keeps a backup up to date by copying only what changed, and goes back to a snapshot when an upgrade goes wrong.
//   node examples/incremental-backup.mjs
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { compare, create, open } from 'qcow2'

const folder = await mkdtemp(join(tmpdir(), 'qcow2-example-'))
const [image, backup] = [join(folder, 'vm.qcow2'), join(folder, 'backup.raw')]

/** Copies a range of one disk to the same place of another. */
async function copy(from, to, start, length) {
  await pipeline(from.createReadStream({ start, end: start + length - 1 }), to.createWriteStream({ start }))
}

try {
  await create(image, { size: '64M' })
  await create(backup, { size: '64M', format: 'raw' })
  const disk = await open(image, { writable: true })
  const copied = await open(backup, { format: 'raw', writable: true })
  try {
    await disk.write(Buffer.from('the first state'), { position: 0 })

    // From here on the bitmap follows every write.
    await disk.bitmaps.add('backup')
    await copy(disk, copied, 0, disk.virtualSize)
    console.log(`a whole copy: ${disk.virtualSize} bytes`)

    await disk.write(Buffer.from('something new'), { position: 1 << 20 })
    await disk.write(Buffer.from('and more'), { position: 32 << 20 })

    // What changed is read from a snapshot: writes may go on meanwhile, and are in the bitmap's next turn.
    const { id } = await disk.snapshots.create('backup')
    const changed = []
    for await (const range of disk.bitmaps.dirty('backup')) changed.push(range)
    await disk.bitmaps.clear('backup')
    const still = await disk.snapshots.open(id)
    for (const { start, length } of changed) await copy(still, copied, start, length)
    await still.close()
    await copied.flush()
    const bytes = changed.reduce((sum, { length }) => sum + length, 0)
    console.log(`what changed since: ${changed.length} ranges, ${bytes} bytes`)

    // An upgrade that goes wrong.
    await disk.write(Buffer.alloc(1 << 20, 'garbage'), { position: 0 })
    await disk.snapshots.apply(id)
    await disk.snapshots.delete(id)
  } finally {
    await copied.close()
    await disk.close()
  }
  const { identical } = await compare(image, backup, { formatB: 'raw' })
  console.log(`the backup is what the disk was: ${identical}`)
  if (identical) console.log('after the upgrade went wrong: the disk is what it was before')
} finally {
  await rm(folder, { recursive: true, force: true })
}
