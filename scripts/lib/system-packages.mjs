import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { root, run, which } from './run.mjs'

/** The programs of scripts/system-packages.json that this machine lacks. */
export function missingPackages() {
  const list = JSON.parse(readFileSync(join(root, 'scripts', 'system-packages.json'), 'utf8'))
  return list.filter((entry) => !isPresent(entry))
}

function isPresent({ command, python }) {
  if (command) return which(command) !== undefined
  // The system's own interpreter is the one that apt's modules belong to; another may come first on the PATH.
  return ['/usr/bin/python3', 'python3'].some((interpreter) => spawnSync(interpreter, ['-c', `import ${python}`], { stdio: 'ignore' }).status === 0)
}

/** Installs what is missing where that can be done without a question, and says in one sentence what could not be. */
export async function installMissing() {
  const missing = missingPackages()
  if (missing.length === 0) return
  const names = [...new Set(missing.map((entry) => entry.apt))]
  if (process.getuid?.() === 0 && which('apt-get')) {
    process.stderr.write(`installing ${names.join(', ')} …\n`)
    const install = () =>
      run('apt-get', ['install', '-y', '--no-install-recommends', ...names], { env: { DEBIAN_FRONTEND: 'noninteractive' }, timeoutSeconds: 300 })
    if ((await install()).code !== 0) {
      await run('apt-get', ['update'], { timeoutSeconds: 300 })
      await install()
    }
  }
  const still = missingPackages()
  if (still.length > 0) {
    const text = still.map((entry) => `${entry.name} (${entry.use})`).join(', ')
    process.stderr.write(`Missing, and the tests that need them will fail: ${text}; on Debian: apt-get install ${names.join(' ')}\n`)
  }
}
