/**
 * A busy writer that is ended at any moment. It says on stdout what it does before and after it does it, so that its parent knows what has to
 * be there afterwards: `i n position length kind` before a request, `d n` after it, `b k` and `e k` around a flush, `s name` after a snapshot.
 */
const { writeSync } = require('node:fs')
const { Worker, isMainThread, parentPort, workerData } = require('node:worker_threads')
const { open, create } = require('../../dist/index.js')

const LANES = 8
const SECTOR = 512

function say(...words) {
  // At once: what was said before the end is what counts. A pipe that is full is asked again.
  let line = Buffer.from(`${words.join(' ')}\n`)
  while (line.length > 0) {
    try {
      line = line.subarray(writeSync(1, line))
    } catch (error) {
      if (error.code !== 'EAGAIN') throw error
    }
  }
}

function randomOf(seed) {
  let state = seed >>> 0
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return Math.floor((state / 2 ** 32) * below)
  }
}

/** Bytes of a request: its number, over and over. */
function bytesOf(number, length) {
  const bytes = Buffer.alloc(length)
  for (let at = 0; at < length; at += 8) bytes.writeUInt32LE(number, at)
  return bytes
}

/** Writes until it is ended, or until `requests` are done. */
async function write({ path, seed, first, snapshots, requests = Number.POSITIVE_INFINITY }) {
  const disk = await open(path, { writable: true })
  const stripe = disk.virtualSize / LANES
  let next = first
  let done = 0
  let flushes = 0
  let over = false
  const lane = async (index) => {
    const random = randomOf(seed * LANES + index)
    while (done < requests) {
      const number = next++
      const sectors = 1 + random(random(4) === 0 ? 200 : 20)
      const kind = ['w', 'w', 'w', 'w', 'z', 'u', 'd'][random(7)]
      let position = index * stripe + random(stripe / SECTOR - sectors) * SECTOR
      let length = sectors * SECTOR
      if (kind === 'd') {
        const end = position + length
        position = Math.ceil(position / disk.clusterSize) * disk.clusterSize
        length = Math.max(0, Math.floor(end / disk.clusterSize) * disk.clusterSize - position)
      }
      say('i', number, position, length, kind)
      if (kind === 'w') await disk.write(bytesOf(number, length), { position })
      else if (kind === 'd') await disk.discard(position, length)
      else await disk.writeZeroes(position, length, { unmap: kind === 'u' })
      say('d', number)
      done++
    }
  }
  const flushing = async () => {
    while (!over) {
      const flush = flushes++
      say('b', flush)
      await disk.flush()
      say('e', flush)
      await new Promise((resolve) => setTimeout(resolve, flush % 7))
    }
  }
  const snapping = async () => {
    for (let i = 0; !over; i++) {
      const name = `${first}-${i}`
      await disk.snapshots.create(name)
      say('s', name)
      const [oldest] = disk.snapshots.list()
      if (disk.snapshots.list().length > 3) await disk.snapshots.delete({ id: oldest.id })
      await new Promise((resolve) => setTimeout(resolve, 3))
    }
  }
  const lanes = Promise.all(Array.from({ length: LANES }, (_, index) => lane(index))).finally(() => {
    over = true
  })
  say('busy')
  await Promise.all([lanes, flushing(), ...(snapshots ? [snapping()] : [])])
  return disk
}

const endings = {
  /** Until somebody kills it. */
  kill: (task) => write(task),

  async exit(task) {
    setTimeout(() => process.exit(7), task.after)
    await write(task)
  },

  /** A worker that is terminated; the process goes on, and the image can be opened again in it. */
  async terminate(task) {
    const worker = new Worker(__filename, { workerData: { task } })
    await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject))
    await new Promise((resolve) => setTimeout(resolve, task.after))
    await worker.terminate()
    const disk = await open(task.path, { writable: true })
    await disk.close()
    say('again')
  },

  /** Disks that nobody closes but the collector. */
  async forget(task) {
    const warned = new Promise((resolve) => process.on('warning', resolve))
    await (async () => {
      await write({ ...task, requests: 200 })
    })()
    let warning
    warned.then((given) => {
      warning = given
    })
    for (let i = 0; i < 500 && warning === undefined; i++) {
      globalThis.gc()
      await new Promise((resolve) => setTimeout(resolve, 10))
    }
    // Its locks tell when it is closed.
    for (let i = 0; i < 500; i++) {
      const closed = await open(task.path).then(
        (disk) => disk.close().then(() => true),
        () => false,
      )
      if (closed) break
      await new Promise((resolve) => setTimeout(resolve, 10))
    }
    say('warned', warning?.code)
  },

  /** Ends by itself while a disk is open for writing: an open disk keeps no process alive. */
  async leave(task) {
    await write({ ...task, requests: 100 })
  },

  async make({ path, options }) {
    await create(path, options)
  },
}

async function main() {
  if (!isMainThread) {
    const { task } = workerData
    setTimeout(() => parentPort.postMessage('busy'), 1)
    await write(task)
    return
  }
  const [ending, task] = process.argv.slice(2)
  await endings[ending](JSON.parse(task))
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})
