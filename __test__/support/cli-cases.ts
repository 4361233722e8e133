/**
 * Command lines that are given to qemu-img and to ours, to be answered alike: stdout, stderr, exit code. One a line; words are separated by
 * spaces, and held together by single quotes. Where a file `x` comes out, it must hold the same.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { basename, join } from 'node:path'

/** Contradictions two by two: which of them is told is part of the interface. */
const FAULTS = [
  'cluster_size=3',
  'compat=3',
  'preallocation=foo',
  'compression_type=foo',
  'refcount_bits=3',
  'compat=v2,refcount_bits=8',
  'compat=v2,lazy_refcounts=on',
  'compat=v2,extended_l2=on',
  'extended_l2=on,cluster_size=4k',
  'data_file_raw=on',
  'compat=v2,data_file=xd',
  'compat=v2,compression_type=zstd',
  'backing_fmt=raw',
  'backing_file=y,backing_fmt=raw,preallocation=metadata',
  'backing_file=y,backing_fmt=raw,data_file=xd,data_file_raw=on',
  'backing_file=y,backing_fmt=foo',
  'backing_file=y',
  'encrypt.format=luks',
  'encrypt.format=foo',
  'encryption=on',
  'encrypt.iter-time=3',
  'foo=1',
]

/** The option lists of all contradictions, two by two. */
export function contradictions(): string[] {
  const out: string[] = []
  for (const [index, first] of FAULTS.entries()) {
    for (const second of FAULTS.slice(index + 1)) {
      // The value that counts is the last: a fault must not be overwritten by the other.
      const keys = (list: string) => list.split(',').map((option) => option.split('=')[0] ?? '')
      if (keys(first).some((key) => keys(second).includes(key))) continue
      out.push(`${first},${second}`)
    }
  }
  return out
}

/** The groups, each of them a test: a file of lines. An empty line is a command line without words. */
export function cases(): [group: string, lines: string[]][] {
  const folder = join(__dirname, 'cli-cases')
  return readdirSync(folder)
    .sort()
    .map((file) => [basename(file, '.txt'), readFileSync(join(folder, file), 'utf8').trimEnd().split('\n')])
}

/** Takes a line apart into words. */
export function wordsOf(line: string): string[] {
  const words: string[] = []
  for (const match of line.matchAll(/'([^']*)'|(\S+)/g)) words.push(match[1] ?? match[2] ?? '')
  return words
}
