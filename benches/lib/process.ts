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
  /** Most bytes in memory at a time, its own files included; NaN unless asked for, or where the system does not tell. */
  peak: number
}

/** Runs a program and measures it. Nothing else may run as a child meanwhile. `peak`: asks for its memory all the time, which costs time. */
export function measure(program: string, args: readonly string[], { peak = false } = {}): Promise<Measured> {
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
    let highest = Number.NaN
    const look = () => {
      const now = highWater(child.pid)
      if (!Number.isNaN(now)) highest = now
    }
    const timer = peak ? setInterval(look, 1) : undefined
    child.on('error', reject)
    let seconds = 0
    child.on('exit', () => {
      clearInterval(timer)
      seconds = (performance.now() - begin) / 1000
    })
    child.on('close', (code) => resolve({ code: code ?? 1, ...parts, seconds, cpu: cpuOfChildren() - cpuBefore, peak: highest }))
  })
}

/** As `measure`, for a program that must succeed. */
export async function must(program: string, args: readonly string[], options?: { peak: boolean }): Promise<Measured> {
  const measured = await measure(program, args, options)
  if (measured.code !== 0) throw new Error(`${program} ${args.join(' ')}: ${measured.stdout.slice(0, 2000)}${measured.stderr}`)
  return measured
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

/** The most that a process had in memory so far; it only grows, so that the last answer before the end is all but exact. */
function highWater(pid: number | undefined): number {
  try {
    const line = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))
    return line ? Number(line[1]) * 1024 : Number.NaN
  } catch {
    return Number.NaN
  }
}
