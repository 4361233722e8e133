/**
 * Conversion onto a backing file stores what differs, wherever it differs. A change above a hole of the backing file that follows its data
 * was once left out: two stretches of the mapping that both have to be looked at had joined into one, and the scan went on behind it.
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { compare, convert } from '../js/index.js'
import { qemu } from './support/qemu.js'

const MiB = 1024 ** 2
const SIZE = 8 * MiB
const folder = mkdtempSync(join(tmpdir(), 'qcow2-onto-'))
const at = (name: string) => join(folder, name)
test.after.always(() => rmSync(folder, { recursive: true, force: true }))

for (const filled of [0, SIZE / 2, SIZE]) {
  for (const changes of [[SIZE - 512], [0, 6 * MiB], [3 * MiB, 6 * MiB, SIZE - 512], []]) {
    test.serial(`${filled / MiB} MiB of data below, changes at [${changes}]: the overlay reads as its source`, async (t) => {
      const bytes = Buffer.alloc(SIZE)
      for (let index = 0; index < filled; index += 1) bytes[index] = (index * 7) ^ (index >> 9)
      writeFileSync(at('base.raw'), bytes)
      await convert(at('base.raw'), at('base.qcow2'), { overwrite: true })
      for (const position of changes) bytes.fill('changed ', position, position + 512)
      writeFileSync(at('changed.raw'), bytes)
      const { dataBytes } = await convert(at('changed.raw'), at('overlay.qcow2'), { backing: 'base.qcow2', backingFormat: 'qcow2', overwrite: true })
      t.is(Number(dataBytes), changes.length * 65536)
      t.true((await compare(at('changed.raw'), at('overlay.qcow2'))).identical)
      await qemu.raw(at('overlay.qcow2'), at('back.raw'), ['-f', 'qcow2'])
      t.true(bytes.equals(readFileSync(at('back.raw'))))
    })
  }
}
