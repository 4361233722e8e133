/** The examples run on the built package and say what they promise. */
import { execFile } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import test from 'ava'
import { qemu, temporaryFolder } from './support/qemu.js'

const folder = join(__dirname, '..', 'examples')

async function example(name: string, ...words: string[]): Promise<string> {
  const { stdout } = await promisify(execFile)(process.execPath, [join(folder, name), ...words], { cwd: temporaryFolder(), timeout: 60_000 })
  return stdout
}

const promises: Record<string, RegExp[]> = {
  'cancel.mjs': [/^cancelled: the user closed the window$/m, /^the target: the older target$/m, /^files: disk\.qcow2, disk\.raw$/m],
  'http-raw.mjs': [/^200: 1048576 bytes, as announced: 1048576$/m, /^206: bytes 512-1023\/1048576, 512 bytes$/m],
  'incremental-backup.mjs': [
    /^a whole copy: 67108864 bytes$/m,
    /^what changed since: 2 ranges, 131072 bytes$/m,
    /^the backup is what the disk was: true$/m,
    /^after the upgrade went wrong: the disk is what it was before$/m,
  ],
  'info-before-upload.mjs': [
    /^a new image: accepted$/m,
    /^an image that names a file of the host: it needs a backing file: "\/etc\/passwd"$/m,
    /^an image of 8 TiB: ERR_QCOW2_LIMIT: /m,
    /^something else: ERR_QCOW2_NOT_QCOW2: /m,
  ],
  'progress-bar.mjs': [/^67108864 bytes of disk became \d{1,7} bytes of file$/m],
}

for (const [name, lines] of Object.entries(promises)) {
  test(`examples/${name} does what it says`, async (t) => {
    const output = await example(name)
    for (const line of lines) t.regex(output, line)
  })
}

test('every example is tested', (t) => {
  t.deepEqual(readdirSync(folder).sort(), Object.keys(promises).sort())
})

test('the progress example converts a named image', async (t) => {
  const place = temporaryFolder()
  const [source, target, back] = [join(place, 'a.raw'), join(place, 'a.qcow2'), join(place, 'b.raw')]
  await writeFile(source, Buffer.alloc(1 << 20, 'real data '))
  await example('progress-bar.mjs', source, target)
  await qemu.raw(target, back)
  t.true((await readFile(back)).equals(await readFile(source)))
})
