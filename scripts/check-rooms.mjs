// The rooms of ARCHITECTURE.md as a check: which crate may use which, which file of js/ may import which, and how long a file may be.
import { readdirSync, readFileSync, statSync } from 'node:fs'
import { dirname, join, relative, resolve, sep } from 'node:path'
import { pathToFileURL } from 'node:url'
import { must, root } from './lib/run.mjs'

/** What each crate may use of the workspace. Downwards only, and the codecs through the engine alone. */
const CRATES = {
  'qcow2-format': [],
  'qcow2-codec': [],
  'qcow2-engine': ['qcow2-format', 'qcow2-codec'],
  'qcow2-nbd': ['qcow2-engine', 'qcow2-format'],
  'qcow2-node': ['qcow2-engine', 'qcow2-nbd', 'qcow2-format'],
  // Tests of the engine; nothing uses it.
  'qcow2-sim': ['qcow2-engine', 'qcow2-format'],
  'qcow2-fuzz': ['qcow2-engine', 'qcow2-format'],
}

/** Beyond about 400 lines a file holds two ideas. The slack is for one that is about to be split. */
const MOST_LINES = 450
/** Tests are long where they are tables, and hold one idea all the same. */
const MOST_LINES_OF_TESTS = 600

/** Every breach, as sentences. */
export async function findBreaches() {
  return [...(await crateEdges()), ...javascriptEdges(), ...longFiles()]
}

async function crateEdges() {
  const { packages } = JSON.parse(await must('cargo', ['metadata', '--no-deps', '--format-version', '1', '--offline']))
  const breaches = []
  for (const { name, dependencies } of packages) {
    const allowed = CRATES[name]
    if (!allowed) breaches.push(`crate ${name} is not in scripts/check-rooms.mjs: say what it may use`)
    for (const dependency of dependencies) {
      // Tests of a crate may use what they like.
      if (dependency.kind === 'dev' || !dependency.path) continue
      if (allowed && !allowed.includes(dependency.name)) breaches.push(`crate ${name} must not use ${dependency.name}`)
    }
  }
  return breaches
}

function javascriptEdges() {
  const breaches = []
  for (const file of filesUnder('js', /\.ts$/)) {
    for (const target of importsOf(file)) {
      const breach = judgeImport(file, target)
      if (breach) breaches.push(`${file} imports ${target}: ${breach}`)
    }
  }
  return breaches
}

/** Why a file of js/ may not import a module, or undefined. `file` is relative to the package. */
export function judgeImport(file, target) {
  const inCli = file.startsWith(join('js', 'cli') + sep)
  if (!target.startsWith('.')) return target === 'qcow2' ? 'the library does not import itself by name' : undefined
  const path = relative(root, resolve(root, dirname(file), target))
  if (path === 'index.js' || path.endsWith('.node')) {
    return file === join('js', 'native.ts') ? undefined : 'only js/native.ts imports the addon'
  }
  if (!path.startsWith(`js${sep}`)) return 'js/ imports nothing outside of js/'
  const toCli = path.startsWith(join('js', 'cli') + sep)
  if (toCli && !inCli) return 'the library knows nothing of the command line'
  if (inCli && !toCli && path !== join('js', 'index.js')) return 'the command line sees js/index.ts alone'
  return undefined
}

/** Module names in `import`, `export … from`, `import()`, `require()` and type imports. */
function importsOf(file) {
  const text = readFileSync(join(root, file), 'utf8').replace(/^\s*(\/?\*|\/\/).*$/gm, '')
  const pattern = /(?:\bfrom\s*|\bimport\s*\(?\s*|\brequire\s*\(\s*|createRequire\([^)]*\)\s*\(\s*)(['"])([^'"]+)\1/g
  return [...text.matchAll(pattern)].map((match) => match[2])
}

function longFiles() {
  const breaches = []
  for (const folder of ['crates', 'js', 'scripts', 'benches', 'examples', '__test__']) {
    for (const file of filesUnder(folder, /\.(rs|ts|mjs|js)$/)) {
      const lines = ownLines(readFileSync(join(root, file), 'utf8'))
      const most = /(^|[/\\])(tests|__test__)[/\\]/.test(file) ? MOST_LINES_OF_TESTS : MOST_LINES
      if (lines > most) breaches.push(`${file} has ${lines} lines (at most about 400): split it by idea`)
    }
  }
  return breaches
}

/** A Rust file's unit tests do not count: they belong beside what they test. */
function ownLines(text) {
  return (text.split(/^#\[cfg\(test\)\]$/m)[0] ?? '').split('\n').length - 1
}

function filesUnder(folder, pattern) {
  const path = join(root, folder)
  if (!statSync(path, { throwIfNoEntry: false })) return []
  const entries = readdirSync(path, { withFileTypes: true })
  // What Cargo builds, by its mark: a source folder may be called `target` too.
  if (entries.some(({ name }) => name === 'CACHEDIR.TAG')) return []
  return entries.flatMap((entry) => {
    const name = join(folder, entry.name)
    if (entry.isDirectory()) return entry.name === 'node_modules' ? [] : filesUnder(name, pattern)
    return pattern.test(entry.name) ? [name] : []
  })
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  findBreaches().then((breaches) => {
    for (const breach of breaches) console.error(breach)
    process.exitCode = breaches.length > 0 ? 1 : 0
  })
}
