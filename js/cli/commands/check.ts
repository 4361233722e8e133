/** `check`: whether an image is consistent. */

import { findingText, repairText } from '../findings.js'
import { type CommandHelp, ROWS } from '../help.js'
import { percent } from '../human.js'
import { formatJson } from '../json.js'
import { type CacheMode, type CheckOptions, type CheckResult, type Finding, type Format, library } from '../library.js'
import { cannotOpen, formatOf, type GatePolicy, gateOptions, gatePolicy, type ImageName, imageName, openRefusal, refuseReadOnly } from '../names.js'
import { printError } from '../output.js'
import { complain, type Program } from '../program.js'
import { misuse, Refusal } from '../refusal.js'
import { systemText } from '../texts.js'
import { cacheOf, commandGrammar, isCacheMode, oneFile, outputForm, readWords, refuseBoth, takeObject } from '../words.js'
import { warnOfGuess } from '../writable.js'

const GRAMMAR = commandGrammar('qU', 'frT', 'quiet=q format:=f cache:=T repair:=r output: object: image-opts force-share=U')

const HELP: CommandHelp = {
  summary: 'Count all references of a qcow2 image and compare them with its refcounts; with -r, repair it.',
  usage: '[-f FMT] [-r leaks|all] [-U] [-q] [--output human|json] FILE',
  options: [
    ROWS.format,
    ['-r, --repair leaks|all', 'give back what leaks, or mend all that follows from what refers to what'],
    ROWS.quiet,
    ['-T, --cache MODE', 'caches: writeback, writethrough, none, directsync or unsafe'],
    ROWS.share,
    ROWS.output,
    ROWS.gate,
    ['', 'exit code: 0 consistent, 1 failed, 2 corrupt, 3 leaks only, 63 not a qcow2 image'],
  ],
  examples: ['check -r leaks disk.qcow2', 'check -q -U --output=json disk-in-use.qcow2'],
}

/** The format has no check. */
const NO_CHECK = 63

/** Runs the command. */
export async function check(program: Program, words: readonly string[]): Promise<number> {
  let format: string | undefined
  let form = 'human' as 'human' | 'json'
  let cache = 'writeback'
  let repair: 'leaks' | 'all' | undefined
  let quiet = false
  let imageOpts = false
  let forceShare = false
  let policy: GatePolicy = 'plain'
  const operands = readWords(program, words, GRAMMAR, HELP, (id, value) => {
    if (id === 'f') format = value
    else if (id === 'output') form = outputForm(value)
    else if (id === 'T') cache = value
    else if (id === 'q') quiet = true
    else if (id === 'U') forceShare = true
    else if (id === 'object') takeObject(value)
    else if (id === 'image-opts') imageOpts = true
    else if (id === 'backing-files') policy = gatePolicy(value)
    else if (id === 'r') {
      if (value !== 'leaks' && value !== 'all') throw misuse(`--repair (-r) expects 'leaks' or 'all' not '${value}'`)
      repair = value
    }
  })
  const file = oneFile(operands)
  if (!isCacheMode(cache)) throw new Refusal(`Invalid source cache option: ${cache}`)
  refuseBoth(imageOpts, format)
  const name = imageName(file, imageOpts)
  if (repair !== undefined) refuseReadOnly(name)
  if (repair !== undefined && forceShare) throw cannotOpen(name.given, 'force-share=on can only be used with read-only images')
  const kind = await formatOf(name, format, program.signal)
  if (repair !== undefined && format === undefined && kind === 'raw') warnOfGuess(name)
  // A repair takes a writer's locks itself.
  await openOnce(program, name, { format: kind, forceShare: forceShare || repair !== undefined, cache: cacheOf(cache) }, policy)
  if (kind !== 'qcow2') throw new Refusal('This image format does not support checks', { code: NO_CHECK })
  const result = await runCheck(program, name, { forceShare, cache: cacheOf(cache), ...(repair === undefined ? {} : { repair }) })
  const out = (text: string) => {
    if (!quiet) program.out.print(text)
  }
  if (result.leaksFixed + result.corruptionsFixed > 0) {
    tellRepairs(program, result)
    if (form === 'human') out(repairedText(result))
  }
  tell(program, result.findings, result.findingsOmitted)
  out(form === 'json' ? jsonText(name, result) : humanText(result))
  if (result.corruptions > 0) return 2
  if (result.checkErrors > 0) return 1
  return result.leaks > 0 ? 3 : 0
}

function tell(program: Program, findings: readonly Finding[], omitted = 0): void {
  for (const finding of findings) {
    if (OF_TABLE.has(finding.code)) complain(program, findingText(finding))
    else printError(`${findingText(finding)}\n`)
  }
  if (omitted > 0) complain(program, `${omitted} more findings are counted below and not shown`)
}

/**
 * What was found before and what was done about it, in qemu-img's order: flags come last, and are told as they are when the refcounts are right.
 */
function tellRepairs(program: Program, { repair, findings }: CheckResult): void {
  const { found = [], foundOmitted = 0, fixed = [], rebuilt = 0 } = repair ?? {}
  const isFlag = ({ code }: Finding) => code === 'COPIED_FLAG'
  const mended = new Set(fixed.filter(({ code }) => IN_PLACE.has(code)).map(keyOf))
  for (const finding of found) {
    if (!isFlag(finding)) printError(`${mended.has(keyOf(finding)) ? repairText(finding) : findingText(finding)}\n`)
  }
  if (foundOmitted > 0) complain(program, `${foundOmitted} more findings are not shown`)
  if (rebuilt > 0) printError('Rebuilding refcount structure\n')
  for (const finding of fixed) if (!IN_PLACE.has(finding.code)) printError(`${repairText(finding)}\n`)
  tell(program, findings.filter(isFlag))
}

/** What keeps qemu-img from reading the snapshot table, which it says under its name. */
const OF_TABLE = new Set(['SNAPSHOT_EXTRA', 'SNAPSHOTS_OVERHANGING'])

/** What is mended while it is found, and told once. */
const IN_PLACE = new Set(['UNALIGNED_ZERO', 'SNAPSHOT_INCOMPLETE', 'SNAPSHOT_EXTRA', 'SNAPSHOTS_OVERHANGING'])

function keyOf({ code, offset, index }: Finding): string {
  return `${code} ${offset} ${index}`
}

/** Opens the whole chain first, as qemu-img does: a missing backing file is told before anything is checked. */
async function openOnce(
  program: Program,
  name: ImageName,
  options: { format: Format; forceShare: boolean; cache: CacheMode },
  policy: GatePolicy,
): Promise<void> {
  try {
    const disk = await library().open(name.source, { ...gateOptions(policy), ...options, signal: program.signal })
    await disk.close()
  } catch (error) {
    // A check is there to tell what is wrong inside: only what it could not even begin with ends it here.
    const refusal = openRefusal(error, name)
    if (refusal instanceof Refusal && !isForCheck(error)) throw refusal
    if (!(refusal instanceof Refusal)) throw error
  }
}

/** Faults that the check itself finds and counts. */
function isForCheck(error: unknown): boolean {
  return (
    error instanceof library().Qcow2Error &&
    /_(CORRUPT|TRUNCATED|L1_TRUNCATED|ENCRYPTED|SNAPSHOT_EXTRA_DATA|SNAPSHOT_INCOMPLETE|SNAPSHOT_TABLE_TOO_LARGE)$/.test(error.code)
  )
}

async function runCheck(program: Program, name: ImageName, options: Pick<CheckOptions, 'forceShare' | 'repair' | 'cache'>): Promise<CheckResult> {
  try {
    return await library().check(name.source, { ...options, format: 'qcow2', bigint: true, signal: program.signal })
  } catch (error) {
    const { Qcow2Error } = library()
    if (error instanceof Qcow2Error && error.syscall === 'read') throw new Refusal(`Check failed: ${systemText(error)}`)
    throw openRefusal(error, name)
  }
}

function jsonText({ given }: ImageName, result: CheckResult): string {
  const some = (count: number | bigint) => (BigInt(count) === 0n ? undefined : count)
  return `${formatJson({
    filename: given,
    format: result.format,
    'check-errors': result.checkErrors,
    'image-end-offset': some(result.imageEndOffset),
    corruptions: some(result.corruptions),
    leaks: some(result.leaks),
    'corruptions-fixed': some(result.corruptionsFixed),
    'leaks-fixed': some(result.leaksFixed),
    'total-clusters': some(result.totalClusters),
    'allocated-clusters': some(result.allocatedClusters),
    'fragmented-clusters': some(result.fragmentedClusters),
    'compressed-clusters': some(result.compressedClusters),
  })}\n`
}

function repairedText({ leaksFixed, corruptionsFixed }: CheckResult): string {
  return `The following inconsistencies were found and repaired:

    ${leaksFixed} leaked clusters
    ${corruptionsFixed} corruptions

Double checking the fixed image now...
`
}

function humanText(result: CheckResult): string {
  const { corruptions, leaks, checkErrors } = result
  let text = ''
  if (corruptions === 0 && leaks === 0 && checkErrors === 0) text += 'No errors were found on the image.\n'
  if (corruptions > 0) {
    text += `\n${corruptions} errors were found on the image.\nData may be corrupted, or further writes to the image may corrupt it.\n`
  }
  if (leaks > 0) text += `\n${leaks} leaked clusters were found on the image.\nThis means waste of disk space, but no harm to data.\n`
  if (checkErrors > 0) text += `\n${checkErrors} internal errors have occurred during the check.\n`
  const { totalClusters, allocatedClusters, fragmentedClusters, compressedClusters, imageEndOffset } = result
  if (BigInt(totalClusters) !== 0n && BigInt(allocatedClusters) !== 0n) {
    const share = (part: number | bigint) => percent(part, allocatedClusters)
    text += `${allocatedClusters}/${totalClusters} = ${percent(allocatedClusters, totalClusters)}% allocated, `
    text += `${share(fragmentedClusters)}% fragmented, ${share(compressedClusters)}% compressed clusters\n`
  }
  if (BigInt(imageEndOffset) !== 0n) text += `Image end offset: ${imageEndOffset}\n`
  return text
}
