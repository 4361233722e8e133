/** What all commands have in common: which stream comes first, what -q and -p say, and that SIGUSR1 asks and does not kill. */
import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { describeAll } from '../js/cli/catalog.js'
import { type Answer, answer, start } from './support/cli.js'
import { makeFixture } from './support/cli-fixture.js'
import { must, temporaryFolder } from './support/qemu.js'

/**
 * For every command a line that does something and prints it, in a fresh copy of the fixture, and one that fails, or warns, and prints to both
 * streams if the command can. qemu-img has nothing like those of `own`.
 */
const LINES: Readonly<Record<string, { works: string; fails: string; own?: true }>> = {
  amend: { works: 'amend -f qcow2 -o lazy_refcounts=on v3.q', fails: 'amend -f qcow2 -o foo=1 v3.q' },
  bench: { works: 'bench -c 9 v3.q', fails: 'bench -c 9 -o 8M v3.q' },
  bitmap: { works: 'bitmap --add v3.q b', fails: 'bitmap --add bm.q b0' },
  check: { works: 'check v3.q', fails: 'check both.q' },
  commit: { works: 'commit o.q', fails: 'commit v3.q' },
  compare: { works: 'compare o.q o.raw', fails: 'compare o.q miss.q' },
  convert: { works: 'convert -O qcow2 o.q x', fails: 'convert -O qcow2 miss2.q x' },
  create: { works: 'create -f qcow2 x 1M', fails: 'create -f qcow2 -o cluster_size=3 x 1M' },
  dd: { works: 'dd -O qcow2 bs=64k count=3 if=o.q of=x', fails: 'dd bs=512 skip=99999999 if=o.q of=x' },
  digest: { works: 'digest o.q', fails: 'digest miss2.q', own: true },
  info: { works: 'info o.q', fails: 'info --backing-chain miss2.q' },
  inspect: { works: 'inspect o.q', fails: 'inspect nothing.q', own: true },
  map: { works: 'map o.q', fails: 'map c.q' },
  measure: { works: 'measure -O qcow2 o.q', fails: 'measure -O qcow2 miss.q' },
  rebase: { works: "rebase -b '' o.q", fails: 'rebase -b nothing.q -F qcow2 o.q' },
  resize: { works: 'resize v3.q 2M', fails: 'resize v3.q 64k' },
  snapshot: { works: 'snapshot -l o.q', fails: 'snapshot -d none o.q' },
  verify: { works: 'verify -m v3.m v3.q', fails: 'verify -m v3.m miss2.q', own: true },
}

const fixture = join(temporaryFolder(), 'fixture')
let commands: string[] = []
let quiet: string[] = []
let progress: string[] = []

test.before(async () => {
  mkdirSync(fixture)
  await makeFixture(fixture)
  await answer('qcow2', ['digest', '-m', 'v3.m', 'v3.q'], { cwd: fixture, ours: true })
  const all = (await describeAll()).filter(({ name }) => name !== 'completion')
  const having = (letter: string) => all.filter(({ grammar }) => grammar.flags.includes(letter)).map(({ name }) => name)
  commands = all.map(({ name }) => name)
  quiet = having('q')
  progress = having('p')
})

test('every command is asked', (t) => {
  t.deepEqual(
    commands.filter((name) => LINES[name] === undefined),
    [],
  )
})

/** Runs a line of ours and of qemu-img's, each in a folder of its own, with both streams into one file. */
async function both(line: string): Promise<[theirs: Answer, ours: Answer]> {
  const [theirs, ours] = await Promise.all(
    [false, true].map((own) =>
      answer('sh', ['-c', `qemu-img ${line} > both.txt 2>&1; code=$?; cat both.txt; exit $code`], { cwd: copy(), ours: own }),
    ),
  )
  return [theirs as Answer, ours as Answer]
}

let copies = 0

function copy(): string {
  const folder = join(temporaryFolder(), `copy${copies++}`)
  // cp and not cpSync: a pipe is among them.
  execFileSync('cp', ['-a', '--sparse=always', fixture, folder])
  return folder
}

const normal = ({ code, stdout }: Answer) => ({
  code,
  text: stdout.replace(/^Run completed in .*$/m, 'Run completed').replace(/disk size: .*/g, 'disk size'),
})

/** The same of a command that qemu-img does not have. */
const alone = (line: string): Promise<Answer> =>
  answer('sh', ['-c', `qcow2 ${line} > both.txt 2>&1; code=$?; cat both.txt; exit $code`], { cwd: copy(), ours: true })

const isOwn = (name: string): boolean => LINES[name]?.own === true

test('in one file, errors stand before what stdout kept back, as qemu-img has it', async (t) => {
  for (const name of commands.filter((each) => !isOwn(each))) {
    for (const line of Object.values(LINES[name] ?? {})) {
      if (line === true) continue
      const [theirs, ours] = await both(line)
      t.deepEqual(normal(ours), normal(theirs), line)
    }
  }
})

test('-q prints errors only, and changes no exit code', async (t) => {
  t.true(quiet.length >= 6, `${quiet}`)
  for (const name of quiet) {
    const { works, fails } = LINES[name] as { works: string; fails: string }
    if (isOwn(name)) {
      t.deepEqual(normal(await alone(works.replace(' ', ' -q '))), { code: 0, text: '' }, works)
      const loud = await alone(fails)
      t.not(loud.code, 0, fails)
      t.deepEqual(normal(await alone(fails.replace(' ', ' -q '))), normal(loud), fails)
      continue
    }
    for (const line of [works, fails]) {
      const [theirs, ours] = await both(line.replace(' ', ' -q '))
      t.deepEqual(normal(ours), normal(theirs), line)
    }
  }
})

test('-p begins with 0, ends with 100 and a line end', async (t) => {
  t.true(progress.length >= 2, `${progress}`)
  for (const name of progress) {
    const line = (LINES[name] as { works: string }).works
    const told = line.replace(' ', ' -p ')
    const ends = ({ code, stdout }: Answer) => {
      // How many steps there are between depends on how fast it was.
      const steps = [...stdout.matchAll(/\((\d+\.\d\d)\/100%\)\r/g)].map((match) => Number(match[1]))
      t.deepEqual(
        steps,
        [...steps].sort((a, b) => a - b),
        name,
      )
      return { code, first: stdout.slice(0, 16), last: steps.at(-1), text: stdout.replace(/ {4}\(\d+\.\d\d\/100%\)\r/g, '') }
    }
    if (isOwn(name)) {
      const text = `\n${(await alone(line)).stdout}`
      t.deepEqual(ends(await alone(told)), { code: 0, first: '    (0.00/100%)\r', last: 100, text }, name)
      continue
    }
    const [theirs, ours] = await both(told)
    t.deepEqual(ends(ours), ends(theirs), name)
  }
})

/** The addon is there: whatever listens to signals was loaded long before. */
async function loaded(pid: number): Promise<void> {
  for (;;) {
    try {
      if (/qcow2[\w.-]*\.node/.test(readFileSync(`/proc/${pid}/maps`, 'utf8'))) return
    } catch {
      return
    }
    await sleep(2)
  }
}

const onLinux = process.platform === 'linux' ? test : test.skip

onLinux('SIGUSR1 ends no command', async (t) => {
  for (const name of commands) {
    const words = (LINES[name] as { works: string }).works.split(' ').map((word) => (word === "''" ? '' : word))
    const child = start(words, copy())
    const exit = once(child, 'exit')
    let stderr = ''
    child.stderr.on('data', (text) => {
      stderr += text
    })
    await loaded(child.pid as number)
    for (let asked = 0; asked < 10 && child.exitCode === null; asked++) {
      child.kill('SIGUSR1')
      await sleep(1)
    }
    t.deepEqual(await exit, [0, null], name)
    t.regex(stderr, /^( {4}\(\d+\.\d\d\/100%\)\n)*$/, name)
  }
})

onLinux('SIGUSR1 tells the progress of what takes its time, on stderr', async (t) => {
  const folder = join(temporaryFolder(), 'long')
  mkdirSync(folder)
  writeFileSync(join(folder, 'noise.raw'), randomBytes(24 << 20))
  const img = (...words: string[]) => must('qemu-img', words, { cwd: folder })
  await img('convert', '-O', 'qcow2', 'noise.raw', 'top.q')
  await img('create', '-q', '-f', 'qcow2', 'base.q', '24M')
  await img('rebase', '-u', '-f', 'qcow2', '-b', 'base.q', '-F', 'qcow2', 'top.q')
  const slow: Record<string, string[]> = {
    convert: ['convert', '-r', '8M', '-O', 'qcow2', 'noise.raw', 'x'],
    commit: ['commit', '-r', '8M', 'top.q'],
    bench: ['bench', '-c', '2000000', 'noise.raw'],
  }
  for (const [name, words] of Object.entries(slow)) {
    if (!commands.includes(name)) continue
    const child = start(words, folder)
    const exit = once(child, 'exit')
    let stderr = ''
    child.stderr.on('data', (text) => {
      stderr += text
    })
    await loaded(child.pid as number)
    child.kill('SIGUSR1')
    // The answer comes while it runs.
    while (!stderr.includes('\n') && child.exitCode === null) await sleep(5)
    t.is(child.exitCode, null, name)
    t.regex(stderr, /^ {4}\(\d+\.\d\d\/100%\)\n$/, name)
    child.kill('SIGTERM')
    t.deepEqual(await exit, [null, 'SIGTERM'], name)
  }
})
