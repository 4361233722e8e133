/** The table of answers: what is expected of every file of the catalogue, and what QEMU says of it. Lines of tabs, for people to read in a diff. */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { type Answers, OPERATIONS } from './hostile-nine.js'

const OURS = join(__dirname, 'hostile-answers.tsv')
const QEMU = join(__dirname, 'hostile-qemu.tsv')
const QEMU_COLUMNS = ['info', 'check', 'convert'] as const

export type QemuAnswers = Record<(typeof QEMU_COLUMNS)[number], string>

function read<T>(path: string, columns: readonly string[]): Map<string, T> {
  const [head, ...lines] = readFileSync(path, 'utf8').trimEnd().split('\n')
  if (head !== ['name', ...columns].join('\t')) throw new Error(`${path}: other columns than ${columns.join()}`)
  return new Map(
    lines.map((line) => {
      const [name = '', ...answers] = line.split('\t')
      return [name, Object.fromEntries(columns.map((column, i) => [column, answers[i] ?? ''])) as T]
    }),
  )
}

function write(path: string, columns: readonly string[], rows: ReadonlyMap<string, Record<string, string>>): void {
  const lines = [...rows].map(([name, answers]) => [name, ...columns.map((column) => answers[column] ?? '')].join('\t'))
  writeFileSync(path, `${[['name', ...columns].join('\t'), ...lines].join('\n')}\n`)
}

export const expectedAnswers = (): Map<string, Answers> => read<Answers>(OURS, OPERATIONS)
export const writeAnswers = (rows: ReadonlyMap<string, Answers>): void => write(OURS, OPERATIONS, rows)
export const qemuAnswers = (): Map<string, QemuAnswers> => read<QemuAnswers>(QEMU, QEMU_COLUMNS)
export const writeQemuAnswers = (rows: ReadonlyMap<string, QemuAnswers>): void => write(QEMU, QEMU_COLUMNS, rows)
