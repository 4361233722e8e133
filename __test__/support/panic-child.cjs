/**
 * A panic in every entry of the addon, at every stage that the entry has: `node panic-child.cjs FOLDER`. Prints, as JSON, what each entry answered at
 * each stage. It uses the addon as it is; who calls it knows which entries there are.
 */
const assert = require('node:assert')
const { join } = require('node:path')
const native = require('../../index.js')

const STAGES = ['entry', 'call', 'work', 'progress', 'completion']
const SIZE = 1 << 20
const open = new Map()
let last = 0

native.start((triples, values) => {
  for (let at = 0; at < triples.length; at += 3) {
    const [id, status, value] = triples.subarray(at, at + 3)
    if (status === 3) continue
    const call = open.get(id)
    open.delete(id)
    if (status === 2) call.reject(Object.assign(new Error(values[value].message), values[value]))
    else call.resolve(status === 0 ? value : values[value])
  }
})

function call(name, ...words) {
  const id = ++last
  return new Promise((resolve, reject) => {
    open.set(id, { resolve, reject })
    native[name](id, ...words)
  })
}

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
const createSpec = {
  ...{ format: 'qcow2', clusterSize: 65536, version: 3, refcountBits: 16, extendedL2: false, lazyRefcounts: false },
  ...{ compressionType: 'zlib', preallocation: 'off', dataFileRaw: false, nocow: false },
}
const convertSpec = { create: createSpec, sparseSize: 4096, threads: 2, targetIsZero: false, salvage: false }
const target = (path) => ({ path, overwrite: true, durable: false, inPlace: false })
const both = { text: 'one', by: 'any' }

let folder = ''
let count = 0

/** A new image with some bytes in it; over another one, if there is one. */
async function image(more = {}) {
  const path = join(folder, `${++count}.${more.encryption === undefined ? 'qcow2' : 'luks'}`)
  await call('create', target(path), { ...createSpec, size: BigInt(SIZE), ...more })
  return path
}

const layer = async (path, more = {}) => (await call('openLayer', { path, writable: more.writable }, { ...layerSpec, ...more })).handle

async function reader(path) {
  return (await call('openChain', [await layer(path)], chainSpec)).handle
}

/** A disk that is written, with a snapshot `one` and a bitmap `one`. */
async function writer(more = {}) {
  const path = await image(more)
  // Without the layer below it, if it names one.
  const { handle } = await call('openDisk', [await layer(path, { writable: true })], 2 ** 25, true)
  await call('write', handle, new Uint8Array(4096).fill(1), 0, 4096, 0, 0)
  await call('snapshotCreate', handle, { name: 'one', allowDuplicate: false })
  await call('bitmapAdd', handle, { name: 'one', enabled: true })
  await call('flush', handle)
  return { path, handle }
}

const secret = new Uint8Array(8).fill(65)
const bytes = new Uint8Array(4096).fill(2)

/** What makes the arguments of each entry, with the disk that it changes, if it changes one. */
const ENTRIES = {
  memoryCreate: async () => ({ words: [bytes] }),
  memorySize: async () => ({ words: [native.memoryCreate(bytes)] }),
  memoryRead: async () => ({ words: [native.memoryCreate(bytes), new Uint8Array(9), 0] }),
  memoryWrite: async () => ({ words: [native.memoryCreate(bytes), bytes, 5] }),
  memoryTruncate: async () => ({ words: [native.memoryCreate(bytes), 5] }),
  memoryClose: async () => ({ words: [native.memoryCreate(bytes)] }),
  probeFormat: async () => ({ words: [{ path: await image() }] }),
  inspectHead: async () => ({ words: [{ path: await image() }, true] }),
  survey: async () => ({ words: [await reader(await image()), 100] }),
  openLayer: async () => ({ words: [{ path: await image() }, layerSpec] }),
  unlockLayer: async () => {
    const path = await image({
      encryption: { method: 'luks', secret, cipher: 'aes-256', cipherMode: 'xts', ivGenerator: 'plain64', hash: 'sha256', iterTime: 1 },
    })
    return { words: [await layer(path), secret, false] }
  },
  attachDataFile: async () => {
    const data = join(folder, `${++count}.data`)
    const path = await image({ dataFile: data, dataFilePath: data })
    return { words: [await layer(path), { path: data }] }
  },
  openChain: async () => ({ words: [[await layer(await image())], chainSpec] }),
  openDisk: async () => ({ words: [[await layer(await image(), { writable: true })], 2 ** 25, false] }),
  read: async () => ({ words: [await reader(await image()), new Uint8Array(4096), 0, 4096, 0, 0] }),
  tryRead: async () => ({ words: [await reader(await image()), new Uint8Array(4096), 0, 4096, 0, 0] }),
  map: async () => ({ words: [await reader(await image()), 0n, BigInt(SIZE), 100] }),
  measure: async () => ({
    words: [{ ...createSpec, dataFile: undefined, dataFileRaw: undefined, chain: await reader(await image()), backing: false }],
  }),
  digest: async () => ({ words: [await reader(await image()), { algorithm: 'blake3', blockSize: 65536 }] }),
  verify: async () => ({
    words: [
      await reader(await image()),
      new Uint8Array(32),
      new Uint8Array(),
      new Uint8Array(),
      { algorithm: 'blake3', blockSize: 65536, maxRanges: 5 },
    ],
  }),
  compare: async () => ({ words: [await reader(await image()), await reader(await image()), { strict: false }] }),
  check: async () => ({ words: [await layer(await image(), { forCheck: true }), { maxFindings: 5 }] }),
  repair: async () => ({
    words: [
      { path: await image(), writable: true },
      { ...layerSpec, writable: true, forCheck: true },
      { all: true, maxFindings: 5 },
    ],
  }),
  create: async () => ({ words: [target(join(folder, `${++count}.qcow2`)), { ...createSpec, size: BigInt(SIZE) }] }),
  convert: async () => {
    const source = await writer()
    const { handle, path } = await writer()
    return {
      words: [[source.handle], { ...target(undefined), path: undefined, disk: handle }, { ...convertSpec, create: { ...createSpec, format: 'raw' } }],
      handle,
      path,
    }
  },
  write: async () => changes(await writer(), bytes, 0, 4096, 65536, 0),
  writeZeroes: async () => changes(await writer(), 0n, 65536n, true),
  discard: async () => changes(await writer(), 0n, 65536n),
  flush: async () => {
    const made = await writer()
    await call('write', made.handle, bytes, 0, 4096, 65536, 0)
    return changes(made)
  },
  resize: async () => changes(await writer(), BigInt(SIZE * 2), { shrink: false, preallocation: 'off' }),
  amend: async () => changes(await writer(), { refcountBits: 64 }),
  commit: async () => {
    const base = await image()
    const { handle, path } = await writer({ backing: base.slice(folder.length + 1), backingFormat: 'qcow2' })
    const lower = await call('openDisk', [await layer(base, { writable: true })], 2 ** 25, false)
    return { words: [handle, lower.handle, { empty: true }], handle, path }
  },
  rebase: async () => {
    const base = await image()
    const { handle, path } = await writer()
    return { words: [handle, await reader(base), { unchecked: false, compress: false }], handle, path }
  },
  snapshotList: async () => ({ words: [(await writer()).handle] }),
  snapshotCreate: async () => changes(await writer(), { name: 'two', allowDuplicate: false }),
  snapshotApply: async () => changes(await writer(), both),
  snapshotDelete: async () => changes(await writer(), both),
  snapshotRename: async () => changes(await writer(), both, 'two'),
  snapshotOpen: async () => changes(await writer(), both),
  bitmapList: async () => ({ words: [(await writer()).handle] }),
  bitmapAdd: async () => changes(await writer(), { name: 'two', enabled: true }),
  bitmapRemove: async () => changes(await writer(), 'one'),
  bitmapClear: async () => changes(await writer(), 'one'),
  bitmapEnable: async () => changes(await writer(), 'one', false),
  bitmapMerge: async () => {
    const made = await writer()
    await call('bitmapAdd', made.handle, { name: 'two', enabled: true })
    return changes(made, 'one', 'two')
  },
  bitmapMergeFrom: async () => changes(await writer(), 'one', await reader((await closed(await writer())).path), 'one'),
  bitmapDirty: async () => changes(await writer(), 'one', 0n, 10),
  close: async () => {
    const { handle, path } = await writer()
    return { words: [handle], path }
  },
  cancel: async () => ({ words: [] }),
  hold: async () => ({ words: [false] }),
  start: async () => ({ words: [() => {}] }),
  // The last: nothing completes after it. It waits for nobody, and so it is called once only.
  shutdown: async () => ({ words: [0] }),
}

function changes(made, ...words) {
  return { words: [made.handle, ...words], handle: made.handle, path: made.path }
}

async function closed(made) {
  await call('close', made.handle)
  return made
}

/** Those that answer at once, and take no number. */
const AT_ONCE = new Set(['start', 'hold', 'shutdown', 'tryRead', 'snapshotList', 'bitmapList'])
const isAtOnce = (name) => name.startsWith('memory') || AT_ONCE.has(name)

async function answerOf(name, words) {
  try {
    if (name === 'cancel') native.cancel(12345)
    else if (isAtOnce(name)) native[name](...words)
    else await call(name, ...words)
    return 'none'
  } catch (error) {
    // What has no code becomes ERR_QCOW2_INTERNAL in js/native.ts.
    return /^ERR_QCOW2_/.test(error.code) ? error.code : /injected at/.test(error.message) ? 'thrown' : String(error)
  }
}

async function attempt(name, stage) {
  const made = await ENTRIES[name]()
  native.armPanic(stage)
  const answer = await answerOf(name, made.words)
  const reached = !native.armPanic('none')
  const after = {}
  if (made.handle !== undefined) {
    after.write = await answerOf('write', [made.handle, bytes, 0, 512, 131072, 0])
    after.read = await answerOf('read', [made.handle, new Uint8Array(512), 0, 512, 0, 0])
    after.close = await answerOf('close', [made.handle])
  }
  if (made.path !== undefined) {
    // Its locks are gone, and it can be written again.
    if (name === 'close') after.close = await answerOf('close', made.words)
    try {
      const { handle } = await call('openDisk', [await layer(made.path, { writable: true })], 2 ** 25, true)
      await call('close', handle)
    } catch (error) {
      after.reopen = String(error)
    }
  }
  return reached ? { answer, ...after } : { unreached: answer }
}

async function main() {
  folder = process.argv[2]
  const results = {}
  for (const name of Object.keys(ENTRIES)) {
    results[name] = {}
    if (name === 'shutdown') {
      // Until here the process has lived, and everything still works.
      assert.equal(await call('read', await reader(await image()), new Uint8Array(512), 0, 512, 0, 0), 512)
    }
    for (const stage of name === 'shutdown' ? ['entry'] : STAGES) {
      results[name][stage] = await attempt(name, stage).catch((error) => ({ error: String(error) }))
    }
  }
  console.log(JSON.stringify(results))
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})
