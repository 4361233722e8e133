/** Uses keys and lets others look at its memory: told what to do by messages, it answers when it is done and waits. It never has anything to compare with. */
const { openSync, readSync, closeSync, fstatSync } = require('node:fs')
const qcow2 = require('../../dist/index.js')

/** The bytes of a file in memory of their own, which `wipe` overwrites. */
function bytesOf(path) {
  const file = openSync(path, 'r')
  const bytes = new Uint8Array(new ArrayBuffer(fstatSync(file).size))
  readSync(file, bytes)
  closeSync(file)
  return bytes
}

const owned = []

function secretFrom(kind, path) {
  if (kind === 'file') return { file: path }
  const bytes = bytesOf(path)
  owned.push(bytes)
  return kind === 'bytes' ? bytes : async () => bytes
}

let disk
const steps = {
  async open({ path, kind, key, options }) {
    disk = await qcow2.open(path, { secret: secretFrom(kind, key), ...options })
    const buffer = Buffer.alloc(1 << 20)
    for (let position = 0; position < disk.virtualSize; position += buffer.length) await disk.read(buffer, { position })
    // What the page cache has is read on this thread.
    for (let position = 0; position < disk.virtualSize; position += 50_001) await disk.read(buffer, { position, length: 4096 })
    if (options.writable) await disk.write(buffer.subarray(0, 5), { position: 700 })
  },
  async close() {
    await disk.close()
  },
  async create({ path, kind, key, encryption }) {
    await qcow2.create(path, { size: '2M', overwrite: true, encryption: { secret: secretFrom(kind, key), iterTime: 10, ...encryption } })
  },
  async convert({ from, path, kind, key }) {
    const secret = secretFrom(kind, key)
    await qcow2.convert(from, path, { overwrite: true, source: { secret }, encryption: { secret, iterTime: 10 } })
  },
  async amend({ path, kind, key, added }) {
    const keySlot = { newSecret: secretFrom(kind, added), iterTime: 10 }
    await qcow2.amend(path, { secret: secretFrom(kind, key), keySlot })
    await qcow2.amend(path, { secret: secretFrom(kind, added), keySlot: { oldSecret: secretFrom(kind, key) } })
  },
  /** What belongs to the caller is the caller's to wipe. */
  wipe() {
    for (const bytes of owned.splice(0)) bytes.fill(0)
  },
}

process.on('message', async ({ step, ...rest }) => {
  try {
    await steps[step](rest)
    process.send({ done: true })
  } catch (error) {
    process.send({ done: false, code: error.code, message: error.message })
  }
})
