/** Creating an overlay never takes a file away that the overlay needs. */
import { link, readFile, symlink } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { create, info } from '../js/index.js'
import { failure } from './support/fixtures.js'
import { qemu, temporaryFolder } from './support/qemu.js'

test('create refuses to replace any layer below its backing file, whatever it is called', async (t) => {
  // `create` looked at its own backing file only: an image that was made over the base of its backing file took the base, and all data, away.
  const folder = temporaryFolder()
  const path = (name: string): string => join(folder, name)
  await create(path('base.qcow2'), { size: '4M' })
  await qemu.io(path('base.qcow2'), ['write -P 7 0 1M'])
  await create(path('middle.qcow2'), { backing: 'base.qcow2', backingFormat: 'qcow2' })
  await create(path('upper.qcow2'), { backing: 'middle.qcow2', backingFormat: 'qcow2' })
  await symlink('base.qcow2', path('symbolic.qcow2'))
  await link(path('base.qcow2'), path('hard.qcow2'))
  const base = await readFile(path('base.qcow2'))
  const options = { backing: 'upper.qcow2', backingFormat: 'qcow2', overwrite: true } as const
  for (const name of ['base.qcow2', 'symbolic.qcow2', 'hard.qcow2', 'middle.qcow2', 'upper.qcow2']) {
    t.is((await failure(() => create(path(name), options))).code, 'ERR_QCOW2_SAME_FILE', name)
  }
  const data = await failure(() => create(path('new.qcow2'), { size: '4M', ...options, dataFile: 'base.qcow2' }))
  t.is(data.code, 'ERR_QCOW2_SAME_FILE')
  t.true((await readFile(path('base.qcow2'))).equals(base))
  await create(path('other.qcow2'), { size: '1M' })
  await create(path('other.qcow2'), options)
  t.is((await info(path('other.qcow2'))).backingFile, 'upper.qcow2')
})
