// `npm run bench`: builds what is published, measures the commands beside qemu-img and the API beside node:fs (each file in benches/ is one
// such measurement), prints the tables and puts them into docs/performance.md. `--quick` takes less data and fewer runs, `--pairs N` and
// `--processes N` say how many runs of a command and how many processes of an API row; `--no-write` leaves the page alone.
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { cpus, loadavg, release, totalmem } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { must, root, which } from './lib/run.mjs'
import { setup } from './setup.mjs'

const words = process.argv.slice(2)
const { values: options } = parseArgs({
  args: words,
  options: { quick: { type: 'boolean' }, pairs: { type: 'string' }, processes: { type: 'string' }, 'no-write': { type: 'boolean' } },
})
await setup({ tests: true, profile: 'release' })
if (!which('qemu-img')) throw new Error('the benchmark compares with qemu-img, which is not there')

const loadBefore = loadavg()
const texts = []
for (const name of names()) {
  // `qcow2` is then the built package, not its sources.
  const env = { TSX_TSCONFIG_PATH: join(root, 'tsconfig.build.json') }
  const args = ['--require', join(root, 'node_modules', 'tsx', 'dist', 'cjs', 'index.cjs'), join(root, 'benches', `${name}.ts`)]
  process.stderr.write(`${name} …\n`)
  texts.push((await must(process.execPath, [...args, ...flags(name)], { env })).trim())
}
const text = `${await circumstances()}\n\n${texts.join('\n\n')}\n`
console.log(text)
if (!options['no-write']) writePage(text)

/** The benchmarks that there are, whole commands first. */
function names() {
  const all = readdirSync(join(root, 'benches')).filter((file) => file.endsWith('.ts'))
  return ['commands', ...all.map((file) => file.slice(0, -3)).filter((name) => name !== 'commands')]
}

/** What a benchmark is told of our own flags. */
function flags(name) {
  const count = ['commands', 'in-place', 'luks'].includes(name) ? 'pairs' : name.startsWith('api') ? 'processes' : undefined
  return [...(options.quick ? ['--quick'] : []), ...(count && options[count] ? [`--${count}`, options[count]] : [])]
}

async function circumstances() {
  const qemu = (await must('qemu-img', ['--version'])).split('\n')[0]
  const rust = (await must('rustc', ['--version'])).trim()
  const commit = (await must('git', ['rev-parse', '--short', 'HEAD'])).trim()
  const machine = `${cpus()[0]?.model.trim()}, ${cpus().length} processors, ${Math.round(totalmem() / 1024 ** 3)} GiB, ${process.platform} ${release()}`
  // What else runs at the same time shows here, and then the table is worth less.
  const load = loadBefore.map((value) => value.toFixed(1)).join(' ')
  const date = new Date().toISOString().slice(0, 10)
  return `${date}, commit ${commit}. ${machine}. ${qemu}; Node.js ${process.versions.node}; ${rust}. Load before: ${load}.\nCommand: \`npm run bench${words.length > 0 ? ` -- ${words.join(' ')}` : ''}\``
}

function writePage(text) {
  const path = join(root, 'docs', 'performance.md')
  const page = readFileSync(path, 'utf8')
  const [begin, end] = ['<!-- last table -->', '<!-- end of last table -->']
  const [from, to] = [page.indexOf(begin), page.indexOf(end)]
  if (from < 0 || to < from) throw new Error(`docs/performance.md lost its marks ${begin} … ${end}`)
  writeFileSync(path, `${page.slice(0, from + begin.length)}\n${text}${page.slice(to)}`)
}
