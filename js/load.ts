/**
 * What a user is told when the native addon cannot be loaded: the platform, everything that was tried, and the command that repairs it.
 */

import { readdirSync } from 'node:fs'
import { join } from 'node:path'

/** Platforms that a binary is published for, as the name of their package ends. */
const PUBLISHED = [
  'linux-x64-gnu',
  'linux-arm64-gnu',
  'linux-x64-musl',
  'linux-arm64-musl',
  'darwin-x64',
  'darwin-arm64',
  'win32-x64-msvc',
  'win32-arm64-msvc',
]

/** The machine, as far as it decides which binary fits. */
export interface Platform {
  platform: string
  arch: string
  /** `'glibc 2.36'` or `'musl'`; only on Linux. */
  libc?: string
  node: string
}

/**
 * Runs the generated loader, and turns its failure into an error that says what to do (`code` `'ERR_QCOW2_LOAD'`, the loader's own error
 * as `cause`).
 *
 * @param load - the loader: requires the addon, and throws a chain of `cause`s, one for each place it looked at
 * @param folder - the package's folder, where a local build would lie
 */
export function loadOrExplain<T>(load: () => T, folder: string): T {
  try {
    return load()
  } catch (error) {
    const message = loadFailureText(error, folder, thisPlatform())
    throw Object.assign(new Error(message, { cause: error }), { code: 'ERR_QCOW2_LOAD' })
  }
}

/** The text of a load failure. */
export function loadFailureText(error: unknown, folder: string, machine: Platform): string {
  const libc = machine.libc === undefined ? '' : `, ${machine.libc}`
  const name = packageEnding(machine)
  const lines = [
    `qcow2: the native addon could not be loaded on ${machine.platform}-${machine.arch}${libc}, Node.js ${machine.node}.`,
    'Tried:',
    ...attempts(error).map((line) => `  - ${line.replace(/'\.\/([^']+\.node)'/g, (_, file: string) => `'${join(folder, file)}'`)}`),
    `Package folder: ${folder} (${localBinaries(folder)})`,
  ]
  if (PUBLISHED.includes(name)) {
    lines.push(
      'To repair it:',
      '  npm install --include=optional qcow2',
      `If the lockfile was made on another platform: npm install --os=${machine.platform} --cpu=${machine.arch}${libcOption(machine)} qcow2`,
      `If it still fails, install the binary by name: npm install --force qcow2-${name}`,
    )
  } else {
    lines.push(`No binary is published for this platform (there are: ${PUBLISHED.join(', ')}).`, 'To build it from a clone with Rust: npm run build')
  }
  return lines.join('\n')
}

/** The first line of each error of a chain of causes: the outermost is the loader's summary and says nothing of its own. */
function attempts(error: unknown): string[] {
  const lines: string[] = []
  let link: unknown = error instanceof Error && error.cause !== undefined ? error.cause : error
  // A chain that loops back must not hang the one message that matters.
  while (link !== undefined && lines.length < 32) {
    const text = link instanceof Error ? link.message : String(link)
    lines.push(text.split('\n')[0] ?? text)
    link = link instanceof Error ? link.cause : undefined
  }
  return lines.reverse()
}

function packageEnding({ platform, arch, libc }: Platform): string {
  if (platform === 'linux') return `${platform}-${arch}-${libc === 'musl' ? 'musl' : 'gnu'}`
  return platform === 'win32' ? `${platform}-${arch}-msvc` : `${platform}-${arch}`
}

function libcOption({ libc }: Platform): string {
  if (libc === undefined) return ''
  return libc === 'musl' ? ' --libc=musl' : ' --libc=glibc'
}

function localBinaries(folder: string): string {
  try {
    const names = readdirSync(folder).filter((name) => name.endsWith('.node'))
    return names.length > 0 ? `has ${names.join(', ')}` : 'has no .node file'
  } catch {
    return 'cannot be listed'
  }
}

function thisPlatform(): Platform {
  const machine: Platform = { platform: process.platform, arch: process.arch, node: process.versions.node }
  if (process.platform === 'linux') machine.libc = libcOfThisProcess()
  return machine
}

function libcOfThisProcess(): string {
  // The report carries the version of glibc, and nothing in its place where the C library is another one.
  const report = process.report.getReport() as { header?: { glibcVersionRuntime?: string } }
  const version = report.header?.glibcVersionRuntime
  return version === undefined ? 'musl' : `glibc ${version}`
}
