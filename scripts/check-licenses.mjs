// What the published binary is linked from may be given away with it: every crate's licence is one of a short list.
import { readdirSync, readFileSync, statSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { must } from './lib/run.mjs'

/** Permissive licences that ask for no more than their text. */
const ALLOWED = new Set([
  'MIT',
  'MIT-0',
  'Apache-2.0',
  'Apache-2.0 WITH LLVM-exception',
  'BSD-2-Clause',
  'BSD-3-Clause',
  'ISC',
  'Zlib',
  '0BSD',
  'Unlicense',
  'CC0-1.0',
  'Unicode-3.0',
  'BSL-1.0',
])

/** Every crate whose licence is not allowed, as sentences. */
export async function findUnlicensed() {
  const crates = await allCrates()
  return crates.filter(({ license }) => !isAllowed(license ?? '')).map(({ name, license }) => `crate ${name} is licensed as ${license ?? 'nothing'}`)
}

/** The licence texts of all crates that are not ours: most ask to go along with the binary. */
export async function licenseTexts() {
  const crates = (await allCrates()).filter(({ source }) => source !== null)
  const texts = crates.map(({ name, version, license, manifest_path: manifest }) => {
    const folder = dirname(manifest)
    const files = readdirSync(folder).filter((file) => /^(licen[cs]e|copying|notice|unlicense)/i.test(file) && statSync(join(folder, file)).isFile())
    return [`${name} ${version} (${license})`, ...files.sort().map((file) => readFileSync(join(folder, file), 'utf8').trim())].join('\n\n')
  })
  return `${texts.join(`\n\n${'-'.repeat(80)}\n\n`)}\n`
}

/** Crates of other platforms are left out: they are not downloaded here, nor linked. */
async function allCrates() {
  const host = (await must('rustc', ['-vV'])).match(/^host: (.+)$/m)?.[1]
  return JSON.parse(await must('cargo', ['metadata', '--format-version', '1', '--filter-platform', host])).packages
}

/** Every part of a sum must hold, and of its alternatives one. */
export function isAllowed(expression) {
  const parts = expression.split(/ AND (?![^(]*\))/)
  return parts.every((part) => part.split(/ OR |\//).some((one) => ALLOWED.has(one.replace(/[()]/g, '').trim())))
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  findUnlicensed().then((problems) => {
    for (const problem of problems) console.error(problem)
    process.exitCode = problems.length > 0 ? 1 : 0
  })
}
