import { spawn } from 'node:child_process'
import { readFileSync } from 'node:fs'

/** One run of a program. */
export interface Measured {
  code: number
  stdout: string
  stderr: string
  /** Wall-clock seconds from spawn to exit. */
  seconds: number
  /** Processor seconds, user and system, of the process and what it waited for; NaN where the system does not tell. */
  cpu: number
}

/** Runs a program and measures it. Nothing else may run as a child meanwhile. */
export function measure(program: string, args: readonly string[]): Promise<Measured> {
  return new Promise((resolve, reject) => {
    const cpuBefore = cpuOfChildren()
    const begin = performance.now()
    const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'] })
    const parts = { stdout: '', stderr: '' }
    for (const name of ['stdout', 'stderr'] as const) {
      child[name].setEncoding('utf8').on('data', (chunk: string) => {
        parts[name] += chunk
      })
    }
    child.on('error', reject)
    let seconds = 0
    child.on('exit', () => {
      seconds = (performance.now() - begin) / 1000
    })
    child.on('close', (code) => resolve({ code: code ?? 1, ...parts, seconds, cpu: cpuOfChildren() - cpuBefore }))
  })
}

/** Processor seconds of all children that have ended: fields 16 and 17 of proc(5)'s stat, in hundredths. */
function cpuOfChildren(): number {
  try {
    const text = readFileSync('/proc/self/stat', 'utf8')
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' ')
    return (Number(fields[13]) + Number(fields[14])) / 100
  } catch {
    return Number.NaN
  }
}
