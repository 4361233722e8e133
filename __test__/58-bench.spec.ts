/** The measuring harness: where its requests go, what it counts, and how it ends. Nothing here looks at how fast anything was. */
import { execFileSync, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { copyFileSync, readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { inspect } from 'node:util'
import test from 'ava'
import { bench, check, create, Disk, open, type Progress, type Qcow2Error } from '../js/index.js'
import { LatencyCounts } from '../js/latency.js'
import { answer, start } from './support/cli.js'
import { failure, MIB } from './support/fixtures.js'
import { must, qemu, temporaryFolder } from './support/qemu.js'

const MAIN = resolve(__dirname, '../dist/cli/main.js')

/** An image of 3 MiB and 1 KiB over a backing file, so that requests wrap in the middle of clusters. */
async function overlay(): Promise<{ folder: string; top: string }> {
  const folder = temporaryFolder()
  await must('qemu-img', ['create', '-q', '-f', 'qcow2', 'base.q', `${3 * MIB + 1024}`], { cwd: folder })
  await must('qemu-io', ['-c', 'write -P 9 0 2M', 'base.q'], { cwd: folder })
  await must('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', 'base.q', '-F', 'qcow2', 'top.q'], { cwd: folder })
  return { folder, top: join(folder, 'top.q') }
}

test('written requests land where those of qemu-img bench land, around the end too', async (t) => {
  const { folder, top } = await overlay()
  for (const [count, size, step, offset, pattern] of [
    [100, 512, 70_656, 0, 7],
    [700, 4096, 0, 0, 8],
    [300, 1, 999_983, 5, 9],
    [50, 1024, 3 * MIB + 2048, 1024, 10],
    [9, 65_536, 262_144, 512, 11],
  ] as const) {
    const [ours, theirs] = ['ours.q', 'theirs.q'].map((name) => join(folder, name)) as [string, string]
    for (const copy of [ours, theirs]) copyFileSync(top, copy)
    const words = ['-c', count, '-s', size, '-S', step, '-o', offset, '--pattern', pattern].map(String)
    await must('qemu-img', ['bench', '-w', '-f', 'qcow2', ...words, theirs])
    const result = await bench(ours, { write: true, count, size, step, offset, pattern, depth: 8 })
    t.like(result, { requests: count, bytes: count * size, flushes: 0 })
    await qemu.img('compare', '-f', 'qcow2', '-F', 'qcow2', ours, theirs)
    t.like(await check(ours), { corruptions: 0, leaks: 0, checkErrors: 0 })
  }
})

test('reads count what was asked for and change nothing', async (t) => {
  const { top } = await overlay()
  const before = readFileSync(top)
  const result = await bench(top, { count: 1000, depth: 16, size: '512', step: 3072 })
  t.like(result, { requests: 1000, bytes: 512_000, flushes: 0 })
  t.true(result.seconds > 0)
  t.is(result.requestsPerSecond, result.requests / result.seconds)
  t.is(result.bytesPerSecond, result.bytes / result.seconds)
  const { mean, p50, p90, p99, max } = result.latency
  for (const [less, more] of [
    [0, p50],
    [p50, p90],
    [p90, p99],
    [p99, max],
    [0, mean],
    [mean, max],
  ] as const)
    t.true(less <= more, inspect(result))
  t.deepEqual(readFileSync(top), before)
})

test('flushes come where qemu-img sends them, and wait for what is under way unless told not to', async (t) => {
  const { top } = await overlay()
  const flushes = async (count: number, depth: number, flushInterval: number) =>
    (await bench(top, { write: true, count, depth, flushInterval })).flushes
  // As strace shows of qemu-img bench on a raw file: a flush whenever the number of requests to come is a multiple of the interval.
  t.is(await flushes(10, 2, 3), 3)
  t.is(await flushes(9, 1, 3), 3)
  t.is(await flushes(6, 1, 2), 3)
  t.is(await flushes(5, 3, 100), 1)
  const { flushes: undrained } = await bench(top, { write: true, count: 100, depth: 4, flushInterval: 10, drain: false })
  t.true(undrained >= 10)
})

/** How often a disk that is written by our command was flushed to its device, as strace counts. */
async function syncs(folder: string, ...words: string[]): Promise<number> {
  const log = join(folder, 'strace')
  await must('strace', ['-f', '-qq', '-e', 'trace=fdatasync,fsync', '-o', log, 'node', MAIN, 'bench', '-w', '-s', '512', '-d', '1', ...words], {
    cwd: folder,
  })
  return readFileSync(log, 'utf8')
    .split('\n')
    .filter((line) => /f(data)?sync\(/.test(line)).length
}

const strace = spawnSync('strace', ['true']).status === 0 ? test : test.skip

strace('a cache mode that writes through syncs each write, and unsafe nothing at all', async (t) => {
  const { folder } = await overlay()
  await must('qemu-img', ['create', '-q', '-f', 'raw', 'disk.raw', '1M'], { cwd: folder })
  const usual = await syncs(folder, '-c', '20', 'disk.raw')
  t.true((await syncs(folder, '-c', '20', '-t', 'writethrough', 'disk.raw')) >= usual + 19)
  t.true((await syncs(folder, '-c', '20', '-t', 'directsync', 'disk.raw')) >= usual + 19)
  t.true((await syncs(folder, '-c', '20', '--flush-interval', '5', 'disk.raw')) >= usual + 3)
  t.is(await syncs(folder, '-c', '20', '--flush-interval', '5', '-t', 'unsafe', 'disk.raw'), 0)
})

test('a request that passes the end of the disk is refused when its turn comes', async (t) => {
  const { top } = await overlay()
  for (const write of [false, true]) {
    for (const options of [{ offset: 3 * MIB + 1024 }, { size: 4 * MIB }, { offset: 2n ** 62n }, { size: '1M', step: 1_000_001, depth: 1 }]) {
      const error = await failure(() => bench(top, { ...options, write, count: 5 }))
      t.is(error.code, 'ERR_QCOW2_OUT_OF_RANGE', inspect(options))
    }
  }
  const folder = temporaryFolder()
  await create(join(folder, 'nothing.q'), { size: 0 })
  t.is((await failure(() => bench(join(folder, 'nothing.q'), { count: 1 }))).code, 'ERR_QCOW2_OUT_OF_RANGE')
})

test('positions beyond 2^53 are exact', async (t) => {
  const path = join(temporaryFolder(), 'huge.q')
  await create(path, { size: 2n ** 54n, clusterSize: '2M' })
  await bench(path, { write: true, count: 4, depth: 1, size: 512, step: 2n ** 53n + 512n, offset: 1024, pattern: 3 })
  const disk = await open(path, { bigint: true })
  const found: bigint[] = []
  for (const at of [0n, 512n, 1024n, 1536n, 2048n, 2560n]) {
    for (const base of [0n, 2n ** 53n]) {
      const { buffer } = await disk.read(Buffer.alloc(512), { position: base + at })
      if (buffer.every((byte) => byte === 3)) found.push(base + at)
    }
  }
  await disk.close()
  t.deepEqual(found, [1024n, 2n ** 53n + 1536n, 2048n, 2n ** 53n + 2560n])
})

test('a snapshot is measured where one is named, and a raw disk where raw is said', async (t) => {
  const { folder, top } = await overlay()
  await must('qemu-img', ['snapshot', '-c', 'one', top])
  await must('qemu-img', ['resize', '-q', top, '8M'])
  t.like(await bench(top, { snapshot: 'one', count: 3, offset: '3M', size: 1024, step: '3M' }), { requests: 3 })
  t.is((await failure(() => bench(top, { snapshot: 'one', count: 3, offset: '7M' }))).code, 'ERR_QCOW2_OUT_OF_RANGE')
  t.like(await bench(join(folder, 'base.q'), { format: 'raw', count: 3 }), { requests: 3 })
})

test('a signal, cancel and a listener that throws end a run that would take hours', async (t) => {
  const { top } = await overlay()
  for (const write of [false, true]) {
    const options = { write, count: 2 ** 31 - 1, depth: 4, size: 1024 }
    const controller = new AbortController()
    // The timer is only heard because reads leave the event loop its turns.
    setTimeout(() => controller.abort(new Error('enough')), 50)
    const error = await failure(() => bench(top, { ...options, signal: controller.signal }))
    t.is(error.code, 'ERR_QCOW2_CANCELLED')
    t.is((error.cause as Error).message, 'enough')
    const job = bench(top, options)
    setTimeout(() => job.cancel(), 50)
    t.is((await failure(() => job)).code, 'ERR_QCOW2_CANCELLED')
    const thrown = new Error('listener')
    const onProgress = ({ done }: Progress) => {
      if (done > 0) throw thrown
    }
    t.is(
      await bench(top, { ...options, onProgress }).then(
        () => undefined,
        (error: unknown) => error,
      ),
      thrown,
    )
  }
  t.like(await check(top), { corruptions: 0, leaks: 0, checkErrors: 0 })
})

test('what is cancelled on its way to being open leaves nothing locked', async (t) => {
  const { top } = await overlay()
  let cancelled = 0
  for (let round = 0; round < 120; round++) {
    const controller = new AbortController()
    const { signal } = controller
    const began = round % 2 === 0 ? open(top, { writable: true, signal }) : bench(top, { write: true, size: 1024, count: 2 ** 31 - 1, signal })
    // At another step each time: whoever opens hops to a thread and back several times.
    for (let turn = 0; turn < round / 4; turn++) await nextTurn()
    controller.abort()
    const disk = await began.then(
      (result) => result,
      (error: Qcow2Error) => {
        t.is(error.code, 'ERR_QCOW2_CANCELLED')
        cancelled++
      },
    )
    if (disk instanceof Disk) await disk.close()
    await (await open(top, { writable: true })).close()
  }
  t.true(cancelled >= 60)
})

test('progress is in bytes and ends with all of them', async (t) => {
  const { top } = await overlay()
  const seen: Progress[] = []
  await bench(top, { count: 5000, size: 512, onProgress: (progress) => seen.push(progress) })
  t.deepEqual(seen[0], { phase: 'bench', done: 0, total: 2_560_000 })
  t.deepEqual(seen.at(-1), { phase: 'bench', done: 2_560_000, total: 2_560_000 })
  t.true(seen.every(({ done }, index) => done >= (seen[index - 1]?.done ?? 0)))
})

test('options that mean nothing are refused before the image is opened', async (t) => {
  for (const [options, argument] of [
    [{ count: 0 }, 'count'],
    [{ depth: 0 }, 'depth'],
    [{ size: 0 }, 'size'],
    [{ pattern: 256 }, 'pattern'],
    [{ flushInterval: 64 }, 'flushInterval'],
    [{ write: true, flushInterval: 63 }, 'flushInterval'],
    [{ durable: true }, 'durable'],
    [{ write: true, forceShare: true }, 'forceShare'],
    [{ write: true, snapshot: 'x' }, 'writable'],
    [{ writable: true }, 'writable'],
    [{ queueDepth: 1 }, 'queueDepth'],
  ] as const) {
    const error = await failure(() => bench('not there', options as object))
    t.regex(error.code, /^ERR_QCOW2_(INVALID_ARGUMENT|UNKNOWN_OPTION)$/, inspect(options))
    t.is(error.details.argument, argument)
  }
  t.is((await failure(() => bench(Buffer.alloc(10), { write: true }))).details.argument, 'source')
})

test('percentiles are those of the sorted times, to 2 %', (t) => {
  let seed = 1
  const times = Array.from({ length: 20_000 }, () => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0
    // From 1 µs to 20 s, as many in each octave.
    return 2 ** ((seed / 2 ** 32) * 24) / 1000
  })
  const counts = new LatencyCounts()
  for (const time of times) counts.record(time)
  times.sort((a, b) => a - b)
  const { p50, p90, p99, max } = counts.summary
  for (const [found, share] of [
    [p50, 0.5],
    [p90, 0.9],
    [p99, 0.99],
  ] as const) {
    const exact = (times[Math.ceil(times.length * share) - 1] as number) * 1000
    t.true(found >= exact && found <= exact * 1.02, `${share}: ${found} beside ${exact}`)
  }
  t.is(max, Math.round((times.at(-1) as number) * 1e6) / 1000)
  t.deepEqual(new LatencyCounts().summary, { mean: 0, p50: 0, p90: 0, p99: 0, max: 0 })
})

test('the command tells the same as JSON', async (t) => {
  const { folder } = await overlay()
  const words = ['bench', '-w', '-c', '20', '-d', '2', '-s', '1k', '-S', '4k', '--pattern', '3', '--flush-interval', '10', '--output=json', 'top.q']
  const { code, stdout, stderr } = await answer('qcow2', words, { cwd: folder, ours: true })
  t.is(stderr, '')
  t.is(code, 0)
  const { seconds, 'latency-microseconds': latency, ...rest } = JSON.parse(stdout) as Record<string, number>
  t.deepEqual(Object.keys(latency as unknown as object).sort(), ['max', 'mean', 'p50', 'p90', 'p99'])
  t.like(rest, { filename: 'top.q', format: 'qcow2', operation: 'write', requests: 20, 'buffer-size': 1024, depth: 2, offset: 0, 'step-size': 4096 })
  t.like(rest, { pattern: 3, 'flush-interval': 10, flushes: 2, bytes: 20_480, 'requests-per-second': 20 / (seconds as number) })
})

test('the command tells its progress on SIGUSR1 and dies by SIGINT', async (t) => {
  const { folder, top } = await overlay()
  const child = start(['bench', '-w', '-c', '2147483647', '-d', '1', '-s', '1k', 'top.q'], folder)
  let stderr = ''
  child.stderr.on('data', (text) => {
    stderr += text
    if (stderr.includes('%)')) child.kill('SIGINT')
  })
  const timer = setInterval(() => child.kill('SIGUSR1'), 100)
  const [code, signal] = await once(child, 'exit')
  clearInterval(timer)
  t.deepEqual([code, signal], [null, 'SIGINT'])
  // Node.js itself hears a signal that comes before any of our own code.
  t.regex(stderr.replace(/^(Debugger listening|For help).*\n/gm, ''), /^( {4}\(0\.\d\d\/100%\)\n)+$/)
  execFileSync('qemu-img', ['check', '-q', top])
  t.pass()
})
