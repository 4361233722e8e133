/** What `scripts/hostile-images.mjs` does: the files, the tables, the page. */
import { spawn } from 'node:child_process'
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { type HostileCase, hostileCases, IMAGE, slug } from './hostile-cases.js'
import type { Answers, Verdict } from './hostile-nine.js'
import { expectedAnswers, type QemuAnswers, qemuAnswers, writeAnswers, writeQemuAnswers } from './hostile-table.js'
import { threatTable } from './hostile-threats.js'
import { temporaryFolder } from './qemu.js'

const MARKS = ['<!-- answers: begin -->\n', '\n<!-- answers: end -->'] as const

function writeAll(folder: string): void {
  for (const { entry, name, write } of hostileCases()) {
    const own = join(folder, `${String(entry).padStart(3, '0')}-${slug(name)}`)
    mkdirSync(own, { recursive: true })
    write(own)
  }
}

function writePage(): void {
  const path = join(__dirname, '..', '..', 'docs', 'threat-model.md')
  const page = readFileSync(path, 'utf8')
  const [begin, end] = [page.indexOf(MARKS[0]), page.indexOf(MARKS[1])]
  if (begin === -1 || end === -1) throw new Error(`${path} has no marks for the table`)
  const table = threatTable(hostileCases(), expectedAnswers(), qemuAnswers())
  writeFileSync(path, page.slice(0, begin + MARKS[0].length) + table + page.slice(end))
}

function program(words: readonly string[], cwd: string): Promise<number | string | null> {
  const [tool = '', ...rest] = words
  return new Promise((done) => spawn(tool, rest, { stdio: 'ignore', cwd }).on('close', (code, signal) => done(code ?? signal)))
}

/** Of our own answers: to be read line by line before they are believed. */
async function measureOurs(): Promise<void> {
  const folder = temporaryFolder()
  const PARTS = 2
  const reports = Array.from({ length: PARTS }, (_, i) => join(folder, String(i)))
  const child = join(__dirname, 'hostile-nine.ts')
  await Promise.all(
    reports.map((report, i) =>
      program([process.execPath, '--expose-gc', '--require', 'tsx/cjs', child, report, String(i), String(PARTS)], join(__dirname, '../..')),
    ),
  )
  const answers = new Map<string, Answers>()
  for (const report of reports) for (const one of JSON.parse(readFileSync(report, 'utf8')) as Verdict[]) answers.set(one.name, one.answers)
  const rows = hostileCases().map(({ name }): [string, Answers] => {
    const found = answers.get(name)
    if (found === undefined) throw new Error(`no answer to ${name}`)
    return [name, found]
  })
  writeAnswers(new Map(rows))
}

/** QEMU's exit code, or what ended it: 5 s, 1 GiB of memory, 64 MiB of output. */
async function askQemu({ name, write }: HostileCase): Promise<[string, QemuAnswers]> {
  const folder = temporaryFolder()
  write(folder)
  const ask = async (...words: string[]): Promise<string> => {
    const code = await program(['prlimit', `--as=${2 ** 30}`, `--fsize=${2 ** 26}`, 'timeout', '-s', 'KILL', '5', 'qemu-img', ...words], folder)
    if (code === 137 || code === 'SIGKILL') return 'no end'
    return typeof code === 'string' || (code ?? 0) > 128 ? 'killed' : String(code)
  }
  const answers: QemuAnswers = {
    info: await ask('info', '-f', 'qcow2', IMAGE),
    check: await ask('check', '-f', 'qcow2', IMAGE),
    convert: await ask('convert', '-f', 'qcow2', '-O', 'raw', IMAGE, 'target.raw'),
  }
  rmSync(folder, { recursive: true })
  return [name, answers]
}

async function measureQemu(): Promise<void> {
  const rows = new Map<string, QemuAnswers>()
  const cases = hostileCases()
  for (let i = 0; i < cases.length; i += 4)
    for (const [name, answers] of await Promise.all(cases.slice(i, i + 4).map(askQemu))) rows.set(name, answers)
  writeQemuAnswers(rows)
}

async function main(): Promise<void> {
  const words = process.argv.slice(2)
  const out = words.indexOf('--out')
  if (out !== -1) writeAll(words[out + 1] ?? 'hostile-images')
  if (words.includes('--ours')) await measureOurs()
  if (words.includes('--qemu')) await measureQemu()
  if (words.includes('--page')) writePage()
  if (words.length === 0)
    console.error('--out FOLDER writes the files; --ours, --qemu measure the tables; --page puts them into docs/threat-model.md')
}

main().catch((error: unknown) => {
  console.error(error)
  process.exitCode = 1
})
