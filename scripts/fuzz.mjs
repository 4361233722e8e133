// `npm run fuzz`: damaged images until the time is over (docs/fuzzing.md). `-- --seconds N --seed S --target X` says how long, from where, and what is
// asked; `-- --keep` adds inputs that showed something new to the corpus.
import { spawnSync } from 'node:child_process'
import { root } from './lib/run.mjs'

const args = ['run', '--quiet', '--profile', 'fast', '--package', 'qcow2-fuzz', '--bin', 'fuzz', '--', ...process.argv.slice(2)]
const { status, error } = spawnSync('cargo', args, { cwd: root, stdio: 'inherit' })
if (error) throw error
process.exitCode = status ?? 1
