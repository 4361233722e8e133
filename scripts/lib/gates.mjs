// Checks that are not tests. Each resolves to undefined if it holds, or to the text that says what is wrong.
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { findUnlicensed } from '../check-licenses.mjs'
import { findBreaches } from '../check-rooms.mjs'
import { bin, root, run } from './run.mjs'
import { missingPackages } from './system-packages.mjs'

/** In the order of running: what answers fast comes first. */
export const gates = {
  'programs to compare with': async () => {
    const missing = missingPackages()
    return missing.length > 0 ? `missing: ${missing.map((entry) => entry.name).join(', ')}` : undefined
  },
  rooms: async () => (await findBreaches()).join('\n') || undefined,
  licenses: async () => (await findUnlicensed()).join('\n') || undefined,
  lockfile: async () => lockfileProblem(),
  'generated files': () => generatedFilesProblem(),
  biome: () => command(bin('biome'), ['ci', '--colors=off', '--error-on-warnings', '.']),
  tsc: () => command(bin('tsc'), ['-p', '.']),
  typedoc: () => command(bin('typedoc'), ['--emit', 'none', '--treatWarningsAsErrors']),
  publint: () => command(bin('publint'), ['--strict']),
  attw: () => command(bin('attw'), ['--pack', '.']),
  rustfmt: () => command('cargo', ['fmt', '--all', '--check']),
  // One profile for everything: what procedural macros and build scripts need is then compiled once.
  clippy: () => command('cargo', ['clippy', '--profile', 'fast', '--workspace', '--all-targets', '--', '-D', 'warnings']),
  // The crates are not published: their readers are those who work on them, and see private items too.
  rustdoc: () =>
    command('cargo', ['doc', '--profile', 'fast', '--no-deps', '--document-private-items', '--workspace'], {
      RUSTDOCFLAGS: '-D warnings -A rustdoc::private_intra_doc_links',
    }),
  examples: () => examplesProblem(),
}

async function command(program, args, env = {}) {
  const { code, output } = await run(program, args, { env, timeoutSeconds: 900 })
  return code === 0 ? undefined : output.trim() || `${program} ended with exit code ${code}`
}

/** A lockfile that names a registry sends everybody there. */
function lockfileProblem() {
  const lock = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8'))
  const named = Object.entries(lock.packages).filter(([, entry]) => entry.resolved !== undefined)
  if (named.length > 0) return `package-lock.json names a registry for ${named[0][0]}; .npmrc has omit-lockfile-registry-resolved`
  const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
  const cargo = readFileSync(join(root, 'Cargo.toml'), 'utf8').match(/\[workspace\.package\][^[]*?\nversion = "([^"]+)"/)?.[1]
  return version === cargo ? undefined : `package.json has version ${version}, Cargo.toml ${cargo}`
}

/** The loader and the types that napi writes are committed: set-up has just written them again, so git sees any difference. */
async function generatedFilesProblem() {
  const files = ['index.js', 'index.d.ts']
  if ((await run('git', ['rev-parse', '--git-dir'])).code !== 0) return undefined
  const tracked = await run('git', ['ls-files', '--error-unmatch', ...files])
  if (tracked.code !== 0) return `commit ${files.join(' and ')}: ${tracked.output.trim()}`
  const { code, output } = await run('git', ['diff', '--exit-code', '--', ...files])
  return code === 0 ? undefined : `the committed files are not what the crate makes; stage the new ones:\n${output}`
}

/** Every example runs without arguments, in an empty folder, on the built package, and ends by itself. */
async function examplesProblem() {
  const folder = join(root, 'examples')
  const names = statSync(folder, { throwIfNoEntry: false }) ? readdirSync(folder).filter((name) => /\.(ts|mjs|js)$/.test(name)) : []
  if (names.length === 0) return 'there are none'
  const problems = []
  for (const name of names) {
    const cwd = mkdtempSync(join(tmpdir(), 'qcow2-example-'))
    const loader = name.endsWith('.ts') ? ['--require', join(root, 'node_modules', 'tsx', 'dist', 'cjs', 'index.cjs')] : []
    // Without the paths of tsconfig.json `qcow2` means the package itself: what is published, not its sources.
    const env = { TSX_TSCONFIG_PATH: join(root, 'tsconfig.build.json') }
    const { code, output } = await run(process.execPath, [...loader, join(folder, name)], { cwd, env, timeoutSeconds: 60 })
    if (code !== 0) problems.push(`examples/${name} ended with exit code ${code}:\n${output}`)
    rmSync(cwd, { recursive: true, force: true })
  }
  return problems.join('\n') || undefined
}
