/** The command line beside qemu-img: the same words in, the same bytes, texts and codes out. */
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { create } from '../js/cli/commands/create.js'
import type { Output } from '../js/cli/output.js'
import { type Answer, answer } from './support/cli.js'
import { cases, contradictions, wordsOf } from './support/cli-cases.js'
import { makeFixture } from './support/cli-fixture.js'
import { parseJson, qemu, temporaryFolder } from './support/qemu.js'

let fixture = ''

test.before(async () => {
  fixture = join(temporaryFolder(), 'fixture')
  mkdirSync(fixture)
  await makeFixture(fixture)
})

for (const [group, lines] of cases()) {
  // One group after the other: they only compete for the processors.
  test.serial(`${group}: ${lines.length} command lines are answered as qemu-img answers them`, async (t) => {
    t.timeout(300_000)
    // Each side works in its own copy; the names in it are the same.
    const [theirs, ours] = ['theirs', 'ours'].map((side) => copyOfFixture(side)) as [string, string]
    const failures: string[] = []
    for (const line of lines) {
      const words = wordsOf(line)
      const [expected, actual] = await Promise.all([
        answer('qemu-img', words, { cwd: theirs, ours: false }),
        answer('qemu-img', words, { cwd: ours, ours: true }),
      ])
      const difference =
        describeDifference(expected, actual) ?? (expected.code === 0 ? await differentFiles(theirs, ours, group === 'convert') : undefined)
      if (difference !== undefined) failures.push(`qemu-img ${line}\n${difference}`)
      for (const side of [theirs, ours]) for (const file of ['x', 'xd', 'sub/x']) rmSync(join(side, file), { force: true })
    }
    t.log(`${lines.length - failures.length} of ${lines.length} alike`)
    t.deepEqual(failures, [])
  })
}

test('of two contradictions in -o, the one that qemu-img tells is told', async (t) => {
  const folder = temporaryFolder()
  const file = join(folder, 'x')
  const out = { print: () => {}, flush: () => {} } as unknown as Output
  const program = { name: 'qemu-img', invoked: 'qemu-img', command: 'create', out, signal: new AbortController().signal }
  for (const list of contradictions()) {
    const words = ['-u', '-f', 'qcow2', '-o', list, file, '1M']
    const expected = await answer('qemu-img', ['create', ...words], { cwd: folder, ours: false })
    const actual = await create(program, words).then(
      () => '',
      (error: Error) => `qemu-img: ${error.message}\n`,
    )
    t.is(actual, expected.stderr, list)
  }
})

function copyOfFixture(side: string): string {
  const folder = join(temporaryFolder(), side)
  execFileSync('cp', ['-a', '--sparse=always', fixture, folder])
  return folder
}

/** What differs between two answers. How many bytes a file takes on disk depends on how it was copied. */
function describeDifference(expected: Answer, actual: Answer): string | undefined {
  const normal = ({ code, stdout, stderr }: Answer) => ({ code, stdout: withoutDiskSize(withoutSeconds(stdout)), stderr })
  const [a, b] = [normal(expected), normal(actual)]
  const parts = (['code', 'stdout', 'stderr'] as const).filter((key) => a[key] !== b[key])
  if (parts.length === 0) return undefined
  return parts.map((key) => `  ${key}: expected ${JSON.stringify(a[key])}\n  ${key}: actual   ${JSON.stringify(b[key])}`).join('\n')
}

/** How long a run of `bench` took is as it is. */
function withoutSeconds(text: string): string {
  return text.replace(/^Run completed in \d+\.\d{3} seconds\.$/m, 'Run completed in N seconds.')
}

function withoutDiskSize(text: string): string {
  return text.replace(/"actual-size": \d+/g, '"actual-size": N').replace(/disk size: .*/g, 'disk size: N')
}

/** Whether a target came out on both sides, described alike and, after conversions, with the same contents. */
async function differentFiles(theirs: string, ours: string, contents: boolean): Promise<string | undefined> {
  const [a, b] = [join(theirs, 'x'), join(ours, 'x')]
  if (!existsSync(a)) return undefined
  if (!existsSync(b)) return '  there is no target'
  const [x, y] = await Promise.all([facts(theirs), facts(ours)])
  if (x !== y) return `  target: expected ${x}\n  target: actual   ${y}`
  if (!contents) return undefined
  const [first, second] = await Promise.all([contentsOf(theirs), contentsOf(ours)])
  return first.equals(second) ? undefined : '  contents: they differ'
}

async function facts(folder: string): Promise<string> {
  const outcome = await qemu.tryImg('info', '--output=json', '-U', join(folder, 'x'))
  const text = outcome.stdout.toString()
  if (text === '') return outcome.stderr.replaceAll(folder, '')
  const { children: _, 'actual-size': __, filename: ___, 'full-backing-filename': ____, ...rest } = parseJson(text) as Record<string, unknown>
  return JSON.stringify(rest)
}

/** What the target reads as, told by qemu-img in its own folder: a data file is looked for there. */
async function contentsOf(folder: string): Promise<Buffer> {
  const outcome = await answer('qemu-img', ['convert', '-O', 'raw', 'x', 'x.raw'], { cwd: folder, ours: false })
  if (outcome.code !== 0) throw new Error(outcome.stderr)
  const digest = createHash('sha256')
    .update(readFileSync(join(folder, 'x.raw')))
    .digest()
  rmSync(join(folder, 'x.raw'))
  return digest
}
