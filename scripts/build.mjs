// Makes what is published: the addon with its generated loader, the TypeScript build, the ESM entry.
//   node scripts/build.mjs --profile release|fast
// `fast` is the same code without link-time optimisation. A step whose inputs did not change is left out.
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { build as bundle } from 'esbuild'
import { manualPage } from './lib/man.mjs'
import { bin, must, root } from './lib/run.mjs'
import { digest, readStamp, writeStamp } from './lib/stamp.mjs'

/** What `man qcow2` shows. Not committed, so that it says what the commands do. */
const MANUAL = join(root, 'man', 'qcow2.1')

/** Builds both halves. Says on stderr what it does, and nothing when there is nothing to do. */
export async function build({ profile }) {
  await buildAddon(profile)
  await buildTypeScript()
}

async function buildAddon(profile) {
  const inputs = digest('Cargo.toml', 'Cargo.lock', 'crates', '.cargo')
  // A release build serves wherever a fast one is asked for.
  const good = profile === 'fast' ? [`fast ${inputs}`, `release ${inputs}`] : [`${profile} ${inputs}`]
  const stamp = readStamp('addon') ?? ''
  if (good.some((value) => stamp === `${value} ${outputs()}`)) return
  process.stderr.write(`building the addon (${profile}) …\n`)
  const args = ['build', '--platform', '--manifest-path', 'crates/qcow2-node/Cargo.toml', '--output-dir', '.']
  args.push(...(profile === 'release' ? ['--release'] : ['--profile', profile]))
  if (process.env.CI && existsSync(join(root, 'Cargo.lock'))) args.push('--', '--locked')
  await must(bin('napi'), args, { show: Boolean(process.env.CI) })
  writeStamp('addon', `${profile} ${inputs} ${outputs()}`)
}

/** What napi writes, so that a build from another checkout or a deleted file is noticed. */
function outputs() {
  const addons = readdirSync(root).filter((name) => name.endsWith('.node'))
  const marks = addons.map((name) => `${name}:${statSync(join(root, name)).size}:${Math.floor(statSync(join(root, name)).mtimeMs)}`)
  return `${marks.sort().join(',')} ${digest('index.js', 'index.d.ts')}`
}

async function buildTypeScript() {
  const inputs = digest('js', 'tsconfig.json', 'tsconfig.build.json', 'index.d.ts', 'scripts/build.mjs', 'scripts/lib/man.mjs', 'package.json')
  if (readStamp('typescript') === inputs && existsSync(join(root, 'dist', 'index.mjs')) && existsSync(MANUAL)) return
  process.stderr.write('building the TypeScript …\n')
  // Built beside it and swapped: a file that was renamed must not survive in what is published, and a failure leaves the old build.
  const fresh = join(root, 'dist.new')
  rmSync(fresh, { recursive: true, force: true })
  await must(bin('tsc'), ['-p', 'tsconfig.build.json', '--outDir', fresh])
  loadOnUse(join(fresh, 'index.js'))
  writeEsmEntry(fresh)
  await writeManual(fresh)
  await bundleCommandLine(fresh)
  rmSync(join(root, 'dist'), { recursive: true, force: true })
  renameSync(fresh, join(root, 'dist'))
  writeStamp('typescript', inputs)
}

/**
 * Makes the CommonJS entry load each module when one of its names is first used: a command that only asks for facts then starts without
 * what streams and conversions need.
 */
function loadOnUse(entry) {
  const modules = new Map()
  const load = /^var (\w+) = require\("(\.\/[\w-]+\.js)"\);\n/gm
  const name = /^Object\.defineProperty\(exports, "(\w+)", \{ enumerable: true, get: function \(\) \{ return (\w+)\.(\w+); \} \}\);$/gm
  const eager = readFileSync(entry, 'utf8')
  const lazy = eager
    .replace(load, (_, variable, path) => {
      modules.set(variable, path)
      return ''
    })
    .replace(name, (_, exported, variable, member) => `onUse("${exported}", () => require("${modules.get(variable)}").${member});`)
  // Not written as a getter in place: Node.js would then not see the name when the file is imported.
  const helper = 'function onUse(name, get) { Object.defineProperty(exports, name, { enumerable: true, configurable: true, get }); }\n'
  if (modules.size === 0 || [...modules.keys()].some((variable) => lazy.includes(variable))) {
    throw new Error(`${entry} does not look as it used to: see loadOnUse`)
  }
  writeFileSync(entry, lazy.replace(/^onUse/m, `${helper}onUse`))
}

/** Makes the manual page of what the commands say of themselves. */
async function writeManual(folder) {
  const load = createRequire(join(folder, 'cli', 'main.js'))
  const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
  const page = manualPage({ descriptions: await load('./catalog.js').describeAll(), summaries: load('./help.js').COMMANDS, version })
  mkdirSync(join(root, 'man'), { recursive: true })
  writeFileSync(MANUAL, page)
}

/**
 * Puts the command line and what it uses of the library into one file: sixty small ones take Node.js longer to find and read than most
 * commands run. Modules inside it still run when they are first required. Identifiers stay as they are, for stack traces.
 */
async function bundleCommandLine(folder) {
  const main = join(folder, 'cli', 'main.js')
  const { outputFiles } = await bundle({
    entryPoints: [main],
    bundle: true,
    platform: 'node',
    target: 'node20',
    minifyWhitespace: true,
    minifySyntax: true,
    legalComments: 'none',
    // The addon is found from where the library's modules lie, one folder up.
    define: { __filename: 'fileOfLibrary' },
    banner: { js: '"use strict";const fileOfLibrary = require("node:path").join(__dirname, "..", "native.js");' },
    write: false,
    logLevel: 'silent',
  })
  rmSync(join(folder, 'cli'), { recursive: true })
  mkdirSync(join(folder, 'cli'))
  writeFileSync(main, outputFiles[0].contents)
  chmodSync(main, 0o755)
}

/**
 * The ESM entry re-exports the CommonJS build, name by name: both kinds of user then hold the same classes, so that `instanceof` is true
 * across them.
 */
function writeEsmEntry(folder) {
  const names = Object.keys(createRequire(import.meta.url)(join(folder, 'index.js'))).filter((name) => name !== '__esModule')
  writeFileSync(join(folder, 'index.mjs'), `export { ${names.sort().join(', ')} } from './index.js'\n`)
  writeFileSync(join(folder, 'index.d.mts'), `export * from './index.js'\n`)
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const profile = process.argv[process.argv.indexOf('--profile') + 1]
  if (!['release', 'fast'].includes(profile)) throw new Error('usage: node scripts/build.mjs --profile release|fast')
  await build({ profile }).catch((error) => {
    process.stderr.write(`${error.message}\n`)
    process.exitCode = 1
  })
}
