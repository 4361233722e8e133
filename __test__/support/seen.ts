/** What can be seen of an image, in a form that is the same for two images that mean the same. */
import { createHash } from 'node:crypto'
import { readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { answer } from './cli.js'
import { type Json, must, parseJson } from './qemu.js'

/** What of `info` must be the same: not where things are, nor when something was done. */
function facts(text: string): Json {
  const drop = new Set(['actual-size', 'date-sec', 'date-nsec', 'vm-clock-sec', 'vm-clock-nsec', 'children'])
  const strip = (value: Json): Json => {
    if (Array.isArray(value)) return value.map(strip)
    if (value === null || typeof value !== 'object') return value
    return Object.fromEntries(
      Object.entries(value)
        .filter(([key]) => !drop.has(key))
        .map(([key, inner]) => [key, strip(inner)]),
    )
  }
  return strip(parseJson(text))
}

/** The facts of an image, what a guest sees of it and of its snapshots, and what both checks say. */
export async function look(folder: string, file: string): Promise<Record<string, Json>> {
  const out: Record<string, Json> = {}
  const raw = join(folder, 'seen.raw')
  const digest = async (words: string[]) => {
    await must('qemu-img', ['convert', '-O', 'raw', ...words, raw], { cwd: folder })
    return createHash('sha256').update(readFileSync(raw)).digest('hex')
  }
  const { stdout } = await must('qemu-img', ['info', '--output=json', '-f', 'qcow2', file], { cwd: folder })
  const info = facts(stdout.toString()) as { [key: string]: Json }
  out[`${file} facts`] = info
  out[`${file} disk`] = await digest(['-f', 'qcow2', file])
  for (const snapshot of (info.snapshots ?? []) as { id: string }[]) {
    out[`${file} snapshot ${snapshot.id}`] = await digest(['-f', 'qcow2', '-l', `snapshot.id=${snapshot.id}`, file])
  }
  for (const ours of [true, false]) {
    const { code, stdout, stderr } = await answer('qemu-img', ['check', '-f', 'qcow2', file], { cwd: folder, ours })
    out[`${file} checked by ${ours ? 'us' : 'QEMU'}`] = code === 0 ? 'clean' : `${code} ${stderr}${stdout}`
  }
  rmSync(raw, { force: true })
  return out
}
