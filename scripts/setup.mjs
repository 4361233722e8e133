// Makes a clone ready: npm packages, programs that tests compare with, a build. Quick when nothing is to be done, then also silent.
// Everything it says goes to stderr.
import { pathToFileURL } from 'node:url'
import { must, root, run, which } from './lib/run.mjs'
import { digest, readStamp, writeStamp } from './lib/stamp.mjs'

/** Throws one readable error if the clone cannot be made ready. `tests`: also what only tests need. */
export async function setup({ tests, profile = 'fast' }) {
  checkTools()
  await installNpmPackages()
  if (tests) {
    const { installMissing } = await import('./lib/system-packages.mjs')
    await installMissing()
    await addRustComponents()
  }
  const { build } = await import('./build.mjs')
  await build({ profile })
}

function checkTools() {
  const [major, minor] = process.versions.node.split('.').map(Number)
  if (major < 20 || (major === 20 && minor < 19)) throw new Error(`Node.js 20.19 or newer is needed; this is ${process.versions.node}.`)
  if (!which('cargo')) throw new Error('Rust is needed to build from a clone, and cargo is not on the PATH: see https://rustup.rs')
}

async function installNpmPackages() {
  const wanted = digest('package.json', 'package-lock.json')
  if (readStamp('npm') === wanted) return
  process.stderr.write('installing npm packages …\n')
  // Not `npm ci`: it stops where a registry lacks the optional packages of other platforms. This follows the same lockfile and leaves it as it is.
  await must('npm', ['install', '--no-save', '--ignore-scripts', '--no-audit', '--no-fund'], { cwd: root })
  writeStamp('npm', wanted)
}

async function addRustComponents() {
  if (!which('rustup') || (which('cargo-clippy') && which('rustfmt'))) return
  await run('rustup', ['component', 'add', 'clippy', 'rustfmt'])
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  await setup({ tests: true }).catch((error) => {
    process.stderr.write(`${error.message}\n`)
    process.exitCode = 1
  })
}
