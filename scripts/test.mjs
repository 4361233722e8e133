// `npm test`: set-up, gates, Rust tests, JavaScript tests. `npm test -- gates|rust|js` runs a part.
// The last line is `N passed, N failed`; anything but 0 failed is exit code 1.
import { failedBlocks, readCargoTest, readNextest, readTap } from './lib/results.mjs'
import { bin, run, which } from './lib/run.mjs'
import { setup } from './setup.mjs'

const parts = { gates: runGates, rust: runRust, js: runJavaScript }
const titles = { gates: 'gates', rust: 'rust', js: 'javascript' }
/** More than any part takes on two cores; a runner that hangs ends then, as a failure. */
const PATIENCE = 1800

const chosen = process.argv.slice(2)
const unknown = chosen.find((word) => !Object.hasOwn(parts, word))
if (unknown) {
  console.error(`npm test -- ${unknown}: there are ${Object.keys(parts).join(', ')}`)
  process.exit(2)
}

const results = {}
try {
  await setup({ tests: true })
  for (const name of chosen.length > 0 ? chosen : Object.keys(parts)) results[name] = await parts[name]()
} catch (error) {
  console.log(error.message)
  results.setup = { passed: 0, failed: 1, skipped: 0, problems: ['set-up failed'] }
}
report()

async function runGates() {
  const { gates } = await import('./lib/gates.mjs')
  const counts = { passed: 0, failed: 0, skipped: 0, problems: [] }
  for (const [name, gate] of Object.entries(gates)) {
    const begin = Date.now()
    const problem = await gate().catch((error) => error.stack)
    counts[problem === undefined ? 'passed' : 'failed'] += 1
    console.log(`${problem === undefined ? 'ok  ' : 'FAIL'} ${name} (${seconds(begin)})`)
    if (problem !== undefined) console.log(indent(problem))
  }
  return counts
}

async function runRust() {
  const begin = Date.now()
  const nextest = which('cargo-nextest') !== undefined
  const tests = nextest
    ? ['nextest', 'run', '--workspace', '--cargo-profile', 'fast', '--no-fail-fast', '--failure-output', 'final', '--status-level', 'fail']
    : ['test', '--workspace', '--all-targets', '--profile', 'fast', '--no-fail-fast']
  const ran = await run('cargo', tests, { timeoutSeconds: PATIENCE })
  const main = nextest ? readNextest(ran) : readCargoTest(ran)
  if (main.failed > 0) console.log(indent(ran.output))
  // With a model checker's locks in the place of the system's, nothing else runs.
  const modelled = ['test', '-p', 'qcow2-engine', '--features', 'shuttle', '--profile', 'fast', '--test', 'interleavings']
  const orders = await run('cargo', modelled, { timeoutSeconds: PATIENCE })
  const model = readCargoTest(orders)
  if (model.failed > 0) console.log(indent(orders.output))
  const documented = await run('cargo', ['test', '--workspace', '--doc', '--profile', 'fast', '--no-fail-fast'], { timeoutSeconds: PATIENCE })
  const docs = readCargoTest(documented, { mayBeEmpty: true })
  if (docs.failed > 0) console.log(indent(documented.output))
  console.log(`${main.failed + model.failed + docs.failed === 0 ? 'ok  ' : 'FAIL'} rust tests (${seconds(begin)})`)
  return {
    passed: main.passed + model.passed + docs.passed,
    failed: main.failed + model.failed + docs.failed,
    skipped: main.skipped + model.skipped + docs.skipped,
    problems: [...main.problems, ...model.problems, ...docs.problems],
  }
}

async function runJavaScript() {
  const begin = Date.now()
  const ran = await run(bin('ava'), ['--tap'], { timeoutSeconds: PATIENCE })
  const counts = readTap(ran)
  for (const block of failedBlocks(ran.output)) console.log(indent(block))
  // A runner that dies has said why outside of TAP.
  if (counts.problems.length > 0) console.log(indent(ran.output.slice(-20_000)))
  console.log(`${counts.failed === 0 ? 'ok  ' : 'FAIL'} javascript tests (${seconds(begin)})`)
  return counts
}

function report() {
  const sum = { passed: 0, failed: 0 }
  console.log('')
  for (const [name, { passed, failed, skipped, problems }] of Object.entries(results)) {
    for (const problem of problems) console.log(`${titles[name] ?? name}: ${problem}`)
    console.log(`${titles[name] ?? name}: ${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`)
    sum.passed += passed
    sum.failed += failed
  }
  console.log(`${sum.passed} passed, ${sum.failed} failed`)
  process.exitCode = sum.failed > 0 || sum.passed === 0 ? 1 : 0
}

function seconds(begin) {
  return `${((Date.now() - begin) / 1000).toFixed(1)} s`
}

function indent(text) {
  return text.trimEnd().replace(/^/gm, '    ')
}
