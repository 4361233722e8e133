/** docs/errors.md lists every code that the sources can give, and none besides. */
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'

const root = join(__dirname, '..')

/** A source without its unit tests. */
function source(path: string): string {
  return readFileSync(join(root, path), 'utf8').split(/^#\[cfg\(test\)\]$/m)[0] ?? ''
}

function sources(folder: string, ending: string): string {
  const names = readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })
  return names
    .filter((name) => name.endsWith(ending))
    .map((name) => source(join(folder, name)))
    .join('\n')
}

function found(text: string, ...patterns: RegExp[]): string[] {
  return patterns.flatMap((pattern) => [...text.matchAll(pattern)].map((match) => match[1] ?? ''))
}

function errorsOfSources(): string[] {
  const states = sources('crates/qcow2-engine/src', '.rs') + sources('crates/qcow2-node/src', '.rs')
  return [
    ...found(source('crates/qcow2-format/src/error.rs'), /\} "([A-Z0-9_]+)", \w+,/g),
    ...found(source('crates/qcow2-engine/src/error.rs'), /=> "([A-Z0-9_]+)"/g),
    ...found(states, /code:\s*"([A-Z0-9_]+)"/g, /state\(\s*"([A-Z0-9_]+)"/g, /refuse\(\s*"([A-Z0-9_]+)"/g, /refuse_if\([^;]*?"([A-Z0-9_]+)"/g),
    ...found(sources('js', '.ts').replace(/^\s*(\*|\/\/).*$/gm, ''), /'ERR_QCOW2_([A-Z0-9_]+)'/g),
  ]
}

test('docs/errors.md has every error code and no other', (t) => {
  const rows = readFileSync(join(root, 'docs/errors.md'), 'utf8')
    .split('\n')
    .filter((line) => line.startsWith('| `ERR_'))
  const listed = rows.flatMap((row) => found(row.split('|')[1] ?? '', /`ERR_QCOW2_([A-Z0-9_]+)`/g))
  t.is(new Set(listed).size, listed.length, 'no code stands there twice')
  const codes = new Set(errorsOfSources())
  t.true(codes.size > 90)
  t.deepEqual([...codes].filter((code) => !listed.includes(code)).sort(), [], 'codes that are not documented')
  t.deepEqual(listed.filter((code) => !codes.has(code)).sort(), [], 'documented codes that nothing gives')
})

test('docs/errors.md has every notice', (t) => {
  const text = readFileSync(join(root, 'docs/errors.md'), 'utf8').split('\n# Notices\n')[1] ?? ''
  const listed = new Set(found(text, /`([A-Z0-9_]+)`/g))
  const codes = new Set(found(sources('crates/qcow2-engine/src', '.rs'), /Notice::new\(\s*"([A-Z0-9_]+)"/g))
  t.true(codes.size > 5)
  t.deepEqual([...codes].sort(), [...listed].sort())
})
