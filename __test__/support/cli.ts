/** The built command line, called as users call it: by the name of a link on the search path. */
import { execFile, spawn } from 'node:child_process'
import { existsSync, mkdirSync, symlinkSync } from 'node:fs'
import { delimiter, join, resolve } from 'node:path'
import { temporaryFolder } from './qemu.js'

const MAIN = resolve(__dirname, '../../dist/cli/main.js')

let folder: string | undefined

/** The folder with the links `qemu-img` and `qcow2`. */
export function linkFolder(): string {
  if (folder !== undefined) return folder
  if (!existsSync(MAIN)) throw new Error(`${MAIN} is missing: build first (npm run build:fast)`)
  folder = join(temporaryFolder(), 'bin')
  mkdirSync(folder)
  for (const name of ['qemu-img', 'qcow2']) symlinkSync(MAIN, join(folder, name))
  return folder
}

/** The environment in which the links are found before anything else. */
export function environment(): NodeJS.ProcessEnv {
  return { ...process.env, LC_ALL: 'C', TZ: 'UTC', PATH: `${linkFolder()}${delimiter}${process.env.PATH}` }
}

export interface Answer {
  code: number | NodeJS.Signals
  stdout: string
  stderr: string
}

/** Runs a program to its end. */
export function answer(program: string, words: readonly string[], options: { cwd: string; ours: boolean; input?: Uint8Array }): Promise<Answer> {
  const env = options.ours ? environment() : { ...process.env, LC_ALL: 'C', TZ: 'UTC' }
  return new Promise((done) => {
    const child = execFile(
      program,
      words,
      { cwd: options.cwd, env, encoding: 'latin1', maxBuffer: 1 << 28, timeout: 60_000 },
      (error, stdout, stderr) => done({ code: error === null ? 0 : (error.signal ?? (error.code as number)), stdout, stderr }),
    )
    child.stdin?.on('error', () => {})
    child.stdin?.end(options.input)
  })
}

/** Starts ours without waiting. */
export function start(words: readonly string[], cwd: string) {
  return spawn('qemu-img', words, { cwd, env: environment(), stdio: ['pipe', 'pipe', 'pipe'] })
}
