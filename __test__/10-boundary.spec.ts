/**
 * The boundary between JavaScript and the core, whatever is asked of it: panics, workers, `process.exit`, buffers that go away, handles,
 * cancelling. Each scenario is a process of its own (support/boundary-child.cjs): a crash is then a result.
 */
import { spawn } from 'node:child_process'
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { qemu, removeFolder, temporaryFolder } from './support/qemu.js'

const CHILD = join(__dirname, 'support', 'boundary-child.cjs')
const GRAIN = 65536

let folder = ''
/** 8 MiB: every 64 KiB have a byte of their own, see `expected` in the child. */
let disk = ''
/** 32 MiB that do not compress: a conversion of it takes a while. */
let slow = ''
/** What `disk` holds, in compressed clusters. */
let packed = ''

test.before(async () => {
  folder = temporaryFolder()
  disk = await image('disk', 128, (bytes, grain) => bytes.fill(1 + (grain % 255)))
  packed = join(folder, 'packed.qcow2')
  await qemu.img('convert', '-c', '-O', 'qcow2', disk, packed)
  let state = 1
  slow = await image('slow', 512, (bytes) => {
    for (let i = 0; i < bytes.length; i += 4) {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0
      bytes.writeUInt32LE(state, i)
    }
  })
})

test.after.always(() => removeFolder(folder))

async function image(name: string, grains: number, fill: (bytes: Buffer, grain: number) => void): Promise<string> {
  const bytes = Buffer.alloc(grains * GRAIN)
  for (let grain = 0; grain < grains; grain++) fill(bytes.subarray(grain * GRAIN, (grain + 1) * GRAIN), grain)
  const raw = join(folder, `${name}.raw`)
  writeFileSync(raw, bytes)
  const path = join(folder, `${name}.qcow2`)
  await qemu.img('convert', '-f', 'raw', '-O', 'qcow2', raw, path)
  return path
}

interface Ended {
  code: number | null
  signal: string | null
  stdout: string
  stderr: string
}

/** Runs a scenario. Whatever the scenario, a process that is killed by a signal (an abort of the addon) is a failure. */
function child(words: string[], env: Record<string, string> = {}, nodeWords: string[] = []): Promise<Ended> {
  return new Promise((resolve, reject) => {
    const running = spawn(process.execPath, [...nodeWords, CHILD, ...words], { env: { ...process.env, ...env }, timeout: 110_000 })
    const ended: Ended = { code: null, signal: null, stdout: '', stderr: '' }
    running.stdout.on('data', (chunk) => {
      ended.stdout += chunk
    })
    running.stderr.on('data', (chunk) => {
      ended.stderr += chunk
    })
    running.on('error', reject)
    running.on('close', (code, signal) => resolve({ ...ended, code, signal }))
  })
}

/** What the scenario answers, once it has ended well. */
async function answer(...words: string[]): Promise<unknown> {
  const { code, signal, stdout, stderr } = await child(words, { QCOW2_TEST_PANICS: '1' })
  if (code !== 0) throw new Error(`${words[0]} ended with ${signal ?? code}:\n${stderr}`)
  return JSON.parse(stdout)
}

function emptyFolder(name: string): string {
  const path = join(folder, name)
  mkdirSync(path)
  return path
}

test('a panic at any stage becomes a typed error, a thousand in a row too, and the process lives', async (t) => {
  const internal = 'ERR_QCOW2_INTERNAL'
  t.deepEqual(await answer('panics'), { call: internal, pool: internal, job: internal, completion: internal })
})

test('every function of the addon has the guard around it, and unsafe code stands in one file', (t) => {
  const sources = join(__dirname, '..', 'crates', 'qcow2-node', 'src')
  let functions = 0
  for (const name of readdirSync(sources)) {
    const lines = readFileSync(join(sources, name), 'utf8').split('\n')
    lines.forEach((line, at) => {
      if (!line.startsWith('pub fn ')) return
      functions++
      // Whatever stands between the function and the blank line before it: comments and attributes.
      const before = lines.slice(lines.lastIndexOf('', at), at)
      t.true(before.includes('#[napi(catch_unwind)]'), `${name}:${at + 1} ${line}`)
    })
    if (name !== 'raw.rs') t.false(/\bunsafe\s*(\{|fn|impl)/.test(lines.join('\n')), `${name} has unsafe code`)
  }
  t.true(functions >= 20, `only ${functions} functions were found`)
})

test('the entry that panics is closed to everybody but the tests', async (t) => {
  const { code, stderr } = await child(['panics'])
  t.is(code, 1)
  t.regex(stderr, /ERR_QCOW2_INVALID_ARGUMENT|Missing expected exception/)
})

test('arguments of a wrong kind are refused', async (t) => {
  const invalid = 'ERR_QCOW2_INVALID_ARGUMENT'
  t.deepEqual(await answer('wrong arguments'), {
    window: invalid,
    wide: invalid,
    both: invalid,
    neither: invalid,
    notAChain: 'ERR_QCOW2_INTERNAL',
    unknownFormat: invalid,
  })
})

test('memory holds copies, grows, shrinks, and takes and fills shared buffers', async (t) => {
  t.is(await answer('memory'), 'done')
})

test('10,000 reads into plain, shared, resizable, detached, shrunk, grown and forgotten buffers', async (t) => {
  const counts = (await answer('buffers', disk)) as Record<string, number>
  t.deepEqual(Object.keys(counts).sort(), ['detached', 'gone', 'grown', 'offset', 'plain', 'resizable', 'shared', 'shrunk'])
  t.is(
    Object.values(counts).reduce((sum, count) => sum + count),
    10_000,
  )
})

test('what can be read at once is, and nothing is written where target, range or handle are not right', async (t) => {
  t.deepEqual(await answer('at once'), { unknown: 0, refused: Array(7).fill(-1), ends: [3, 0, 0, 0], closed: -1 })
})

test('completions that are held back come all at once later', async (t) => {
  t.deepEqual(await answer('held'), { before: 0, after: 100 })
})

test('close waits for the reads under way, refuses later ones, and closes once however often it is called', async (t) => {
  const closed = 'ERR_QCOW2_CLOSED'
  t.deepEqual(await answer('close', disk), { late: closed, again: closed, busy: 'ERR_QCOW2_BUSY', after: closed })
})

test('a call under way keeps the process alive, an open disk does not', async (t) => {
  t.is(await answer('liveness', disk), 'left by itself')
})

test('disks that nobody closed are closed when they are collected', async (t) => {
  const { code, stdout, stderr } = await child(['lost', disk], {}, ['--expose-gc', '--require=tsx/cjs'])
  t.is(code, 0, stderr)
  t.deepEqual(JSON.parse(stdout), { before: 50, after: 0 })
})

test('a job can be cancelled before, while and after it runs, and leaves nothing', async (t) => {
  const { cancelled, left } = (await answer('cancel', slow, emptyFolder('cancel'))) as { cancelled: number; left: string[] }
  t.true(cancelled > 0)
  t.deepEqual(
    left.filter((name) => name !== 'out.qcow2'),
    [],
  )
})

test('a job that waits for its turn is cancelled at once', async (t) => {
  t.deepEqual(await answer('queued jobs', slow, emptyFolder('queued')), { first: 11, left: [] })
})

test('progress never goes back and ends at the end', async (t) => {
  const size = 512 * GRAIN
  const { reports, end } = (await answer('progress', slow, emptyFolder('progress'))) as { reports: number; end: unknown }
  t.true(reports >= 2)
  t.deepEqual(end, { phase: 'convert', done: size, total: size })
})

test('the main thread and workers share the process but nothing else', async (t) => {
  t.deepEqual(await answer('together', disk), Array(5).fill('read'))
})

test('an addon that is loaded twice has its own handles and completions each time', async (t) => {
  t.deepEqual(await answer('twice', disk), [[1, 2, 0], ['ERR_QCOW2_CLOSED']])
})

test('260 workers terminated while they read and convert: nothing crashes, nothing stays open or behind', async (t) => {
  const { started, ended, left, threads } = (await answer('workers', disk, emptyFolder('workers'), '260')) as {
    started: number
    ended: number
    left: string[]
    threads: number
  }
  t.is(started, 260)
  t.is(ended, 260)
  t.deepEqual(left, [])
  // Node's own, and at most four of ours: the jobs' threads are gone.
  t.true(threads < 30, `${threads} threads are left`)
})

test('60 workers terminated while clusters are decoded ahead of them: nothing crashes, nothing stays open', async (t) => {
  const { ended, threads } = (await answer('workers', packed, emptyFolder('ahead'), '60', 'ahead')) as { ended: number; threads: number }
  t.is(ended, 60)
  t.true(threads < 40, `${threads} threads are left`)
})

for (const stage of ['opening', 'reading', 'reading ahead', 'completion', 'closing', 'converting', 'queued', 'worker']) {
  test(`process.exit while ${stage}: its own code, no crash, nothing half-made is left`, async (t) => {
    const out = emptyFolder(`exit-${stage}`)
    const { code, signal, stderr } = await child(['exit', stage === 'reading ahead' ? packed : disk, out, stage])
    t.is(signal, null, stderr)
    t.is(code, 7, stderr)
    t.deepEqual(
      readdirSync(out).filter((name) => name !== 'out.qcow2'),
      [],
    )
  })
}
