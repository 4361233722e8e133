// `npm run soak`: power cuts in memory until there are a million states (docs/crash-safety.md). `-- --states N --seed S --minutes M` says how many, from
// which seed and for how long; `-- --replay SEED:WORKLOAD` runs one workload again, `-- --calibrate` prints which loss of a rule is found how soon.
import { spawnSync } from 'node:child_process'
import { root } from './lib/run.mjs'

const args = ['run', '--quiet', '--profile', 'fast', '--package', 'qcow2-sim', '--bin', 'soak', '--', ...process.argv.slice(2)]
const { status, error } = spawnSync('cargo', args, { cwd: root, stdio: 'inherit' })
if (error) throw error
process.exitCode = status ?? 1
