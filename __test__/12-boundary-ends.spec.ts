/**
 * Ends in the middle of writing, as JavaScript brings them about: a thousand workers that are terminated, `process.exit` at every await, buffers that go
 * away or change under a write, an addon that is there twice. Each scenario is a process of its own (support/ends-child.cjs).
 */
import { spawn } from 'node:child_process'
import { mkdirSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { create } from '../js/index.js'
import { contents, faults } from './support/ended-writer.js'
import { must, temporaryFolder } from './support/qemu.js'

const CHILD = join(__dirname, 'support', 'ends-child.cjs')
const MIB = 1 << 20
const WORKERS = 1000
const LANES = 4

async function answer(...words: string[]): Promise<unknown> {
  const { stdout } = await must(process.execPath, [CHILD, ...words], { timeout: 280_000 })
  return JSON.parse(stdout.toString())
}

test('a thousand workers terminated while they write: no lock, file or thread stays, and every image is sound', async (t) => {
  t.timeout(290_000)
  const folder = temporaryFolder()
  const images = Array.from({ length: LANES }, (_, index) => join(folder, `${index}.qcow2`))
  const options = [{}, { lazyRefcounts: true }, { clusterSize: 4096 }, { extendedL2: true, clusterSize: 16384 }]
  for (const [index, path] of images.entries()) await create(path, { size: 8 * MIB, ...options[index] })
  const { ended, threads } = (await answer('workers', folder, String(WORKERS), String(LANES))) as { ended: number; threads: number }
  t.is(ended, WORKERS)
  t.true(threads < 40, `${threads} threads are left`)
  let written = 0
  for (const [index, path] of images.entries()) {
    t.is(await faults(path), undefined, path)
    const bytes = await contents(path)
    for (let at = 0; at < bytes.length; at += 512) {
      const number = bytes.readUInt32LE(at)
      // Zeros, or what one worker of this image wrote, whole.
      const whole = number === 0 || (number <= WORKERS && (number - 1) % LANES === index)
      if (number !== 0) written++
      if (!whole || !bytes.subarray(at, at + 512).equals(sectorOf(number))) t.fail(`${path}: the sector at ${at} begins with ${number}`)
    }
  }
  t.true(written > 0)
})

function sectorOf(number: number): Buffer {
  const sector = Buffer.alloc(512)
  for (let at = 0; at < 512; at += 4) sector.writeUInt32LE(number, at)
  return sector
}

test('process.exit at every await of everything that there is to await: its own code, sound images, nothing half-made', async (t) => {
  t.timeout(290_000)
  const all = temporaryFolder()
  const run = (at: number, turn: string): Promise<{ folder: string; code: number | null; signal: string | null; stderr: string; stdout: string }> => {
    const folder = join(all, `${at}-${turn}`)
    mkdirSync(folder)
    return new Promise((resolve, reject) => {
      const child = spawn(process.execPath, [CHILD, 'exit', folder, String(at), turn], { timeout: 60_000 })
      let [stdout, stderr] = ['', '']
      child.stdout.on('data', (chunk) => {
        stdout += chunk
      })
      child.stderr.on('data', (chunk) => {
        stderr += chunk
      })
      child.on('error', reject)
      child.on('close', (code, signal) => resolve({ folder, code, signal, stderr, stdout }))
    })
  }
  const count = Number((await run(-1, 'never')).stdout)
  t.true(count >= 34, `${count} awaits`)
  for (let at = 0; at < count; at++) {
    const both = await Promise.all([run(at, 'now'), run(at, 'later')])
    for (const { folder, code, signal, stderr } of both) {
      const about = `${folder}: ${signal ?? code} ${stderr}`
      t.is(signal, null, about)
      t.is(code, 7, about)
      t.is(stderr, '', about)
      const left = readdirSync(folder)
      t.deepEqual(
        left.filter((name) => !/^(base|top|copy|over)\.(qcow2|raw)$/.test(name)),
        [],
        about,
      )
      for (const name of left) if (name.endsWith('.qcow2')) t.is(await faults(join(folder, name)), undefined, `${about}: ${name}`)
    }
  }
})

test('two copies of the addon, on two threads each: both read, and only one at a time writes', async (t) => {
  const folder = temporaryFolder()
  const path = join(folder, 'disk.qcow2')
  await create(path, { size: MIB })
  const once = [4096, 4096, 'open', 'ERR_QCOW2_LOCKED']
  t.deepEqual(await answer('copies', folder, path), [once, once])
})

test('what is written is what was there at the call: buffers that are detached, filled anew, shrunk, grown and shared', async (t) => {
  const path = join(temporaryFolder(), 'disk.qcow2')
  await create(path, { size: MIB })
  t.is(await answer('buffers', path), 'done')
  t.is(await faults(path), undefined)
})
