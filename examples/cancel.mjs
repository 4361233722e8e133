// Stops a conversion half-way: the older target stays, and nothing half-made is left.
//   node examples/cancel.mjs
import { randomFillSync } from 'node:crypto'
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { convert, Qcow2Error } from 'qcow2'

const folder = await mkdtemp(join(tmpdir(), 'qcow2-example-'))
try {
  const source = join(folder, 'disk.raw')
  const target = join(folder, 'disk.qcow2')
  await writeFile(source, randomFillSync(Buffer.alloc(64 << 20)))
  await writeFile(target, 'the older target')

  const controller = new AbortController()
  const options = { compression: true, level: 9, overwrite: true, signal: controller.signal }
  try {
    // An AbortSignal stops any long call; a job can also be told by job.cancel().
    const onProgress = ({ done, total }) => {
      if (done < total) controller.abort(new Error('the user closed the window'))
    }
    await convert(source, target, { ...options, onProgress })
    console.log('it was quicker than the cancel')
  } catch (error) {
    if (!(error instanceof Qcow2Error) || error.code !== 'ERR_QCOW2_CANCELLED') throw error
    console.log(`cancelled: ${error.cause.message}`)
    console.log(`the target: ${await readFile(target, 'utf8')}`)
    console.log(`files: ${(await readdir(folder)).join(', ')}`)
  }
} finally {
  await rm(folder, { recursive: true, force: true })
}
