/** Manifests of digests as files: a line for each stretch of leaves. */
import {
  closeSync,
  fsyncSync,
  lstatSync,
  openSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  renameSync,
  statSync,
  unlinkSync,
  writeSync,
} from 'node:fs'
import { dirname, resolve } from 'node:path'
import type { DigestManifest, DigestResult } from './library.js'
import { Refusal } from './refusal.js'
import { strerror } from './strerror.js'

/** Prints the manifest of a digest. */
export function printManifest({ manifest }: DigestResult, print: (text: string) => void): void {
  const { leaves, ...facts } = manifest as DigestManifest
  const head = Object.entries(facts).map(([key, value]) => `  ${JSON.stringify(key)}: ${JSON.stringify(value)},\n`)
  print(`{\n${head.join('')}  "leaves": [`)
  for (const [index, leaf] of leaves.entries()) print(`${index === 0 ? '' : ','}\n    ${JSON.stringify(leaf)}`)
  print('\n  ]\n}\n')
}

/** Writes a manifest: beside its name first, so that one that was there is whole until the new one is. What a link names is written, not the link. */
export function writeManifest(name: string, result: DigestResult): void {
  const file = followed(name)
  // What is no file, a pipe or a device, is written as it is.
  const inPlace = !(statSync(file, { throwIfNoEntry: false })?.isFile() ?? true)
  const beside = inPlace ? file : `${file}.${process.pid}.part`
  try {
    const fd = openSync(beside, inPlace ? 'w' : 'wx')
    try {
      let parts: string[] = []
      printManifest(result, (text) => {
        parts.push(text)
        if (parts.length < 64) return
        writeAll(fd, parts.join(''))
        parts = []
      })
      writeAll(fd, parts.join(''))
      if (!inPlace) fsyncSync(fd)
    } finally {
      closeSync(fd)
    }
    if (!inPlace) renameSync(beside, file)
  } catch (error) {
    if (!inPlace && (error as NodeJS.ErrnoException).code !== 'EEXIST') remove(beside)
    throw new Refusal(`Could not write '${file}': ${reasonOf(error)}`)
  }
}

/** Reads a manifest. What is in it, the library judges. */
export function readManifest(file: string): DigestManifest {
  let text: string
  try {
    text = readFileSync(file === '-' ? 0 : file, 'utf8')
  } catch (error) {
    throw new Refusal(`Could not read '${file}': ${reasonOf(error)}`)
  }
  try {
    return JSON.parse(text) as DigestManifest
  } catch {
    throw new Refusal(`'${file}' is no manifest: it is not JSON`)
  }
}

function followed(name: string): string {
  try {
    return realpathSync(name)
  } catch {
    // A link may name what is not there yet.
    const there = lstatSync(name, { throwIfNoEntry: false })
    return there?.isSymbolicLink() ? resolve(dirname(name), readlinkSync(name)) : name
  }
}

function writeAll(fd: number, text: string): void {
  const bytes = Buffer.from(text)
  for (let at = 0; at < bytes.length; ) at += writeSync(fd, bytes, at)
}

function remove(path: string): void {
  try {
    unlinkSync(path)
  } catch {
    // It was not even made.
  }
}

function reasonOf(error: unknown): string {
  const { errno, message } = error as NodeJS.ErrnoException
  return errno === undefined ? message : strerror(errno)
}
