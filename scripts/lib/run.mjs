import { spawn } from 'node:child_process'
import { accessSync, constants } from 'node:fs'
import { delimiter, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

/** The folder of package.json. */
export const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..')

/** The path of a tool that package.json pins. */
export const bin = (name) => join(root, 'node_modules', '.bin', name)

/**
 * Runs a command in the package's folder and resolves to `{ code, output, stdout }`; `output` is both streams in one text. With `show`, its output also goes to
 * stderr as it comes: stdout belongs to the commands that `npm start` runs. With `timeoutSeconds`, the command and everything it started
 * end then, and that is a failure.
 */
export function run(command, args, { show = false, env = {}, cwd = root, timeoutSeconds = 0 } = {}) {
  return new Promise((resolve) => {
    const windows = process.platform === 'win32'
    const group = timeoutSeconds > 0 && !windows
    const child = spawn(command, args, {
      cwd,
      env: { ...process.env, NO_COLOR: '1', FORCE_COLOR: undefined, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
      shell: windows,
      detached: group,
    })
    const end = (signal) => (group ? killGroup(child.pid, signal) : child.kill(signal))
    // A group of its own does not hear the terminal's Ctrl-C.
    const pass = (signal) => {
      end(signal)
      process.exit(130)
    }
    if (group) for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, pass)
    let note = ''
    const expire = () => {
      note = `\n${command}: ended after ${timeoutSeconds} seconds\n`
      end('SIGKILL')
    }
    const timer = timeoutSeconds > 0 ? setTimeout(expire, timeoutSeconds * 1000) : undefined
    let output = ''
    let stdout = ''
    const take = (chunk) => {
      output += chunk
      if (show) process.stderr.write(chunk)
    }
    for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', take)
    child.stdout.on('data', (chunk) => {
      stdout += chunk
    })
    child.on('error', (error) => {
      note += `${command}: ${error.message}\n`
    })
    child.on('close', (code, signal) => {
      clearTimeout(timer)
      for (const name of ['SIGINT', 'SIGTERM']) process.removeListener(name, pass)
      if (signal && !note) note = `\n${command}: ended by ${signal}\n`
      resolve({ code: code === null || code < 0 ? 1 : code, output: output + note, stdout })
    })
  })
}

function killGroup(pid, signal) {
  try {
    process.kill(-pid, signal)
  } catch {
    // It ended by itself.
  }
}

/** Runs a command and resolves to its stdout; throws with all of its output if it fails. */
export async function must(command, args, options) {
  const { code, output, stdout } = await run(command, args, options)
  if (code !== 0) throw new Error(`${[command, ...args].join(' ')} failed with exit code ${code}\n${options?.show ? '' : output}`)
  return stdout
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
