/**
 * Writers that are ended at any moment: killed, terminated, exited, forgotten. What was flushed is there, nothing is there that nobody wrote, a
 * snapshot never changes, and the image is clean or has leaks only.
 */
import { createHash } from 'node:crypto'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { type CreateOptions, create, open } from '../js/index.js'
import { contents, type Ended, Expected, faults, runWriter, type Task } from './support/ended-writer.js'
import { caseCount, firstSeed, Prng } from './support/prng.js'
import { temporaryFolder } from './support/qemu.js'

const SIZE = 8 << 20
/** Rounds of each kind of image; all kinds together are some hundreds. */
const ROUNDS = caseCount(30)
/** Rounds on one image: what one leaves is what the next begins with. */
const SAME = 5

const KINDS: Record<string, CreateOptions> = {
  plain: { size: SIZE },
  'with lazy refcounts': { size: SIZE, lazyRefcounts: true, clusterSize: 4096 },
  'with small clusters': { size: SIZE, clusterSize: 512 },
  'with subclusters': { size: SIZE, extendedL2: true, clusterSize: 16384 },
  'of version 2': { size: SIZE, compat: '0.10', clusterSize: 8192 },
}

/** Runs writers of one kind, one after the other, and judges what each leaves. */
async function rounds(t: ExecutionContext, name: string, options: CreateOptions, count: number, run: (task: Task, prng: Prng) => Promise<Ended>) {
  const prng = new Prng(firstSeed(7400) + Object.keys(KINDS).indexOf(name) * 1000)
  let [covered, first] = [0, 1]
  let [path, expected] = ['', new Expected(SIZE)]
  for (let round = 0; round < count; round++) {
    if (round % SAME === 0) {
      path = join(temporaryFolder(), 'disk.qcow2')
      await create(path, options)
      expected = new Expected(SIZE)
    }
    const seed = prng.int(1 << 20)
    const about = `round ${round}, seed ${seed}: `
    const { lines, stderr } = await run({ path, seed, first }, prng)
    t.is(stderr, '', about)
    const followed = expected.follow(lines)
    covered += followed.covered
    first = Math.max(first, followed.last + 1)
    t.is(expected.judge(await contents(path)), undefined, about)
    t.is(await faults(path), undefined, about)
    // What a repair did has changed nothing.
    t.is(expected.judge(await contents(path)), undefined, about)
  }
  t.true(covered > count, `only ${covered} requests were covered by a flush`)
}

for (const [name, options] of Object.entries(KINDS)) {
  test(`an image ${name} survives ${ROUNDS} kills of a busy writer`, async (t) => {
    t.timeout(300_000)
    await rounds(t, name, options, ROUNDS, (task, prng) => runWriter('kill', task, { killAfter: prng.int(60) }))
  })
}

test('an image survives kills of a writer that takes and deletes snapshots, and no snapshot changes', async (t) => {
  t.timeout(300_000)
  const prng = new Prng(firstSeed(7450))
  let [path, first, seen] = ['', 1, 0]
  let expected = new Expected(SIZE)
  let known = new Map<string, string>()
  for (let round = 0; round < ROUNDS; round++) {
    if (round % SAME === 0) {
      path = join(temporaryFolder(), 'disk.qcow2')
      await create(path, { size: SIZE, clusterSize: 4096 })
      expected = new Expected(SIZE)
      known = new Map()
    }
    const seed = prng.int(1 << 20)
    const about = `round ${round}, seed ${seed}: `
    const { lines, stderr } = await runWriter('kill', { path, seed, first, snapshots: true }, { killAfter: prng.int(80) })
    t.is(stderr, '', about)
    first = Math.max(first, expected.follow(lines).last + 1)
    t.is(expected.judge(await contents(path)), undefined, about)
    for (let turn = 0; turn < 2; turn++) {
      const disk = await open(path)
      const listed = disk.snapshots.list()
      await disk.close()
      for (const { id, name } of listed) {
        const hash = createHash('sha256')
          .update(await contents(path, id))
          .digest('hex')
        t.is(known.get(name) ?? hash, hash, `${about}snapshot ${name} changed`)
        known.set(name, hash)
        seen++
      }
      if (turn === 0) t.is(await faults(path), undefined, about)
    }
  }
  t.true(seen > ROUNDS)
})

test('process.exit in the middle of writing: nothing crashes, and what was flushed is there', async (t) => {
  await rounds(t, 'plain', KINDS.plain as CreateOptions, 10, async (task, prng) => {
    const ended = await runWriter('exit', { ...task, after: 30 + prng.int(40) })
    t.is(ended.code, 7)
    return ended
  })
})

test('a worker that is terminated in the middle of writing lets go of its locks, and the process goes on', async (t) => {
  await rounds(t, 'plain', KINDS.plain as CreateOptions, 20, async (task, prng) => {
    const ended = await runWriter('terminate', { ...task, after: 20 + prng.int(60) })
    t.is(ended.code, 0)
    t.is(ended.lines.at(-1), 'again')
    return ended
  })
})

test('a process that ends by itself with a disk open for writing leaves what was flushed', async (t) => {
  await rounds(t, 'plain', KINDS.plain as CreateOptions, 5, async (task) => {
    const ended = await runWriter('leave', task)
    t.is(ended.code, 0)
    return ended
  })
})

test('a disk that is forgotten is flushed and closed by the collector, with a warning', async (t) => {
  const path = join(temporaryFolder(), 'disk.qcow2')
  await create(path, { size: SIZE, lazyRefcounts: true })
  const { code, lines, stderr } = await runWriter('forget', { path, seed: 1, first: 1 }, { node: ['--expose-gc', '--no-warnings'] })
  t.is(code, 0, stderr)
  t.is(lines.at(-1), 'warned QCOW2_NOT_CLOSED')
  const expected = new Expected(SIZE)
  // All of it was written, so all of it is there: as if a flush had come at the end.
  const { requests, covered } = expected.follow([...lines.filter((line) => /^[id] /.test(line)), 'b end', 'e end'])
  t.is(covered, requests)
  t.is(expected.judge(await contents(path)), undefined)
  t.is(await faults(path), undefined)
})
