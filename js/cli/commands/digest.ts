/** `digest`: a hash of what an image holds. */
import { type CommandHelp, ROWS } from '../help.js'
import { formatJson } from '../json.js'
import { type DigestAlgorithm, type DigestResult, library } from '../library.js'
import { printManifest, writeManifest } from '../manifest.js'
import { blame, formatOf, type GatePolicy, gateOptions, gatePolicy, imageName } from '../names.js'
import { sizeArgument } from '../numbers.js'
import type { Program } from '../program.js'
import { ProgressLine } from '../progress.js'
import { misuse, Refusal } from '../refusal.js'
import { readSnapshotParameter, type SnapshotParameter, snapshotId, snapshotRefusal } from '../snapshots.js'
import { isOneFile } from '../targets.js'
import { commandGrammar, isCacheMode, oneFile, outputForm, readWords, refuseBoth, takeObject } from '../words.js'

const GRAMMAR = commandGrammar(
  'pqU',
  'abflmT',
  'algorithm:=a block-size:=b format:=f snapshot:=l manifest:=m cache:=T image-opts object: force-share=U progress=p quiet=q output:',
)

const HELP: CommandHelp = {
  summary: 'Print a hash of what an image holds: the same for raw, sparse and compressed images, for chains and snapshots.',
  usage: '[-a blake3|sha256] [-b SIZE] [-m MANIFEST] [-f FMT] [-l SNAPSHOT] [-p] [-q] [-U] [--output human|json] FILE',
  options: [
    ['-a, --algorithm NAME', 'hash function: blake3 or sha256 (default blake3)'],
    ['-b, --block-size SIZE', 'bytes of a block, a power of two from 4k to 64M (default 1M); digests of other sizes are others'],
    ['-m, --manifest FILE', 'write the hashes of all blocks to this file, for verify; - is stdout, without the digest'],
    ROWS.format,
    ['-l, --snapshot SNAPSHOT', 'the digest of this internal snapshot (id or name)'],
    ['-T, --cache MODE', 'caches: writeback, writethrough, none, directsync or unsafe'],
    ROWS.progress,
    ROWS.quiet,
    ROWS.share,
    ROWS.output,
    ROWS.gate,
  ],
  examples: ['digest disk.qcow2', 'digest -a sha256 -m disk.manifest disk.raw'],
}

/** Runs the command. */
export async function digest(program: Program, words: readonly string[]): Promise<number> {
  const asked: Asked = { forceShare: false, policy: 'plain', cache: 'writeback', imageOpts: false }
  let form = 'human' as 'human' | 'json'
  let manifest: string | undefined
  let [progress, quiet] = [false, false]
  const operands = readWords(program, words, GRAMMAR, HELP, (id, value) => {
    if (id === 'a') asked.algorithm = algorithmNamed(value)
    else if (id === 'b') asked.blockSize = sizeArgument('block size', value)
    else if (id === 'm') manifest = value
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
  if (!isCacheMode(asked.cache)) throw new Refusal(`Invalid source cache option: ${asked.cache}`)
  refuseBoth(asked.imageOpts, asked.format)
  const toStdout = manifest === '-'
  if (toStdout && progress) throw misuse('-p cannot be used with a manifest on stdout')
  const line = new ProgressLine(program, progress && !quiet, 1)
  if (manifest !== undefined && !toStdout) await refuseReplacing(manifest, file, asked, program.signal)
  let result: DigestResult
  try {
    result = await makeDigest(program, file, asked, manifest !== undefined, line)
    line.finish(true)
  } finally {
    line.end()
  }
  if (manifest !== undefined && !toStdout) writeManifest(manifest, result)
  if (toStdout) printManifest(result, (text) => program.out.print(text))
  else if (!quiet) program.out.print(form === 'json' ? jsonText(result) : `${result.digest}  ${file}\n`)
  return 0
}

interface Asked {
  algorithm?: DigestAlgorithm
  blockSize?: bigint
  format?: string
  snapshot?: SnapshotParameter
  forceShare: boolean
  policy: GatePolicy
  cache: string
  imageOpts: boolean
}

async function makeDigest(program: Program, file: string, asked: Asked, manifest: boolean, line: ProgressLine): Promise<DigestResult> {
  const { algorithm, blockSize } = asked
  const name = imageName(file, asked.imageOpts)
  const { signal } = program
  const format = await formatOf(name, asked.format, signal)
  const source = { ...gateOptions(asked.policy, asked.cache), forceShare: asked.forceShare }
  const snapshot = await snapshotId(program, { name, format }, asked.snapshot, source)
  const options = {
    ...{ format, source, signal, manifest, onProgress: line.update },
    ...(algorithm === undefined ? {} : { algorithm }),
    ...(blockSize === undefined ? {} : { blockSize }),
    ...(snapshot === undefined ? {} : { snapshot }),
  } as const
  try {
    return await library().digest(name.source, options)
  } catch (error) {
    throw snapshotRefusal(await blame(error, [{ name, format }], { ...source, signal }))
  }
}

/** The manifest replaces a file: none of those that the disk is made of. What cannot be opened is told by the digest. */
async function refuseReplacing(manifest: string, file: string, asked: Asked, signal: AbortSignal): Promise<void> {
  const name = imageName(file, asked.imageOpts)
  const { Qcow2Error, open } = library()
  try {
    const format = await formatOf(name, asked.format, signal)
    const disk = await open(name.source, { ...gateOptions(asked.policy, asked.cache), format, forceShare: true, signal })
    await disk.close()
    const files = disk.chain.flatMap(({ path, dataFile }) => [path, dataFile])
    for (const path of [name.path, ...files]) {
      if (path !== undefined && (await isOneFile(manifest, path))) throw new Refusal(`The manifest '${manifest}' would replace a file of the image`)
    }
  } catch (error) {
    if (!(error instanceof Qcow2Error)) throw error
  }
}

function algorithmNamed(word: string): DigestAlgorithm {
  if (word === 'blake3' || word === 'sha256') return word
  throw misuse(`--algorithm expects 'blake3' or 'sha256' not '${word}'`)
}

function jsonText({ digest, algorithm, blockSize, virtualSize, root, blocks, zeroBlocks }: DigestResult): string {
  return `${formatJson({ digest, algorithm, 'block-size': blockSize, 'virtual-size': virtualSize, root, blocks, 'zero-blocks': zeroBlocks })}\n`
}
