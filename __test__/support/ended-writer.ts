/** Runs a writer (write-child.cjs) to its end, and judges what it left. */
import { spawn } from 'node:child_process'
import { closeSync, openSync, readSync } from 'node:fs'
import { join } from 'node:path'
import { type Disk, open } from '../../js/index.js'
import { qemu } from './qemu.js'

const CHILD = join(__dirname, 'write-child.cjs')
const SECTOR = 512

/** What the writer is told. */
export interface Task {
  path: string
  seed: number
  /** Number of its first request: no number is used twice for an image. */
  first: number
  snapshots?: boolean
  /** When it ends itself, in milliseconds. */
  after?: number
}

/** How a writer ended, and what it had said. */
export interface Ended {
  code: number | null
  signal: string | null
  lines: string[]
  stderr: string
}

/** Runs a writer. `killAfter`: it is killed so many milliseconds after it began to write. */
export function runWriter(ending: string, task: Task, options: { killAfter?: number; node?: string[] } = {}): Promise<Ended> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [...(options.node ?? []), CHILD, ending, JSON.stringify(task)], { timeout: 60_000 })
    let [stdout, stderr] = ['', '']
    let began = false
    child.stdout.setEncoding('latin1').on('data', (chunk: string) => {
      stdout += chunk
      if (began || !stdout.includes('busy\n')) return
      began = true
      if (options.killAfter !== undefined) setTimeout(() => child.kill('SIGKILL'), options.killAfter)
    })
    child.stderr.setEncoding('utf8').on('data', (chunk: string) => {
      stderr += chunk
    })
    child.on('error', reject)
    // The last line may be half of one.
    child.on('close', (code, signal) => resolve({ code, signal, lines: stdout.split('\n').slice(0, -1), stderr }))
  })
}

/** What the sectors of a disk may hold, by the numbers of the requests that wrote them; 0 is zeros. */
export class Expected {
  readonly #sectors: Set<number>[]

  constructor(size: number) {
    this.#sectors = Array.from({ length: size / SECTOR }, () => new Set([0]))
  }

  /** Takes in what a writer said. Requests of one lane never overlap another's, and follow each other. */
  follow(lines: readonly string[]): { requests: number; covered: number; last: number } {
    const requests = new Map<number, { position: number; length: number; kind: string; done: boolean; covered: boolean }>()
    const flushes = new Map<string, number[]>()
    let last = 0
    for (const line of lines) {
      const [word, a = '', b, c, kind = ''] = line.split(' ')
      if (word === 'i') {
        requests.set(Number(a), { position: Number(b), length: Number(c), kind, done: false, covered: false })
        last = Math.max(last, Number(a))
      }
      const request = requests.get(Number(a))
      if (word === 'd' && request !== undefined) request.done = true
      if (word === 'b')
        flushes.set(
          a,
          [...requests].filter(([, { done }]) => done).map(([number]) => number),
        )
      if (word === 'e') {
        for (const number of flushes.get(a) ?? []) {
          const request = requests.get(number)
          if (request !== undefined) request.covered = true
        }
      }
    }
    for (const [number, { position, length, kind, covered }] of [...requests].sort(([a], [b]) => a - b)) {
      const value = kind === 'w' ? number : 0
      for (let sector = position / SECTOR; sector < (position + length) / SECTOR; sector++) {
        if (covered) this.#sectors[sector] = new Set([value])
        else this.#sectors[sector]?.add(value)
      }
    }
    return { requests: requests.size, covered: [...requests.values()].filter(({ covered }) => covered).length, last }
  }

  /** What is wrong with the bytes of a disk; nothing if all is well. From then on they are what the disk holds. */
  judge(bytes: Buffer): string | undefined {
    for (let sector = 0; sector * SECTOR < bytes.length; sector++) {
      const part = bytes.subarray(sector * SECTOR, (sector + 1) * SECTOR)
      const number = part.readUInt32LE(0)
      for (let at = 0; at < SECTOR; at += 8) {
        if (part.readUInt32LE(at) !== number || part.readUInt32LE(at + 4) !== 0) return `sector ${sector} holds pieces of several requests`
      }
      const allowed = this.#sectors[sector] as Set<number>
      if (!allowed.has(number)) return `sector ${sector} holds ${number}, and may hold ${[...allowed].join(', ')}`
      this.#sectors[sector] = new Set([number])
    }
    return undefined
  }
}

/** Reads a whole disk, or a snapshot of it. */
export async function contents(path: string, snapshot?: string): Promise<Buffer> {
  const disk = (await open(path, snapshot === undefined ? {} : { snapshot })) as Disk<number>
  try {
    return (await disk.read(Buffer.alloc(disk.virtualSize), { position: 0 })).buffer
  } finally {
    await disk.close()
  }
}

/** Whether the header says that the image was not closed. */
export function isDirty(path: string): boolean {
  const file = openSync(path, 'r')
  try {
    const header = Buffer.alloc(80)
    readSync(file, header, 0, 80, 0)
    return header.readUInt32BE(4) >= 3 && (header.readUInt32BE(76) & 1) !== 0
  } finally {
    closeSync(file)
  }
}

/** What `qemu-img check` has against an image. A dirty one is opened for writing first, as everybody does who writes to it. Leaks are allowed. */
export async function faults(path: string): Promise<string | undefined> {
  if (isDirty(path)) await (await open(path, { writable: true })).close()
  const { code, counts, stderr } = await qemu.check(path)
  return code === 0 || code === 3 ? undefined : `qemu-img check ends with ${code}: ${JSON.stringify(counts)} ${stderr.slice(0, 500)}`
}
