// What QEMU itself leaves behind after a power cut: its writes are recorded by its own `blklogwrites` driver, crash states are built from the record,
// and each is judged by qemu-img and by tags in every sector. The numbers stand beside ours in docs/crash-safety.md.
//
//   node scripts/qemu-crash-baseline.mjs [--states 400] [--seed 1] [--only NAME]
import { writeFileSync } from 'node:fs'
import { Random, record, workloads } from './lib/crash-record.mjs'
import { judge, states } from './lib/crash-states.mjs'

const argument = (name, otherwise) => {
  const at = process.argv.indexOf(`--${name}`)
  return at < 0 ? otherwise : process.argv[at + 1]
}
const wanted = Number(argument('states', 400))
const seed = Number(argument('seed', 1))
const only = argument('only', undefined)
const details = argument('details', undefined)

const columns = ['states', 'bad', 'check errors', 'foreign bytes', 'flushed bytes lost', 'torn apply', 'snapshot changed', 'snapshot changed later']
console.log(`seed ${seed}, at most ${wanted} states of each workload`)
console.log(`| workload | ${columns.join(' | ')} | leaks | repaired first |`)
console.log(`|---|${'---:|'.repeat(columns.length + 2)}`)
const findings = []
const began = Date.now()
let total = 0
for (const [name, workload] of Object.entries(workloads)) {
  if (only && only !== name) continue
  const recorded = await record(workload, new Random(seed))
  const counts = Object.fromEntries([...columns, 'leaks', 'repaired'].map((column) => [column, 0]))
  const queue = states(recorded, new Random(seed + 1), wanted)
  const worker = async (number) => {
    for (let state = queue.pop(); state; state = queue.pop()) {
      const found = await judge(recorded, state, number)
      counts.states += 1
      if (found.some((kind) => columns.includes(kind))) counts.bad += 1
      for (const kind of new Set(found)) counts[kind] += 1
      if (found.length > 0) findings.push({ workload: name, state: state.name, found })
    }
  }
  await Promise.all([worker(0), worker(1)])
  recorded.dispose()
  total += counts.states
  console.log(`| ${name} | ${columns.map((column) => counts[column]).join(' | ')} | ${counts.leaks} | ${counts.repaired} |`)
}
const seconds = (Date.now() - began) / 1000
console.log(`${total} states in ${seconds.toFixed(0)} s, ${(total / seconds).toFixed(1)} a second`)
if (details) writeFileSync(details, JSON.stringify(findings, null, 1))
