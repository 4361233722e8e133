// Converts an image and shows how far it is.
//   node examples/progress-bar.mjs [source target]
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { convert } from 'qcow2'

const folder = await mkdtemp(join(tmpdir(), 'qcow2-example-'))
try {
  const [source = await someDisk(join(folder, 'disk.raw')), target = join(folder, 'disk.qcow2')] = process.argv.slice(2)
  const job = convert(source, target, { compression: 'zstd', overwrite: true })
  for await (const { phase, done, total } of job) draw(phase, total === 0 ? 1 : done / total)
  const { virtualSize, fileSize } = await job
  if (process.stderr.isTTY) process.stderr.write('\n')
  console.log(`${virtualSize} bytes of disk became ${fileSize} bytes of file`)
} finally {
  await rm(folder, { recursive: true, force: true })
}

/** One line that is drawn over itself, on a terminal only. */
function draw(phase, share) {
  if (!process.stderr.isTTY) return
  const full = Math.round(share * 40)
  process.stderr.write(`\r${phase} [${'#'.repeat(full)}${' '.repeat(40 - full)}] ${Math.floor(share * 100)} %`)
}

async function someDisk(path) {
  await writeFile(path, Buffer.alloc(64 << 20, 'the same words again and again, which compress well. '))
  return path
}
