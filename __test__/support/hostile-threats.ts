/** The table of docs/threat-model.md: a line an entry, made from the answers of all its files. */
import type { HostileCase } from './hostile-cases.js'
import type { Answers } from './hostile-nine.js'
import type { QemuAnswers } from './hostile-table.js'

/** What each entry is, in the catalogue's order. */
export const TITLES: readonly string[] = [
  'No qcow2: wrong magic, empty, shorter than a header',
  'A version that is neither 2 nor 3',
  'Version 3 in less than 104 bytes',
  'A header length that cannot be',
  'A cluster size that cannot be',
  'A refcount width that cannot be',
  'Unknown incompatible features',
  'Marked dirty',
  'Marked corrupt',
  'Unknown autoclear features',
  'Compression type and its bit contradict each other',
  'Reserved bits in table entries',
  'Extended L2 entries with clusters that are too small',
  'Encryption methods',
  'Odd, zero and impossible virtual sizes',
  'Petabytes in some kilobytes',
  'An L1 table that is too small',
  'An L1 table of 2^31 entries',
  'An L1 table at an impossible place',
  'An L1 table whose end overflows',
  'An L1 table past the end of the file',
  'No refcount table',
  'A huge refcount table',
  'A refcount table at an impossible place',
  'Refcount table entries that cannot be followed',
  'A refcount block that is something else',
  'The header’s cluster counts as free',
  'Every cluster counts as free',
  'Refcounts at their maximum',
  'Snapshots with refcounts of one bit',
  'Unaligned L1 entries',
  'L1 entries past the end of the file',
  'L1 entries that name metadata',
  'Two L1 entries of one L2 table',
  'Unaligned L2 entries',
  'Data past the end of the file',
  'Data that is metadata',
  'Two guest clusters of one host cluster',
  'Offsets of 2^56 and beyond',
  'Offset 0 with COPIED',
  'A zero flag in version 2',
  'Contradictory subclusters',
  'COPIED with a refcount of more than one',
  'What a data file excludes',
  'Compressed data past the end of the file',
  'Flags that compressed clusters do not have',
  'The size of compressed data is wrong',
  'Compressed data of less than a cluster',
  'Compressed data of more than a cluster',
  'Compressed data in another wrapper',
  'zstd: huge windows',
  'zstd: thousands of empty frames',
  'zstd: dictionaries and checksums',
  'Terabytes from one compressed cluster',
  'Too many snapshots',
  'A snapshot table at an impossible place',
  'Snapshot entries that run past their table',
  'Extra data of snapshots',
  'A snapshot’s L1 table at an impossible place',
  'Snapshots of absurd sizes',
  'Ids and names that are no text',
  'Trees that loop or share',
  'Header extensions that pass their room',
  'Thousands of header extensions',
  'A header extension twice',
  'A malformed feature table',
  'No end of the header extensions',
  'A backing name at an impossible place',
  'A backing name with control characters',
  'Images that back themselves',
  'A chain of hundreds',
  'Names of files that are not the image’s to name',
  'Names that are protocols',
  'No format of the backing file',
  'A backing format that is a lie, or unknown',
  'A backing file of another size',
  'Names of data files',
  'A data file’s name without its bit, and the bit without a name',
  'A file in two roles',
  'Raw data file without a data file',
  'A backing file that is not there: `info` opens nothing',
  'A malformed bitmaps extension',
  'A bitmap directory at an impossible place',
  'Malformed bitmap directory entries',
  'Malformed bitmap tables',
  'A bitmap in use',
  'An encryption header at an impossible place',
  'LUKS magic and version',
  'LUKS ciphers, hashes and key sizes',
  'LUKS stripes and key slots',
  'LUKS iterations',
  'LUKS iterations in sum',
  'LUKS payload, digest, no slot',
  'LUKS key material past the end of the file',
  'A file that is cut',
  'A file that changes while it is used',
  'Offsets that claim exabytes',
  'Files that are several formats',
  'Single bits, flipped',
  'Checks and repairs that must end',
]

/** The distinct answers, the commonest first, with how many files gave each if there are several. */
function together(answers: readonly string[]): string {
  const counts = new Map<string, number>()
  for (const answer of answers) counts.set(answer, (counts.get(answer) ?? 0) + 1)
  const sorted = [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1))
  const short = (answer: string): string => answer.replace(/^ERR_QCOW2_/, '').replaceAll('_', '_\u200b')
  const shown = sorted.slice(0, 3).map(([answer, count]) => (sorted.length === 1 ? short(answer) : `${short(answer)} ×${count}`))
  return shown.join(', ') + (sorted.length > 3 ? ' …' : '')
}

/** The table as Markdown. */
export function threatTable(cases: readonly HostileCase[], ours: ReadonlyMap<string, Answers>, qemu: ReadonlyMap<string, QemuAnswers>): string {
  const lines = [
    '| | what is wrong | files | open | read | check | write | QEMU: info | QEMU: check | QEMU: convert |',
    '|---|---|---|---|---|---|---|---|---|---|',
  ]
  TITLES.forEach((title, i) => {
    const files = cases.filter(({ entry }) => entry === i + 1).map(({ name }) => name)
    const mine = (column: keyof Answers): string => together(files.map((name) => ours.get(name)?.[column] ?? '?'))
    const theirs = (column: keyof QemuAnswers): string => together(files.map((name) => qemu.get(name)?.[column] ?? '?'))
    lines.push(
      `| ${i + 1} | ${title} | ${files.length} | ${mine('open')} | ${mine('read')} | ${mine('check')} | ${mine('write')} | ${theirs('info')} | ${theirs('check')} | ${theirs('convert')} |`,
    )
  })
  return lines.join('\n')
}
