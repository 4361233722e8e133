/** `verify`: whether an image holds what a digest was made of. */
import { type CommandHelp, ROWS } from '../help.js'
import { formatJson } from '../json.js'
import { library, type VerifyResult } from '../library.js'
import { readManifest } from '../manifest.js'
import { blame, formatOf, type GatePolicy, gateOptions, gatePolicy, imageName } from '../names.js'
import { sizeArgument } from '../numbers.js'
import type { Program } from '../program.js'
import { ProgressLine } from '../progress.js'
import { misuse, Refusal } from '../refusal.js'
import { readSnapshotParameter, type SnapshotParameter, snapshotId, snapshotRefusal } from '../snapshots.js'
import { commandGrammar, Done, isCacheMode, oneFile, outputForm, readWords, refuseBoth, takeObject } from '../words.js'

const GRAMMAR = commandGrammar(
  'pqU',
  'dflmT',
  'digest:=d manifest:=m start: end: format:=f snapshot:=l cache:=T image-opts object: force-share=U progress=p quiet=q output:',
)

const HELP: CommandHelp = {
  summary: 'Tell whether an image, or a range of it, holds what a digest was made of, and which blocks do not.',
  usage: '(-m MANIFEST [--start OFFSET] [--end OFFSET] | -d DIGEST) [-f FMT] [-l SNAPSHOT] [-p] [-q] [-U] [--output human|json] FILE',
  options: [
    ['-m, --manifest FILE', 'what digest -m wrote; - is stdin'],
    ['-d, --digest DIGEST', 'what digest printed; with a manifest: the digest that it must have'],
    ['--start OFFSET', 'first byte of the range, widened to whole blocks (default 0)'],
    ['--end OFFSET', 'the byte behind its last (default: the end)'],
    ROWS.format,
    ['-l, --snapshot SNAPSHOT', 'verify this internal snapshot (id or name)'],
    ['-T, --cache MODE', 'caches: writeback, writethrough, none, directsync or unsafe'],
    ROWS.progress,
    ROWS.quiet,
    ROWS.share,
    ROWS.output,
    ROWS.gate,
    ['', 'exit code: 0 same, 1 different, 2 could not tell'],
  ],
  examples: ['verify -m disk.manifest disk.qcow2', 'verify -m disk.manifest --start 1G --end 2G disk.raw'],
}

/** Different, and every failure: a script must not take one for the other. */
const DIFFERENT = 1
const FAILED = 2

/** Runs the command. */
export async function verify(program: Program, words: readonly string[]): Promise<number> {
  try {
    return (await judge(program, words)) ? 0 : DIFFERENT
  } catch (error) {
    throw asFailure(program, error)
  }
}

function asFailure(program: Program, error: unknown): unknown {
  if (error instanceof Done) return new Done(error.code === 0 ? 0 : FAILED)
  if (error instanceof Refusal) {
    return new Refusal(error.message, { code: FAILED, usage: error.usage, ...(error.hint === undefined ? {} : { hint: error.hint }) })
  }
  if (program.signal.aborted || program.describe !== undefined || !(error instanceof library().Qcow2Error)) return error
  return new Refusal(error.message, { code: FAILED })
}

interface Asked {
  digest?: string
  manifest?: string
  start?: bigint
  end?: bigint
  format?: string
  snapshot?: SnapshotParameter
  forceShare: boolean
  policy: GatePolicy
  cache: string
  imageOpts: boolean
}

async function judge(program: Program, words: readonly string[]): Promise<boolean> {
  program.failure = FAILED
  const asked: Asked = { forceShare: false, policy: 'plain', cache: 'writeback', imageOpts: false }
  let form = 'human' as 'human' | 'json'
  let [progress, quiet] = [false, false]
  const operands = readWords(program, words, GRAMMAR, HELP, (id, value) => {
    if (id === 'd') asked.digest = value
    else if (id === 'm') asked.manifest = value
    else if (id === 'start') asked.start = sizeArgument('start offset', value)
    else if (id === 'end') asked.end = sizeArgument('end offset', value)
    else if (id === 'f') asked.format = value
    else if (id === 'l') asked.snapshot = readSnapshotParameter(program, value)
    else if (id === 'T') asked.cache = value
    else if (id === 'p') progress = true
    else if (id === 'q') quiet = true
    else if (id === 'U') asked.forceShare = true
    else if (id === 'output') form = outputForm(value)
    else if (id === 'object') takeObject(value)
    else if (id === 'image-opts') asked.imageOpts = true
    else if (id === 'backing-files') asked.policy = gatePolicy(value)
  })
  const file = oneFile(operands)
  if (asked.manifest === undefined && asked.digest === undefined) throw misuse('Expecting a manifest (-m) or a digest (-d)')
  if (!isCacheMode(asked.cache)) throw new Refusal(`Invalid source cache option: ${asked.cache}`)
  refuseBoth(asked.imageOpts, asked.format)
  const line = new ProgressLine(program, progress && !quiet, 1)
  let result: VerifyResult
  try {
    result = await runVerify(program, file, asked, line)
    line.finish(true)
  } finally {
    line.end()
  }
  if (!quiet) program.out.print(form === 'json' ? jsonText(result) : humanText(result))
  return result.identical
}

async function runVerify(program: Program, file: string, asked: Asked, line: ProgressLine): Promise<VerifyResult> {
  const { digest, manifest, start, end } = asked
  const expected = manifest === undefined ? (digest as string) : readManifest(manifest)
  const name = imageName(file, asked.imageOpts)
  const { signal } = program
  const format = await formatOf(name, asked.format, signal)
  const source = { ...gateOptions(asked.policy, asked.cache), forceShare: asked.forceShare }
  const snapshot = await snapshotId(program, { name, format }, asked.snapshot, source)
  const options = {
    ...{ format, source, signal, onProgress: line.update },
    ...(digest === undefined ? {} : { digest }),
    ...(start === undefined ? {} : { start }),
    ...(end === undefined ? {} : { end }),
    ...(snapshot === undefined ? {} : { snapshot }),
  }
  try {
    return await library().verify(name.source, expected, options)
  } catch (error) {
    throw snapshotRefusal(await blame(error, [{ name, format }], { ...source, signal }))
  }
}

function humanText({ identical, virtualSize, expectedSize, checked, differentBlocks, different, omitted }: VerifyResult): string {
  if (identical) return `Verified: ${checked} bytes are as expected.\n`
  const rows = different.map(({ start, end }) => `Mismatch at ${start} to ${end}\n`)
  if (BigInt(omitted) > 0n) rows.push(`${omitted} more ranges\n`)
  if (expectedSize !== undefined && BigInt(expectedSize) !== BigInt(virtualSize))
    rows.unshift(`The size is ${virtualSize}, expected ${expectedSize}\n`)
  rows.push(differentBlocks === undefined ? 'The digest is another.\n' : `${differentBlocks} blocks differ.\n`)
  return rows.join('')
}

function jsonText(result: VerifyResult): string {
  const { identical, virtualSize, expectedSize, checked, differentBlocks, different, omitted } = result
  return `${formatJson({
    identical,
    checked,
    omitted,
    'virtual-size': virtualSize,
    'expected-size': expectedSize,
    'different-blocks': differentBlocks,
    different: different.map(({ start, end }) => ({ start, end })),
  })}\n`
}
