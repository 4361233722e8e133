// What the tests of the boundary run in processes of their own: `node boundary-child.cjs <scenario> [words…]`. It uses the addon as it is,
// without js/, so that a worker costs milliseconds. It ends with code 0 and one line of JSON, or it does not.
const assert = require('node:assert')
const { readdirSync, readFileSync, readlinkSync } = require('node:fs')
const { Worker, isMainThread, parentPort } = require('node:worker_threads')
const native = require('../../index.js')

const open = new Map()
let last = 0

// js/native.ts starts the addon itself, and it is started once.
if (process.argv[2] !== 'lost')
  native.start((triples, values) => {
    for (let at = 0; at < triples.length; at += 3) {
      const [id, status, value] = triples.subarray(at, at + 3)
      const call = open.get(id)
      if (status === 3) {
        call.onProgress?.(values[value])
        continue
      }
      open.delete(id)
      if (status === 2) call.reject(Object.assign(new Error(values[value].message), values[value]))
      else call.resolve(status === 0 ? value : values[value])
    }
  })

/** A call, with its number as `id`. */
function call(name, ...words) {
  const id = ++last
  const promise = new Promise((resolve, reject) => {
    open.set(id, { resolve, reject })
    native[name](id, ...words)
  })
  return Object.assign(promise, { id })
}

const code = (promise) =>
  promise.then(
    () => 'none',
    (error) => error.code,
  )
const layerSpec = {
  format: 'qcow2',
  forceShare: false,
  locking: 'auto',
  metadataOnly: false,
  forCheck: false,
  maxMemory: 2 ** 28,
  maxChainDepth: 200,
}
const chainSpec = { cacheBytes: 2 ** 25, maxChainDepth: 200 }

async function openDisk(path) {
  const layer = await call('openLayer', { path }, layerSpec)
  return call('openChain', [layer.handle], chainSpec)
}

/** A disk of bytes in memory. */
async function openMemory(bytes) {
  const layer = await call('openLayer', { memory: native.memoryCreate(bytes) }, { ...layerSpec, format: 'raw' })
  return call('openChain', [layer.handle], chainSpec)
}

function read(chain, target, position, length = target.length) {
  return call('read', chain.handle, target, 0, length, position >>> 0, Math.floor(position / 2 ** 32))
}

const convertSpec = {
  create: {
    format: 'qcow2',
    clusterSize: 65536,
    version: 3,
    refcountBits: 16,
    extendedL2: false,
    lazyRefcounts: false,
    compressionType: 'zlib',
    preallocation: 'off',
    dataFileRaw: false,
    nocow: false,
  },
  compression: 'zlib',
  level: 9,
  sparseSize: 4096,
  threads: 2,
  targetIsZero: false,
  salvage: false,
}
const target = (path) => ({ path, overwrite: true, durable: false, inPlace: false })

/** How many of this process's descriptors are of `path`. */
function descriptorsOf(path) {
  return readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`) === path
    } catch {
      return false
    }
  }).length
}

/** The bytes that the tests' image holds: see the spec. */
function expected(position, length) {
  const bytes = Buffer.alloc(length)
  for (let i = 0; i < length; i++) bytes[i] = 1 + (Math.floor((position + i) / 65536) % 255)
  return bytes
}

const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds))

const scenarios = {
  async panics() {
    const codes = {}
    for (const stage of ['call', 'pool', 'job', 'completion']) codes[stage] = await code(call('injectPanic', stage))
    // The guard around the entry itself throws; there is no call yet that could fail.
    assert.throws(() => native.injectPanic(0, 'argument'))
    const many = []
    for (let i = 0; i < 1000; i++) many.push(code(call('injectPanic', i % 2 ? 'pool' : 'completion')))
    assert.deepEqual(new Set(await Promise.all(many)), new Set(['ERR_QCOW2_INTERNAL']))
    // Everything still works.
    const memory = native.memoryCreate(new Uint8Array(512))
    assert.equal(await call('probeFormat', { memory }), 'raw')
    return codes
  },

  async 'wrong arguments'() {
    assert.throws(() => native.read(1), /convert/)
    assert.throws(() => native.openLayer(1, { path: 5 }, layerSpec))
    assert.throws(() => native.memoryWrite(native.memoryCreate(), 'text', 0), /Uint8Array/)
    assert.throws(() => native.memoryRead(native.memoryCreate(), new Uint16Array(4), 0), /Uint8Array/)
    assert.throws(() => native.memorySize(12345), { code: 'ERR_QCOW2_CLOSED' })
    assert.throws(() => native.memoryTruncate(native.memoryCreate(), -1), { code: 'ERR_QCOW2_INVALID_ARGUMENT' })
    assert.throws(() => native.memoryTruncate(native.memoryCreate(), 2 ** 60), { code: 'ERR_QCOW2_INVALID_ARGUMENT' })
    assert.throws(() => native.start(() => {}), /started before/)
    const memory = native.memoryCreate()
    return {
      window: await code(call('probeFormat', { memory, offset: -1n })),
      wide: await code(call('probeFormat', { memory, size: 2n ** 64n })),
      both: await code(call('probeFormat', { memory, path: '/' })),
      neither: await code(call('probeFormat', {})),
      notAChain: await code(call('read', memory, new Uint8Array(1), 0, 1, 0, 0)),
      unknownFormat: await code(call('openLayer', { memory }, { ...layerSpec, format: 'vmdk' })),
    }
  },

  async memory() {
    const bytes = Uint8Array.of(1, 2, 3, 4)
    const memory = native.memoryCreate(bytes)
    bytes.fill(9)
    const out = new Uint8Array(6)
    assert.equal(native.memoryRead(memory, out, 1), 3)
    assert.deepEqual([...out], [2, 3, 4, 0, 0, 0])
    native.memoryWrite(memory, Uint8Array.of(7), 6)
    assert.equal(native.memorySize(memory), 7)
    native.memoryTruncate(memory, 2)
    assert.equal(native.memoryRead(memory, out, 0), 2)
    // Shared memory goes in and out as well.
    const shared = new Uint8Array(new SharedArrayBuffer(4)).fill(5)
    native.memoryWrite(memory, shared, 0)
    assert.equal(native.memoryRead(memory, shared, 2), 2)
    native.memoryClose(memory)
    native.memoryClose(memory)
    assert.throws(() => native.memoryRead(memory, out, 0), { code: 'ERR_QCOW2_CLOSED' })
    return 'done'
  },

  /** 10,000 reads into buffers of every kind, many of which are taken away while the read is under way. */
  async buffers(path) {
    const chain = await openDisk(path)
    const counts = {}
    const length = 4096
    const kinds = ['plain', 'offset', 'shared', 'resizable', 'detached', 'shrunk', 'grown', 'gone']
    for (let round = 0; round < 100; round++) {
      const batch = []
      for (let i = 0; i < 100; i++) {
        const kind = kinds[i % kinds.length]
        const position = ((round * 100 + i) * 7919 * 512) % (2 ** 23 - length)
        const buffer =
          kind === 'shared'
            ? new SharedArrayBuffer(length)
            : kind === 'resizable' || kind === 'shrunk' || kind === 'grown'
              ? new ArrayBuffer(length, { maxByteLength: 2 * length })
              : new ArrayBuffer(kind === 'offset' ? length + 3 : length)
        let view = new Uint8Array(buffer, kind === 'offset' ? 3 : 0)
        const reading = read(chain, view, position, length)
        let moved
        if (kind === 'detached') moved = new Uint8Array(structuredClone(buffer, { transfer: [buffer] }))
        if (kind === 'shrunk') buffer.resize(i % 16 < 8 ? length - 1 : 0)
        if (kind === 'grown') buffer.resize(2 * length)
        if (kind === 'gone') view = undefined
        batch.push(
          reading.then(
            (count) => {
              counts[kind] = (counts[kind] ?? 0) + 1
              assert.ok(kind !== 'detached' && kind !== 'shrunk', kind)
              assert.equal(count, length)
              if (view) assert.deepEqual(Buffer.from(view.subarray(0, length)), expected(position, length), kind)
            },
            (error) => {
              counts[kind] = (counts[kind] ?? 0) + 1
              assert.equal(error.code, 'ERR_QCOW2_BUFFER_DETACHED')
              if (moved)
                assert.ok(
                  moved.every((byte) => byte === 0),
                  'the moved buffer was written to',
                )
            },
          ),
        )
      }
      await Promise.all(batch)
    }
    // A view that is detached before the call, and empty ones.
    const before = new Uint8Array(16)
    structuredClone(before.buffer, { transfer: [before.buffer] })
    assert.equal(await code(read(chain, before, 0, 16)), 'ERR_QCOW2_BUFFER_DETACHED')
    assert.equal(await read(chain, new Uint8Array(0), 0), 0)
    assert.equal(await read(chain, new Uint8Array(16), 2 ** 50), 0)
    assert.equal(await code(read(chain, new Uint8Array(16), 0, 17)), 'ERR_QCOW2_BUFFER_DETACHED')
    return counts
  },

  /** Reads that answer at once: what is no target, range or handle is refused without a trace, and left to the calls that may wait. */
  async 'at once'() {
    const bytes = Buffer.alloc(2 ** 21, 'qcow2 ')
    const chain = await openMemory(bytes)
    const now = (target, offset, length, position, handle = chain.handle) =>
      native.tryRead(handle, target, offset, length, position >>> 0, Math.floor(position / 2 ** 32))
    const target = Buffer.alloc(4096 + 2)
    // Nothing is known of the map yet: a read that may wait looks it up.
    const unknown = now(target, 1, 4096, 100)
    await read(chain, Buffer.alloc(2 ** 21), 0)
    assert.equal(now(target, 1, 4096, 100), 4096)
    assert.ok(target.subarray(1, 4097).equals(bytes.subarray(100, 4196)))
    assert.deepEqual([target[0], target[4097]], [0, 0])
    const large = Buffer.alloc(2 ** 20)
    assert.equal(now(large, 0, 2 ** 20, 7), 2 ** 20)
    assert.ok(large.equals(bytes.subarray(7, 7 + 2 ** 20)))
    const gone = new Uint8Array(4096)
    structuredClone(gone.buffer, { transfer: [gone.buffer] })
    const layer = await call('openLayer', { memory: native.memoryCreate(bytes) }, { ...layerSpec, format: 'raw' })
    const refused = [
      now(target, 3, 4096, 0),
      now(target, -1, 1, 0),
      now(target, 0.5, 1, 0),
      now(target, Number.MAX_SAFE_INTEGER, 4096, 0),
      now(gone, 0, 1, 0),
      now(target, 0, 1, 0, layer.handle),
      now(target, 0, 1, 0, 12345),
    ]
    assert.throws(() => now(new Uint16Array(4), 0, 1, 0), /Uint8Array/)
    assert.throws(() => now(new ArrayBuffer(4), 0, 1, 0), /Uint8Array/)
    const ends = [now(target, 0, 10, 2 ** 21 - 3), now(target, 0, 10, 2 ** 21), now(target, 0, 10, 2 ** 60), now(gone, 0, 0, 0)]
    await call('close', chain.handle)
    return { unknown, refused, ends, closed: now(target, 0, 1, 0) }
  },

  /** Held back, completions gather; they all come once they may. */
  async held() {
    const chain = await openMemory(Buffer.alloc(65536, 7))
    native.hold(true)
    let ended = 0
    const reads = Array.from({ length: 100 }, (_, i) => read(chain, new Uint8Array(512), i * 512).then(() => ended++))
    await wait(100)
    const before = ended
    native.hold(false)
    await Promise.all(reads)
    return { before, after: ended }
  },

  async close(path) {
    const chain = await openDisk(path)
    const order = []
    const reads = []
    for (let i = 0; i < 200; i++) reads.push(read(chain, new Uint8Array(65536), i * 4096).then(() => order.push('read')))
    const closes = [call('close', chain.handle), call('close', chain.handle)].map((closing) => closing.then(() => order.push('closed')))
    const late = await code(read(chain, new Uint8Array(1), 0))
    await Promise.all([...reads, ...closes])
    assert.deepEqual(order, [...Array(200).fill('read'), 'closed', 'closed'])
    assert.equal(descriptorsOf(path), 0)
    await call('close', chain.handle)
    // A layer's handle ends with the chain, and a layer in two chains at once cannot be.
    const layer = await call('openLayer', { path }, layerSpec)
    const twice = await Promise.allSettled([call('openChain', [layer.handle], chainSpec), call('openChain', [layer.handle], chainSpec)])
    assert.deepEqual(twice.map(({ status }) => status).sort(), ['fulfilled', 'rejected'])
    // A layer that is in use is not taken; it ends with its use, as every layer that is given to a chain does.
    const used = await call('openLayer', { path }, layerSpec)
    const checking = call('check', used.handle, { maxFindings: 1 })
    const busy = await code(call('openChain', [used.handle], chainSpec))
    await checking
    const after = await code(call('check', used.handle, { maxFindings: 1 }))
    return { late, again: await code(call('openChain', [layer.handle], chainSpec)), busy, after }
  },

  /** Ends by itself: an open disk that nobody uses keeps no process alive, a call under way does. */
  async liveness(path) {
    const chain = await openDisk(path)
    process.on('exit', () => console.log(JSON.stringify('left by itself')))
    // Not awaited by anything that keeps the process alive.
    read(chain, new Uint8Array(65536), 0).then((count) => assert.equal(count, 65536))
    return undefined
  },

  /** The addon loaded a second time in the same thread: both work, each for itself. */
  async twice(path) {
    const chain = await openDisk(path)
    for (const name of Object.keys(require.cache)) delete require.cache[name]
    const second = require('../../index.js')
    assert.notEqual(second, native)
    const completions = await new Promise((resolve) => {
      second.start((triples, values) => resolve([[...triples], values.map(({ code }) => code)]))
      // The first one's handles are not the second's.
      second.read(1, chain.handle, new Uint8Array(1), 0, 1, 0, 0)
    })
    assert.equal(await read(chain, new Uint8Array(512), 0), 512)
    return completions
  },

  /** Disks of js/ that are forgotten instead of closed. */
  async lost(path) {
    const { call: make, closeWhenLost } = require('../../js/native.ts')
    const open = async () => {
      const layer = await make((addon, id) => addon.openLayer(id, { path }, layerSpec))
      const { handle } = await make((addon, id) => addon.openChain(id, [layer.handle], chainSpec))
      const owner = { handle }
      closeWhenLost(owner, handle)
      return owner
    }
    let owners = await Promise.all(Array.from({ length: 50 }, open))
    const before = descriptorsOf(path)
    owners = undefined
    for (let i = 0; i < 100 && descriptorsOf(path) > 0; i++) {
      globalThis.gc()
      await wait(20)
    }
    return { before, after: descriptorsOf(path), owners }
  },

  async cancel(source, folder) {
    const chain = await openDisk(source)
    const outcomes = []
    for (let delay = 0; delay < 30; delay++) {
      const converting = call('convert', [chain.handle], target(`${folder}/out.qcow2`), convertSpec)
      if (delay > 0) await wait(delay % 10)
      native.cancel(converting.id)
      native.cancel(converting.id)
      outcomes.push(await code(converting))
      // After the end, and one that never was.
      native.cancel(converting.id)
      native.cancel(10 ** 9)
    }
    assert.ok(outcomes.every((outcome) => outcome === 'ERR_QCOW2_CANCELLED' || outcome === 'none'))
    return { cancelled: outcomes.filter((outcome) => outcome !== 'none').length, left: readdirSync(folder) }
  },

  /** More jobs than run at once: one that waits for its turn is cancelled without waiting for it. */
  async 'queued jobs'(source, folder) {
    const chain = await openDisk(source)
    const jobs = []
    for (let i = 0; i < 12; i++) jobs.push(call('convert', [chain.handle], target(`${folder}/${i}.qcow2`), convertSpec))
    native.cancel(jobs[11].id)
    const first = await Promise.race(
      jobs.map((job, i) =>
        job.then(
          () => i,
          () => i,
        ),
      ),
    )
    for (const job of jobs) native.cancel(job.id)
    await Promise.allSettled(jobs)
    await call('close', chain.handle)
    return { first, left: readdirSync(folder).filter((name) => !/^\d+\.qcow2$/.test(name)) }
  },

  async progress(source, folder) {
    const chain = await openDisk(source)
    const converting = call('convert', [chain.handle], target(`${folder}/out.qcow2`), convertSpec)
    const reports = []
    open.get(converting.id).onProgress = (report) => reports.push(report)
    await converting
    for (let i = 1; i < reports.length; i++) assert.ok(reports[i].phase !== reports[i - 1].phase || reports[i].done >= reports[i - 1].done)
    return { reports: reports.length, end: reports.at(-1) }
  },

  /** Workers that are terminated while they read and convert. */
  async workers(path, folder, count, what) {
    let started = 0
    let ended = 0
    const one = async (index) => {
      const worker = new Worker(__filename, {
        argv: ['victim', path, `${folder}/${index % 16}.qcow2`, what ?? ['convert', 'read', 'at once', 'read'][index % 4]],
      })
      await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject))
      started++
      await wait(Math.floor((index * 7) % 23))
      await worker.terminate()
      ended++
    }
    for (let at = 0; at < count; at += 10) await Promise.all(Array.from({ length: Math.min(10, count - at) }, (_, i) => one(at + i)))
    // What still waited for a thread lets go of its disk when a thread comes to it.
    for (let i = 0; what === 'ahead' && i < 200 && descriptorsOf(path) > 0; i++) await wait(10)
    assert.equal(descriptorsOf(path), 0, 'a terminated worker left a file open')
    const chain = await openDisk(path)
    const bytes = Buffer.alloc(4096)
    assert.equal(await read(chain, bytes, 65536), 4096)
    assert.deepEqual(bytes, expected(65536, 4096))
    return { started, ended, left: readdirSync(folder).filter((name) => !/^\d+\.qcow2$/.test(name)), threads: threads() }
  },

  /** Runs in a worker until it is terminated. */
  async victim(path, out, what) {
    const chain = await openDisk(path)
    const reading = async (lane) => {
      for (let i = 0; ; i++) await read(chain, new Uint8Array(65536), ((i * 31 + lane) % 64) * 65536)
    }
    // In small parts, one after the other: what comes next is decoded on other threads meanwhile.
    const onward = async () => {
      for (let i = 0; ; i++) await read(chain, new Uint8Array(8192), (i * 8192) % (8 << 20))
    }
    const converting = async () => {
      for (;;) await call('convert', [chain.handle], target(out), convertSpec)
    }
    /** On the worker's own thread, with the process's helpers. */
    const atOnce = async () => {
      const known = await openMemory(Buffer.alloc(2 ** 20, 1))
      const target = new Uint8Array(2 ** 20)
      await read(known, target, 0)
      for (;;) {
        for (let i = 0; i < 20; i++) assert.equal(native.tryRead(known.handle, target, 0, 2 ** 20, 0, 0), 2 ** 20)
        await wait(0)
      }
    }
    const endless = what === 'convert' ? [converting()] : what === 'ahead' ? [onward()] : what === 'at once' ? [atOnce()] : [1, 2, 3, 4].map(reading)
    parentPort.postMessage('busy')
    await Promise.all(endless)
  },

  /** The addon in the main thread and in workers at once: everybody reads what is there. */
  async together(path) {
    const workers = [1, 2, 3, 4].map((lane) => new Worker(__filename, { argv: ['reader', path, String(lane)] }))
    const ends = workers.map((worker) => new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject)))
    const own = scenarios.reader(path, '0')
    return [await own, ...(await Promise.all(ends))]
  },

  async reader(path, lane) {
    const chain = await openDisk(path)
    for (let i = 0; i < 300; i++) {
      const position = ((i * 13 + Number(lane)) % 120) * 65536 + 100
      const bytes = Buffer.alloc(8192)
      assert.equal(await read(chain, bytes, position), 8192)
      assert.ok(bytes.equals(expected(position, 8192)))
    }
    await call('close', chain.handle)
    return 'read'
  },

  /** `process.exit` at a stage. Whoever exits is not asked to leave things in order, but nothing may crash and nothing may be left behind. */
  async exit(path, folder, stage) {
    process.on('exit', () => native.shutdown(3000))
    if (stage === 'opening') {
      call('openLayer', { path }, layerSpec)
      process.exit(7)
    }
    const chain = await openDisk(path)
    if (stage === 'reading') for (let i = 0; i < 50; i++) read(chain, new Uint8Array(65536), i * 65536)
    if (stage === 'reading ahead') for (let i = 0; i < 64; i++) await read(chain, new Uint8Array(8192), i * 8192)
    if (stage === 'completion') {
      read(chain, new Uint8Array(65536), 0).then(() => process.exit(7))
      return undefined
    }
    if (stage === 'converting') {
      call('convert', [chain.handle], target(`${folder}/out.qcow2`), convertSpec)
      await wait(5)
    }
    if (stage === 'queued') for (let i = 0; i < 20; i++) call('convert', [chain.handle], target(`${folder}/out.qcow2`), convertSpec)
    if (stage === 'worker') {
      const worker = new Worker(__filename, { argv: ['victim', path, `${folder}/out.qcow2`, 'convert'] })
      await new Promise((resolve) => worker.once('message', resolve))
    }
    if (stage === 'closing') call('close', chain.handle)
    process.exit(7)
  },
}

function threads() {
  return Number(/Threads:\s*(\d+)/.exec(readFileSync('/proc/self/status', 'latin1'))[1])
}

async function main([scenario, ...words]) {
  const result = await scenarios[scenario](...words)
  if (!isMainThread) parentPort.postMessage(result)
  else if (result !== undefined) console.log(JSON.stringify(result))
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error)
  process.exit(1)
})
