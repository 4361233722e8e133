// Disk images made of real files: what a tour or a benchmark can honestly work on.
import {
  closeSync,
  constants,
  copyFileSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeSync,
} from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { must, which } from './run.mjs'

const MiB = 1024 * 1024

/**
 * Writes a raw image that holds the files of a folder: an ext4 file system where mke2fs exists, else the files one after another at sector
 * boundaries. `size`: of the disk in bytes; left out, what the files need. `most`: bytes of files, the first ones of the folder. Resolves to
 * what it holds.
 */
export async function makeDisk(path, { folder, size, most }) {
  if (most !== undefined) {
    const staged = `${path}.files`
    stage(folder, staged, most)
    const made = await makeDisk(path, { folder: staged, size })
    rmSync(staged, { recursive: true })
    return made
  }
  const files = [...walk(folder)]
  const bytes = files.reduce((sum, file) => sum + file.size, 0)
  closeSync(openSync(path, 'w'))
  truncateSync(path, size ?? roundUp(bytes * 1.25 + files.length * 4096 + 96 * MiB, 64 * MiB))
  const mke2fs = which('mke2fs')
  if (mke2fs) {
    // Fixed seeds: the same files give the same image.
    const seeds = ['-U', '6f1c33a0-5a35-4d5b-9d3c-1d5f3f6c0a11', '-E', 'hash_seed=6f1c33a0-5a35-4d5b-9d3c-1d5f3f6c0a12,root_owner=0:0']
    await must(mke2fs, ['-q', '-F', '-t', 'ext4', '-m', '0', ...seeds, '-d', folder, path], { env: { E2FSPROGS_FAKE_TIME: '1700000000' } })
  } else {
    concatenate(path, files)
  }
  return { files: files.length, bytes, kind: mke2fs ? 'ext4' : 'files at sector boundaries' }
}

/** Copies the first files of a folder, as many as fit into `most` bytes and may be read. */
function stage(folder, target, most) {
  let bytes = 0
  for (const { path, size } of walk(folder)) {
    if (bytes + size > most) continue
    const copy = join(target, relative(folder, path))
    mkdirSync(dirname(copy), { recursive: true })
    try {
      copyFileSync(path, copy, constants.COPYFILE_FICLONE)
      bytes += size
    } catch (error) {
      if (error.code !== 'EACCES' && error.code !== 'EPERM') throw error
    }
    if (most - bytes < 1 << 16) break
  }
}

function concatenate(path, files) {
  const target = openSync(path, 'r+')
  let position = MiB
  for (const file of files) {
    writeSync(target, readFileSync(file.path), 0, file.size, position)
    position += roundUp(file.size, 512)
  }
  closeSync(target)
}

/** The regular files under a folder, in a fixed order. */
export function* walk(folder) {
  for (const name of readdirSync(folder).sort()) {
    const path = join(folder, name)
    const stat = lstatSync(path)
    if (stat.isDirectory()) yield* walk(path)
    else if (stat.isFile()) yield { path, size: stat.size }
  }
}

function roundUp(value, unit) {
  return Math.ceil(value / unit) * unit
}
