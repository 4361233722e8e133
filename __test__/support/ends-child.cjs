/**
 * Ends in the middle: `node ends-child.cjs SCENARIO WORDS…`, with the package as it is built. Prints one line of JSON, or dies as it was told to.
 */
const assert = require('node:assert')
const { copyFileSync, readFileSync, readdirSync, readlinkSync, writeSync } = require('node:fs')
const { join } = require('node:path')
const { Worker, isMainThread, parentPort, workerData } = require('node:worker_threads')
const qcow2 = require('../../dist/index.js')

const MIB = 1 << 20
const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds))
const threads = () => Number(/Threads:\s*(\d+)/.exec(readFileSync('/proc/self/status', 'latin1'))[1])

function descriptorsOf(path) {
  return readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`) === path
    } catch {
      return false
    }
  }).length
}

/** A busy writer in a worker: sectors that hold its number, over and over. */
async function victim({ path, number, kind }) {
  const disk = await qcow2.open(path, { writable: true })
  const bytes = Buffer.alloc(65536)
  for (let at = 0; at < bytes.length; at += 4) bytes.writeUInt32LE(number, at)
  const lane = async (first) => {
    for (let i = first; ; i += 4) {
      const position = ((i * 2654435761 + number * 40503) % 120) * 65536 + ((i + number) % 8) * 512
      const length = 512 * (1 + ((i * 7) % 64))
      if (i % 11 === 0) await disk.discard(position - (position % 65536), 65536)
      else if (i % 5 === 0) await disk.writeZeroes(position, length)
      else await disk.write(bytes.subarray(0, length), { position })
      if (kind === 'flush' && i % 3 === 0) await disk.flush()
      if (kind === 'snapshots' && i % 16 === 0) {
        const { id } = await disk.snapshots.create(`${number}-${i}`)
        await disk.snapshots.delete({ id })
      }
    }
  }
  parentPort.postMessage('busy')
  await Promise.all([0, 1, 2, 3].map(lane))
}

const KINDS = ['write', 'flush', 'snapshots', 'write']

const scenarios = {
  /** Workers that are terminated while they write, some at once, each image by one after the other. */
  async workers(folder, count, lanes) {
    let ended = 0
    const lane = async (index) => {
      const path = join(folder, `${index}.qcow2`)
      for (let number = index + 1; number <= Number(count); number += Number(lanes)) {
        const worker = new Worker(__filename, { workerData: { path, number, kind: KINDS[number % 4] } })
        await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject))
        await wait((number * 7) % 13)
        await worker.terminate()
        ended++
        assert.equal(descriptorsOf(path), 0, `worker ${number} left its image open`)
      }
    }
    await Promise.all(Array.from({ length: Number(lanes) }, (_, index) => lane(index)))
    return { ended, threads: threads() }
  },

  /** Exits when as many promises were made as it is told: at once, or when the event loop has turned. Says how many there were. */
  async exit(folder, at, turn) {
    let count = 0
    const path = (name) => join(folder, name)
    /** Every await of what follows. */
    const step = async (promise) => {
      promise.then(
        () => {},
        () => {},
      )
      if (count++ === Number(at)) {
        if (turn === 'later') await new Promise(setImmediate)
        process.exit(7)
      }
      return promise
    }
    const { create, open, convert, check, compare, commit, rebase, digest, verify, measure, info, amend } = qcow2
    await step(create(path('base.qcow2'), { size: 4 * MIB }))
    await step(create(path('top.qcow2'), { backing: 'base.qcow2', backingFormat: 'qcow2', clusterSize: 4096 }))
    const disk = await step(open(path('top.qcow2'), { writable: true }))
    await step(disk.write(Buffer.alloc(300_000, 1), { position: 1000 }))
    const reading = disk.read(Buffer.alloc(2 * MIB), { position: 0 })
    await step(reading)
    await step(disk.flush())
    const { id } = await step(disk.snapshots.create('one'))
    await step(disk.write(Buffer.alloc(300_000, 2), { position: 100_000 }))
    await step(disk.bitmaps.add('one'))
    await step(disk.writeZeroes(0, 65536, { unmap: true }))
    await step(disk.discard(131072, 65536))
    const snapshot = await step(disk.snapshots.open(id))
    await step(snapshot.read(Buffer.alloc(4096), { position: 0 }))
    await step(snapshot.close())
    await step(disk.snapshots.apply(id))
    await step(disk.resize(8 * MIB))
    await step(disk.snapshots.delete(id))
    const runs = disk.map()
    await step(runs.next())
    await step(disk.bitmaps.clear('one'))
    await step(disk.bitmaps.remove('one'))
    await step(disk.close())
    await step(info(path('top.qcow2')))
    await step(check(path('top.qcow2')))
    await step(measure(path('top.qcow2'), { format: 'qcow2' }))
    const { manifest } = await step(digest(path('top.qcow2'), { manifest: true }))
    await step(verify(path('top.qcow2'), manifest))
    await step(convert(path('top.qcow2'), path('copy.qcow2'), { compression: 'zstd' }))
    await step(convert(path('top.qcow2'), path('copy.raw')))
    await step(compare(path('top.qcow2'), path('copy.qcow2')))
    await step(amend(path('copy.qcow2'), { refcountBits: 64 }))
    await step(check(path('copy.qcow2'), { repair: 'all' }))
    await step(rebase(path('top.qcow2'), { backing: null }))
    await step(create(path('over.qcow2'), { backing: 'copy.qcow2', backingFormat: 'qcow2' }))
    await step(commit(path('over.qcow2')))
    writeSync(1, JSON.stringify(count))
    return undefined
  },

  /** Two copies of the addon's file: two addons, with statics, threads and locks of their own, on two threads each. */
  async copies(folder, path) {
    const name = readdirSync(join(__dirname, '../..')).find((file) => file.endsWith('.node'))
    const load = (index) => {
      const file = join(folder, `copy-${index}.node`)
      copyFileSync(join(__dirname, '../..', name), file)
      return file
    }
    const files = [load(1), load(2)]
    const answers = [await useCopies(files, path)]
    const worker = new Worker(__filename, { workerData: { files, path } })
    answers.push(await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject)))
    // The package's own goes on beside them.
    const disk = await qcow2.open(path, { writable: true })
    await disk.close()
    return answers
  },

  /** Writes from memory that others change, take away or shrink: what is written is what was there at the call, or a mixture of it. */
  async buffers(path) {
    const disk = await qcow2.open(path, { writable: true })
    const image = Buffer.alloc(MIB)
    const expect = async () => assert.ok((await disk.read(Buffer.alloc(MIB), { position: 0 })).buffer.equals(image))
    const put = async (bytes, position) => {
      image.set(bytes, position)
      return disk.write(bytes, { position })
    }
    // Detached and filled anew right behind the call.
    for (let i = 0; i < 300; i++) {
      const bytes = new Uint8Array(4096 + (i % 5)).fill(i)
      const writing = put(bytes, (i % 250) * 4096)
      if (i % 2 === 0) structuredClone(bytes.buffer, { transfer: [bytes.buffer] })
      else bytes.fill(255)
      assert.equal((await writing).bytesWritten, 4096 + (i % 5))
    }
    await expect()
    // Shrunk and grown.
    for (let i = 0; i < 300; i++) {
      const bytes = new Uint8Array(new ArrayBuffer(8192, { maxByteLength: 16384 })).fill(i)
      const writing = put(bytes, (i % 100) * 8192)
      bytes.buffer.resize(i % 2 === 0 ? 0 : 16384)
      await writing
    }
    await expect()
    // A view that tracks a buffer which has become shorter than where it begins.
    const buffer = new ArrayBuffer(8192, { maxByteLength: 8192 })
    const view = new Uint8Array(buffer, 4096)
    buffer.resize(1000)
    assert.equal((await disk.write(view, { position: 0 })).bytesWritten, 0)
    await expect()
    // Shared with a thread that changes it all the time: each byte is one that was there.
    const shared = new Uint8Array(new SharedArrayBuffer(65536)).fill(1)
    const worker = new Worker('const{workerData:b}=require("node:worker_threads");for(;;){b.fill(2);b.fill(1)}', { eval: true, workerData: shared })
    for (let i = 0; i < 200; i++) {
      await disk.write(shared, { position: 0 })
      await disk.read(shared.subarray(0, 512), { position: 0 })
    }
    const { buffer: found } = await disk.read(Buffer.alloc(65536), { position: 0 })
    await worker.terminate()
    assert.ok(found.every((byte) => byte === 1 || byte === 2))
    // A manifest's bytes are copied by the call too.
    const { manifest } = await qcow2.digest(Buffer.alloc(MIB, 1), { format: 'raw', manifest: true, blockSize: 4096 })
    const source = new Uint8Array(new SharedArrayBuffer(MIB)).fill(1)
    const verifying = qcow2.verify(source, manifest, { format: 'raw' })
    manifest.leaves.length = 0
    source.fill(9)
    assert.equal((await verifying).identical, true)
    await disk.close()
    return 'done'
  },
}

/** Both addons open one image to read it, and only one to write it. */
async function useCopies(files, path) {
  const addons = files.map((file) => {
    const module = { exports: {} }
    process.dlopen(module, file)
    const open = new Map()
    module.exports.start((triples, values) => {
      for (let at = 0; at < triples.length; at += 3) {
        const [id, status, value] = triples.subarray(at, at + 3)
        const { resolve, reject } = open.get(id) ?? {}
        if (status === 2) reject(Object.assign(new Error(values[value].message), values[value]))
        else if (status !== 3) resolve(status === 0 ? value : values[value])
      }
    })
    let last = 0
    return (name, ...words) =>
      new Promise((resolve, reject) => {
        open.set(++last, { resolve, reject })
        module.exports[name](last, ...words)
      })
  })
  const layerSpec = {
    format: 'qcow2',
    forceShare: false,
    locking: 'auto',
    metadataOnly: false,
    forCheck: false,
    maxMemory: 2 ** 28,
    maxChainDepth: 200,
  }
  const answers = []
  const chains = []
  for (const call of addons) {
    const { handle } = await call('openLayer', { path }, layerSpec)
    const chain = await call('openChain', [handle], { cacheBytes: 2 ** 25, maxChainDepth: 200 })
    chains.push(chain.handle)
    answers.push(await call('read', chain.handle, new Uint8Array(4096), 0, 4096, 0, 0))
  }
  for (const [index, call] of addons.entries()) await call('close', chains[index])
  let written
  for (const call of addons) {
    try {
      const { handle } = await call('openLayer', { path, writable: true }, { ...layerSpec, writable: true })
      answers.push('open')
      written = () => call('close', handle)
    } catch ({ code }) {
      answers.push(code)
    }
  }
  await written()
  return answers
}

async function main([scenario, ...words]) {
  if (!isMainThread) {
    if (workerData.files === undefined) return victim(workerData)
    return parentPort.postMessage(await useCopies(workerData.files, workerData.path))
  }
  const result = await scenarios[scenario](...words)
  if (result !== undefined) console.log(JSON.stringify(result))
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error)
  process.exit(1)
})
