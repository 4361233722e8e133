/** Rows about images that are mostly metadata: 64 GiB of preallocated clusters, alone and under snapshots that scattered writes came between. */
import { join } from 'node:path'
import type { Task } from './pairs.js'
import { type Measured, must } from './process.js'

const CLUSTER = 65536

/** Makes the images and says what is asked of them. `quick`: 8 GiB and 4 snapshots. */
export async function metadataTasks(folder: string, quick: boolean): Promise<Task[]> {
  const [gib, snapshots] = quick ? [8, 4] : [64, 16]
  const [ours, theirs, scattered] = ['ours', 'theirs', 'scattered'].map((name) => join(folder, `metadata-${name}.qcow2`)) as [string, string, string]
  await must('qemu-img', ['create', '-q', '-f', 'qcow2', '-o', 'preallocation=metadata', ours, `${gib}G`])
  for (const copy of [theirs, scattered]) await must('cp', ['--sparse=always', ours, copy])
  let seed = 7
  const cluster = (): number => {
    seed = (seed * 1103515245 + 12345) % 2 ** 31
    return seed % ((gib * 2 ** 30) / CLUSTER)
  }
  for (let count = 0; count < snapshots; count += 1) {
    const writes = Array.from({ length: 1500 }, () => ['-c', `write -q ${cluster() * CLUSTER} 4k`])
    await must('qemu-io', ['-f', 'qcow2', ...writes.flat(), scattered])
    await must('qemu-img', ['snapshot', '-c', `s${count}`, scattered])
  }
  await must('sync', [])
  const change = (action: string, promised: number): Task => ({
    name: `snapshot ${action}, ${gib} GiB of metadata`,
    promised,
    ours: ['snapshot', action, 'one', ours],
    qemu: [['snapshot', action, 'one', theirs]],
    equal: () => bothSound(ours, theirs),
  })
  const words = ['check', '--output=json', '-f', 'qcow2', scattered]
  const check: Task = { name: `check, scattered, ${snapshots} snapshots`, promised: 4, ours: words, qemu: [words], equal: sameOutput }
  return [change('-c', 2), change('-a', 2), change('-d', 2), check]
}

async function bothSound(...paths: string[]): Promise<void> {
  for (const path of paths) await must('qemu-img', ['check', '-q', path])
}

async function sameOutput(ours: Measured, qemu: Measured): Promise<void> {
  const [a, b] = [ours, qemu].map(({ stdout }) => JSON.stringify(JSON.parse(stdout)))
  if (a !== b) throw new Error(`different JSON:\n${a}\n---\n${b}`)
}
