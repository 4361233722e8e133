/**
 * Commands that change images, beside qemu-img: each run on a fresh copy that is on the device, equal results checked first.
 *
 * node --require tsx/cjs benches/in-place.ts [--quick] [--pairs N] [--only TEXT]
 */
import { randomFillSync } from 'node:crypto'
import { closeSync, fsyncSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { bareNode, HEAD, row, type Task } from './lib/pairs.js'
import { must } from './lib/process.js'
import { table } from './lib/stats.js'

const { values: options } = parseArgs({ options: { quick: { type: 'boolean' }, pairs: { type: 'string' }, only: { type: 'string' } } })
const quick = options.quick === true
const pairs = Number(options.pairs ?? (quick ? 3 : 5))
const folder = mkdtempSync(join(process.env.QCOW2_BENCH_FOLDER ?? tmpdir(), 'qcow2-bench-'))
const at = (name: string) => join(folder, name)

const MiB = 1024 ** 2
/** Bytes that rebase and commit move. */
const DATA = quick ? 256 * MiB : 1024 * MiB
const AMENDED = quick ? '128G' : '1T'

const img = (...words: string[]) => must('qemu-img', words)
const create = (...words: string[]) => img('create', '-q', '-f', 'qcow2', ...words)

main().then(
  () => rmSync(folder, { recursive: true, force: true }),
  (error: unknown) => {
    rmSync(folder, { recursive: true, force: true })
    console.error(error)
    process.exitCode = 1
  },
)

async function main(): Promise<void> {
  const wanted = tasks().filter(({ name }) => name.includes(options.only ?? ''))
  await prepare()
  const node = await bareNode()
  const rows: string[][] = []
  for (const task of wanted) rows.push(await row(task, pairs, node))
  console.log(table(HEAD, rows))
}

async function prepare(): Promise<void> {
  const file = openSync(at('data.raw'), 'w')
  const piece = Buffer.alloc(16 * MiB)
  for (let done = 0; done < DATA; done += piece.length) writeSync(file, randomFillSync(piece))
  fsyncSync(file)
  closeSync(file)
  await img('convert', '-f', 'raw', '-O', 'qcow2', at('data.raw'), at('data.qcow2'))
  await create(at('empty.qcow2'), `${DATA}`)
  await create('-b', 'data.qcow2', '-F', 'qcow2', at('overlay.qcow2'))
  // For commit: the data are in the overlay.
  await img('convert', '-f', 'raw', '-O', 'qcow2', at('data.raw'), at('filled.qcow2'))
  await create('-o', 'preallocation=metadata', at('tera.qcow2'), AMENDED)
}

/** A copy with its holes, on the device when this ends, and in the page cache. */
async function copy(from: string, to: string): Promise<void> {
  await must('cp', ['--sparse=always', at(from), at(to)])
  await must('sync', [at(to)])
}

function tasks(): Task[] {
  const onCopy = (name: string, promised: number, from: string, words: (file: string) => string[], equal: Task['equal']): Task => ({
    name,
    promised,
    before: (side) => copy(from, `${side}.qcow2`),
    ours: words(at('ours.qcow2')),
    qemu: [words(at('qemu.qcow2'))],
    equal,
  })
  const rebase = (file: string) => ['rebase', '-f', 'qcow2', '-b', 'empty.qcow2', '-F', 'qcow2', file]
  const amend = (file: string) => ['amend', '-f', 'qcow2', '-o', 'refcount_bits=64', file]
  const dd = (file: string) => ['dd', '-f', 'raw', '-O', 'raw', 'bs=1M', 'count=256', `if=${at('data.raw')}`, `of=${file}`]
  return [
    onCopy(`rebase of ${DATA / MiB} MiB`, 1.3, 'overlay.qcow2', rebase, sameContents),
    {
      ...onCopy(`commit of ${DATA / MiB} MiB`, 0.95, 'filled.qcow2', (file) => ['commit', '-f', 'qcow2', file], sameBases),
      before: async (side) => {
        await copy('empty.qcow2', `base-${side}.qcow2`)
        await copy('filled.qcow2', `${side}.qcow2`)
        await img('rebase', '-u', '-f', 'qcow2', '-b', `base-${side}.qcow2`, '-F', 'qcow2', at(`${side}.qcow2`))
      },
    },
    {
      name: 'dd of 256 MiB',
      promised: 1,
      ours: dd(at('ours.raw')),
      qemu: [dd(at('qemu.raw'))],
      outputs: [at('ours.raw'), at('qemu.raw')],
      equal: sameRaw,
    },
    onCopy(`amend of refcount bits, ${AMENDED} of metadata`, 3, 'tera.qcow2', amend, bothClean),
  ]
}

async function bothClean(): Promise<void> {
  for (const side of ['ours', 'qemu']) await img('check', '-q', '-f', 'qcow2', at(`${side}.qcow2`))
  const facts = await Promise.all(['ours', 'qemu'].map(async (side) => JSON.parse((await img('info', '--output=json', at(`${side}.qcow2`))).stdout)))
  const [a, b] = facts.map((one) => JSON.stringify([one['format-specific'], one['virtual-size'], (one.snapshots ?? []).length]))
  if (a !== b) throw new Error(`different facts: ${a} ${b}`)
}

async function sameContents(): Promise<void> {
  await img('compare', '-f', 'qcow2', '-F', 'qcow2', at('ours.qcow2'), at('qemu.qcow2'))
}

async function sameBases(): Promise<void> {
  await img('compare', '-f', 'qcow2', '-F', 'qcow2', at('base-ours.qcow2'), at('base-qemu.qcow2'))
}

async function sameRaw(): Promise<void> {
  await must('cmp', [at('ours.raw'), at('qemu.raw')])
}
