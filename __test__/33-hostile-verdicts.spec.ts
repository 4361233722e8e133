/**
 * Every file of the catalogue is asked everything, by the library and by the commands, and each answer is the one of the table: its code, not only
 * "an error". Nothing else is changed or left, no operation takes 5 s, and no file makes the process grow by 256 MiB.
 */
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { hostileCases, slug } from './support/hostile-cases.js'
import type { Verdict } from './support/hostile-nine.js'
import { expectedAnswers, qemuAnswers } from './support/hostile-table.js'
import { threatTable } from './support/hostile-threats.js'
import { run, temporaryFolder } from './support/qemu.js'

/** Processes at once. */
const PARTS = 2
/** Of each process: wide enough for a slow machine; a hang is caught by each operation's own limit. */
const LIMIT = 400_000
const MOST_MIB = 256

test('the catalogue has every entry, under names of its own', (t) => {
  const cases = hostileCases()
  const entries = new Set(cases.map(({ entry }) => entry))
  t.deepEqual(
    Array.from({ length: 100 }, (_, i) => i + 1).filter((entry) => !entries.has(entry)),
    [],
  )
  t.is(new Set(cases.map(({ name }) => slug(name))).size, cases.length)
  const names = new Set(cases.map(({ name }) => name))
  t.deepEqual(
    [...names].filter((name) => !expectedAnswers().has(name)),
    [],
    'in the table',
  )
  t.deepEqual(
    [...expectedAnswers().keys()].filter((name) => !names.has(name)),
    [],
    'in the catalogue',
  )
})

for (let part = 0; part < PARTS; part++)
  test(`the answers to part ${part + 1} of ${PARTS}`, async (t) => {
    t.timeout(LIMIT + 10_000)
    const report = join(temporaryFolder(), 'report')
    const child = await run(
      process.execPath,
      ['--expose-gc', '--require', 'tsx/cjs', join(__dirname, 'support', 'hostile-nine.ts'), report, String(part), String(PARTS)],
      { timeout: LIMIT, cwd: join(__dirname, '..') },
    )
    const told = existsSync(report) ? (JSON.parse(readFileSync(report, 'utf8')) as Verdict[]) : []
    if (!Array.isArray(told)) return t.fail(`the process ended with ${JSON.stringify(told)}:\n${child.stderr}`)
    t.is(child.code, 0, child.stderr)
    t.true(told.length > 100)
    // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
    t.notRegex(child.stdout.toString('latin1') + child.stderr, /[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]/, 'no control characters are printed')
    t.notRegex(child.stderr, /secret that no image may name/)
    const table = expectedAnswers()
    for (const { name, answers, wrong, grown } of told) {
      t.deepEqual(answers, table.get(name), name)
      t.deepEqual(wrong, [], name)
      t.true(grown < MOST_MIB, `${name}: the process grew by ${grown} MiB`)
    }
  })

test('the threat model shows the answers of the tables', (t) => {
  const page = readFileSync(join(__dirname, '..', 'docs', 'threat-model.md'), 'utf8')
  t.true(page.includes(threatTable(hostileCases(), expectedAnswers(), qemuAnswers())), 'write it anew: node scripts/hostile-images.mjs --page')
})
