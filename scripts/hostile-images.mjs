// The catalogue of hostile images (docs/threat-model.md). `--out FOLDER` writes every file into a folder of its own; `--ours` and `--qemu` measure the
// tables of answers anew, to be read in the diff before they are believed; `--page` puts them into the page.
import { spawnSync } from 'node:child_process'
import { join, resolve } from 'node:path'
import { root } from './lib/run.mjs'

const words = process.argv.slice(2)
const out = words.indexOf('--out')
if (out !== -1 && words[out + 1]) words[out + 1] = resolve(words[out + 1])
const program = join(root, '__test__', 'support', 'hostile-write.ts')
const { status, error } = spawnSync(process.execPath, ['--require', 'tsx/cjs', program, ...words], { cwd: root, stdio: 'inherit' })
if (error) throw error
process.exitCode = status ?? 1
