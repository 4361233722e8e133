import { createHash } from 'node:crypto'
import { mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import { root } from './run.mjs'

const folder = join(root, 'node_modules', '.cache', 'qcow2')

/** A digest of the contents of files and folders, named relative to the package. What does not exist counts as absent. */
export function digest(...names) {
  const hash = createHash('sha256')
  for (const name of names) addTo(hash, join(root, name))
  return hash.digest('hex')
}

function addTo(hash, path) {
  const stat = statSync(path, { throwIfNoEntry: false })
  hash.update(`${relative(root, path)}\0${stat ? stat.size : 'absent'}\0`)
  if (stat?.isDirectory()) {
    const names = readdirSync(path).sort()
    // What Cargo builds, by its mark: a source folder may be called `target` too.
    if (names.includes('CACHEDIR.TAG')) return
    for (const name of names) if (name !== 'node_modules') addTo(hash, join(path, name))
  } else if (stat) {
    hash.update(readFileSync(path))
  }
}

/** What was stamped last under a name, or undefined. */
export function readStamp(name) {
  try {
    return readFileSync(join(folder, name), 'utf8')
  } catch {
    return undefined
  }
}

/** Remembers a value until `node_modules` goes. */
export function writeStamp(name, value) {
  mkdirSync(folder, { recursive: true })
  writeFileSync(join(folder, name), value)
}
