/**
 * Every bit of the metadata of small images is flipped, and files are cut at every byte: no crash, no hang, little memory, and the bytes
 * that a naive reader finds too, or a typed error.
 */
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import type { FlipReport } from './support/flip-child.js'
import { mixes } from './support/flip-mixes.js'
import { run, temporaryFolder } from './support/qemu.js'

/** Wide enough for a slow machine; a hang of one image is caught by its own limit inside. */
const LIMIT = 300_000

for (const kind of ['flips', 'cuts'])
  for (const mix of Object.keys(mixes)) {
    // The larger clusters' file is long: its tables are cut by the mixes of small clusters.
    if (kind === 'cuts' && mix === 'subclusters') continue
    test(`${kind} of an image with ${mix}`, async (t) => {
      t.timeout(LIMIT * 3)
      const folder = temporaryFolder()
      const step = join(folder, 'step')
      const report = join(folder, 'report')
      const child = await run(
        process.execPath,
        ['--expose-gc', '--require', 'tsx/cjs', join(__dirname, 'support', 'flip-child.ts'), mix, kind, step, report],
        {
          timeout: LIMIT,
          cwd: join(__dirname, '..'),
        },
      )
      const last = existsSync(step) ? readFileSync(step, 'utf8') : 'none'
      t.is(child.code, 0, `the process ended with these in flight:\n${last}\n${child.stderr}`)
      const { tried, right, refused, wrong, codes, peak, before } = JSON.parse(readFileSync(report, 'utf8')) as FlipReport
      t.deepEqual(wrong, [])
      t.is(right + refused, tried)
      t.log(`${tried} images: ${right} read, ${refused} refused; ${Math.round(before)} MiB before, ${Math.round(peak)} MiB at most`)
      t.true(right > 0 && refused > 0, 'both answers occur')
      t.true(peak - before < 256, `memory grew from ${before} to ${peak} MiB`)
      for (const code of Object.keys(codes)) t.regex(code, /^ERR_QCOW2_(?!INTERNAL)/, 'every refusal is typed')
    })
  }
