// `npm start`: the tour. `npm start -- <words>`: the command line with these words. Set-up comes first and speaks on stderr only.
import { spawn } from 'node:child_process'
import { join } from 'node:path'
import { root } from './lib/run.mjs'
import { setup } from './setup.mjs'

const words = process.argv.slice(2)
// Before anything slow: without a listener, SIGUSR1 (progress) would open Node's debugger here. SIGINT reaches the child by itself.
let child
process.on('SIGUSR1', () => child?.kill('SIGUSR1'))
for (const signal of ['SIGTERM', 'SIGHUP']) process.on(signal, () => (child ? child.kill(signal) : process.exit(1)))

try {
  await setup({ tests: false })
  start()
} catch (error) {
  process.stderr.write(`${error.message}\n`)
  process.exitCode = 1
}

function start() {
  const tour = words.length === 0
  const script = tour ? join(root, 'scripts', 'tour.mjs') : join(root, 'dist', 'cli', 'main.js')
  process.on('SIGINT', () => {})
  // npm runs this in the package's folder; a user's relative paths mean the folder where npm was called.
  child = spawn(process.execPath, [script, ...words], { stdio: 'inherit', cwd: tour ? root : (process.env.INIT_CWD ?? process.cwd()) })
  child.on('close', (code, signal) => {
    if (!signal) {
      process.exitCode = code ?? 1
      return
    }
    process.removeAllListeners(signal)
    process.kill(process.pid, signal)
  })
}
