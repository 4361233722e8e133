/**
 * A panic in every entry of the addon, at every stage that the entry has: a typed rejection, a poisoned image where one was being changed, and a process
 * that goes on. Which entries there are, the addon's own types say: a new one without a row fails here.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { must, qemu, temporaryFolder } from './support/qemu.js'

type Stage = 'entry' | 'call' | 'work' | 'progress' | 'completion'
interface Answer {
  answer?: string
  unreached?: string
  error?: string
  write?: string
  read?: string
  close?: string
  reopen?: string
}

/** Entries that answer at once have one stage; those that tell how far they are have all five. */
const AT_ONCE = /^(memory\w+|tryRead|snapshotList|bitmapList|cancel|hold|start|shutdown)$/
const TELLS = new Set(['measure', 'digest', 'verify', 'compare', 'check', 'repair', 'create', 'convert', 'amend', 'commit', 'rebase'])
/** What it changes is closed then. */
const CLOSES = 'amend'

let results: Record<string, Record<Stage, Answer>> = {}
let folder = ''

test.before(async () => {
  folder = temporaryFolder()
  process.env.QCOW2_TEST_PANICS = '1'
  const { stdout } = await must(process.execPath, [join(__dirname, 'support', 'panic-child.cjs'), folder], { timeout: 120_000 })
  results = JSON.parse(stdout.toString())
})

test('every entry is tried', (t) => {
  const types = readFileSync(join(__dirname, '..', 'index.d.ts'), 'utf8')
  const entries = [...types.matchAll(/^export declare function (\w+)\(/gm)].map(([, name]) => name as string)
  t.true(entries.length > 40)
  t.deepEqual(Object.keys(results).sort(), entries.filter((name) => !/^(inject|arm)Panic$/.test(name)).sort())
})

test('every stage of every entry rejects with a type, and was come to', (t) => {
  for (const [name, stages] of Object.entries(results)) {
    // Before the call has a guard of its own the binding's guard throws; the façade makes the same error of it.
    t.is(stages.entry.answer, 'thrown', name)
    if (AT_ONCE.test(name)) continue
    for (const stage of ['call', 'work', 'completion', ...(TELLS.has(name) ? ['progress'] : [])] as Stage[]) {
      t.is(stages[stage].answer, 'ERR_QCOW2_INTERNAL', `${name} ${stage}: ${JSON.stringify(stages[stage])}`)
    }
  }
})

test('a disk that a panic met while it was changed is written no more; others go on; all are read, closed and opened again', (t) => {
  let disks = 0
  for (const [name, stages] of Object.entries(results)) {
    for (const [stage, answer] of Object.entries(stages)) {
      const about = `${name} ${stage}: ${JSON.stringify(answer)}`
      t.is(answer.error ?? answer.reopen, undefined, about)
      if (answer.write === undefined || answer.answer === undefined) continue
      disks++
      const poisoned = stage === 'work' || stage === 'progress' ? 'ERR_QCOW2_POISONED' : 'none'
      t.is(answer.write, name === CLOSES && stage === 'completion' ? 'ERR_QCOW2_CLOSED' : poisoned, about)
      t.is(answer.read, 'none', about)
      t.is(answer.close, poisoned, about)
    }
  }
  t.true(disks > 80)
})

test('every image is consistent afterwards', async (t) => {
  const images = readdirSync(folder).filter((name) => name.endsWith('.qcow2'))
  t.true(images.length > 150)
  await Promise.all(
    images.map(async (name) => {
      const { code, stderr } = await qemu.check(join(folder, name))
      t.true(code === 0 || code === 3, `${name}: ${code} ${stderr}`)
    }),
  )
  t.deepEqual(
    readdirSync(folder).filter((name) => !/^\d+\.(qcow2|luks|data)$/.test(name)),
    [],
    'nothing half-made is left',
  )
})
