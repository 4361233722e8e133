/**
 * Encrypted images beside qemu-img: the same work through the API and by the command, equal contents checked first, pairs of runs in alternating order.
 *
 * node --require tsx/cjs benches/luks.ts [--quick] [--pairs N] [--only TEXT]
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { makeDisk } from '../scripts/lib/disk.mjs'
import { bareNode, HEAD, row, type Task } from './lib/pairs.js'
import { type Measured, must } from './lib/process.js'
import { table } from './lib/stats.js'

const { values: options } = parseArgs({ options: { quick: { type: 'boolean' }, pairs: { type: 'string' }, only: { type: 'string' } } })
const pairs = Number(options.pairs ?? (options.quick ? 3 : 5))
const folder = mkdtempSync(join(process.env.QCOW2_BENCH_FOLDER ?? tmpdir(), 'qcow2-bench-'))
const at = (name: string) => join(folder, name)
const READS = options.quick ? 20_000 : 100_000

/** For qemu's programs: the password, and an image that it opens. */
const SECRET = ['--object', 'secret,id=s,data=bench']
const opened = (name: string) => `driver=qcow2,file.filename=${at(name)},encrypt.key-secret=s`
/** For ours. */
const PASSWORD = `secret:Buffer.from('bench')`
const path = (name: string) => JSON.stringify(at(name))

main().finally(() => rmSync(folder, { recursive: true, force: true }))

async function main(): Promise<void> {
  const full = { folder: process.env.QCOW2_BENCH_SOURCE ?? '/usr', most: 1.2 * 1024 ** 3, size: 2 * 1024 ** 3 }
  const made = await makeDisk(at('disk.raw'), options.quick ? { folder: join(__dirname, '..', 'node_modules') } : full)
  await must('qemu-img', [
    'convert',
    ...SECRET,
    '-f',
    'raw',
    '-O',
    'qcow2',
    '-o',
    `${luks()},encrypt.iter-time=10`,
    at('disk.raw'),
    at('quick.qcow2'),
  ])
  await must('qemu-img', ['convert', ...SECRET, '-f', 'raw', '-O', 'qcow2', '-o', luks(), at('disk.raw'), at('slow.qcow2')])
  let state = 1
  const places = Array.from({ length: READS }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return `read -q ${(state % (400 << 8)) * 4096} 4096\n`
  })
  writeFileSync(at('places'), places.join(''))
  await must('sync', [])
  console.log(`Source: ${made.kind}, ${made.files} files.\n`)
  const node = await bareNode()
  const rows: string[][] = []
  for (const task of tasks()) if (task.name.includes(options.only ?? '')) rows.push(await row(task, pairs, node))
  console.log(table(HEAD, rows))
}

function luks(): string {
  return 'encrypt.format=luks,encrypt.key-secret=s'
}

function tasks(): Task[] {
  const outputs: [string, string] = [at('ours.out'), at('qemu.out')]
  const encrypt = (name: string, promised: number, theirs: string, ours: string): Task => ({
    name,
    promised,
    ours: [],
    script: `await q.convert(${path('disk.raw')},${path('ours.out')},{format:'qcow2',encryption:{${PASSWORD}${ours}}})`,
    qemu: ['4', '16'].map((count) => [
      'convert',
      '-W',
      '-m',
      count,
      ...SECRET,
      '-f',
      'raw',
      '-O',
      'qcow2',
      '-o',
      luks() + theirs,
      at('disk.raw'),
      at('qemu.out'),
    ]),
    outputs,
    equal: async () => {
      for (const name of ['ours.out', 'qemu.out']) {
        await must('qemu-img', ['compare', ...SECRET, '--image-opts', opened(name), `driver=raw,file.filename=${at('disk.raw')}`])
      }
    },
  })
  return [
    encrypt('raw → LUKS', 1.6, '', ''),
    encrypt('raw → LUKS, iter-time=10', 4, ',encrypt.iter-time=10', ',iterTime:10'),
    {
      name: 'LUKS → raw',
      promised: 1.8,
      ours: [],
      script: `await q.convert(${path('quick.qcow2')},${path('ours.out')},{sourceFormat:'qcow2',format:'raw',source:{${PASSWORD}}})`,
      qemu: ['4', '16'].map((count) => ['convert', '-W', '-m', count, ...SECRET, '--image-opts', opened('quick.qcow2'), '-O', 'raw', at('qemu.out')]),
      outputs,
      equal: async () => {
        for (const name of ['ours.out', 'qemu.out']) await must('cmp', [at(name), at('disk.raw')])
      },
    },
    {
      name: 'unlock (the iterations of 2 s; qemu-io)',
      promised: 2,
      ours: [],
      script: `const d=await q.open(${path('slow.qcow2')},{${PASSWORD}});const{buffer}=await d.read(Buffer.alloc(512),{position:0});await d.close();console.log(buffer.length)`,
      rival: 'qemu-io',
      qemu: [[...SECRET, '--image-opts', opened('slow.qcow2'), '-r', '-c', 'read 0 512']],
      equal: bothRead,
    },
    {
      // qemu-img bench takes no secrets: qemu-io reads at the same places, one after the other.
      name: `${READS} random reads of 4 KiB (qemu-io)`,
      promised: 3,
      ours: [],
      script: `const d=await q.open(${path('quick.qcow2')},{${PASSWORD}});const b=Buffer.alloc(4096);
        for(const line of require('fs').readFileSync(${path('places')},'latin1').split('\\n'))if(line)await d.read(b,{position:Number(line.split(' ')[2])});
        await d.close();console.log('read')`,
      rival: 'sh',
      qemu: [['-c', 'exec qemu-io "$@" < "$0"', at('places'), ...SECRET, '--image-opts', opened('quick.qcow2'), '-r']],
      equal: bothRead,
    },
  ]
}

async function bothRead(ours: Measured, qemu: Measured): Promise<void> {
  if (!/512|read/.test(ours.stdout) || !/read 512|^(qemu-io> )*\s*$/.test(qemu.stdout))
    throw new Error(`${ours.stdout}${ours.stderr}${qemu.stdout}${qemu.stderr}`)
}
