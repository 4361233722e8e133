import { spawn } from 'node:child_process'
import { accessSync, constants } from 'node:fs'
import { delimiter, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

/** The folder of package.json. */
export const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..')

/** The folder of the tools that package.json pins. */
export const bin = (name) => join(root, 'node_modules', '.bin', name)

/**
 * Runs a command in the package's folder and resolves to `{ code, output }`, both streams in one text. With `show`, its output also goes to
 * stderr as it comes: stdout belongs to the commands that `npm start` runs.
 */
export function run(command, args, { show = false, env = {}, cwd = root, onLine, timeoutSeconds = 0 } = {}) {
  return new Promise((resolve) => {
    const child = spawn(command, args, {
      cwd,
      env: { ...process.env, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
      shell: process.platform === 'win32',
      timeout: timeoutSeconds * 1000,
    })
    let output = ''
    let rest = ''
    const take = (chunk) => {
      output += chunk
      if (show) process.stderr.write(chunk)
      if (!onLine) return
      const lines = (rest + chunk).split('\n')
      rest = lines.pop()
      for (const line of lines) onLine(line)
    }
    for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', take)
    child.on('error', (error) => resolve({ code: 127, output: `${command}: ${error.message}\n` }))
    child.on('close', (code, signal) => {
      if (onLine && rest) onLine(rest)
      resolve({ code: code ?? 1, output: signal ? `${output}\n${command} was ended by ${signal}\n` : output })
    })
  })
}

/** Runs a command and throws with its output if it fails. */
export async function must(command, args, options) {
  const { code, output } = await run(command, args, options)
  if (code !== 0) throw new Error(`${[command, ...args].join(' ')} failed with exit code ${code}\n${options?.show ? '' : output}`)
  return output
}

/** Path of an executable, or undefined. Looks into the sbin folders too, which users often lack. */
export function which(name) {
  const folders = [...(process.env.PATH ?? '').split(delimiter), '/usr/sbin', '/sbin']
  const endings = process.platform === 'win32' ? ['.exe', '.cmd'] : ['']
  for (const folder of folders) {
    for (const ending of endings) {
      const path = join(folder, name + ending)
      try {
        accessSync(path, constants.X_OK)
        return path
      } catch {}
    }
  }
  return undefined
}
