/** `commit`: what an overlay holds, written into a layer below it. */
import { type CommandHelp, ROWS } from '../help.js'
import { formatJson } from '../json.js'
import { type CommitResult, type Format, library, type Qcow2Error } from '../library.js'
import { blame, formatOf, type GatePolicy, gateOptions, gatePolicy, type ImageName, imageName, openRefusal, refuseReadOnly } from '../names.js'
import { sizeArgument } from '../numbers.js'
import type { Program } from '../program.js'
import { ProgressLine } from '../progress.js'
import { Refusal } from '../refusal.js'
import { jobText } from '../texts.js'
import { commandGrammar, isCacheMode, oneFile, outputForm, readWords, refuseBoth, takeObject } from '../words.js'
import { warnOfGuess } from '../writable.js'

const GRAMMAR = commandGrammar('dpq', 'bfrt', 'base:=b cache:=t drop=d format:=f image-opts object: !output: progress=p quiet=q rate:=r')

const HELP: CommandHelp = {
  summary: 'Write what an overlay holds into its backing file, and empty the overlay.',
  usage: '[-f FMT] [-b BASE] [-d] [-r RATE] [-p] [-q] [--output human|json] FILE',
  options: [
    ROWS.format,
    ['-b, --base BASE', 'the layer of the chain that is written to (default: the backing file); FILE is not emptied then'],
    ['-d, --drop', 'do not empty FILE'],
    ['-r, --rate RATE', 'most bytes a second'],
    ['-t, --cache MODE', 'caches: writeback, writethrough, none, directsync or unsafe'],
    ROWS.progress,
    ROWS.quiet,
    ROWS.output,
    ROWS.gate,
  ],
  examples: ['commit -p overlay.qcow2', 'commit -b base.qcow2 top.qcow2'],
}

interface Wishes {
  base?: string
  drop?: true
  rateLimit?: bigint
}

/** Runs the command. */
export async function commit(program: Program, words: readonly string[]): Promise<number> {
  let format: string | undefined
  let form = 'human' as 'human' | 'json'
  let cache = 'writeback'
  let progress = false
  let quiet = false
  let imageOpts = false
  let policy: GatePolicy = 'plain'
  const wishes: Wishes = {}
  const operands = readWords(program, words, GRAMMAR, HELP, (id, value) => {
    if (id === 'f') format = value
    else if (id === 'b') wishes.base = value
    else if (id === 'd') wishes.drop = true
    else if (id === 'r') wishes.rateLimit = sizeArgument('rate limit', value)
    else if (id === 't') cache = value
    else if (id === 'p') progress = true
    else if (id === 'q') quiet = true
    else if (id === 'output') form = outputForm(value)
    else if (id === 'object') takeObject(value)
    else if (id === 'image-opts') imageOpts = true
    else if (id === 'backing-files') policy = gatePolicy(value)
  })
  const file = oneFile(operands)
  refuseBoth(imageOpts, format)
  if (!isCacheMode(cache)) throw new Refusal(`Invalid cache option: ${cache}`)
  const name = imageName(file, imageOpts)
  refuseReadOnly(name)
  const kind = await formatOf(name, format, program.signal)
  if (format === undefined && kind === 'raw') warnOfGuess(name)
  const line = new ProgressLine(program, progress && !quiet, 1)
  try {
    line.start()
    const result = await run(program, name, { ...wishes, format: kind, ...gateOptions(policy, cache) }, line)
    line.finish(true)
    line.end()
    if (form === 'json') program.out.print(jsonText(name, result))
    else if (!quiet) program.out.print('Image committed.\n')
    return 0
  } catch (error) {
    line.end()
    throw error
  }
}

type Settings = Wishes & { format: Format } & ReturnType<typeof gateOptions>

async function run(program: Program, name: ImageName, settings: Settings, line: ProgressLine): Promise<CommitResult> {
  const { signal } = program
  const { base, drop, rateLimit, ...opening } = settings
  const wishes = {
    ...(base === undefined ? {} : { base: base === '' ? '/' : base }),
    ...(drop === undefined ? {} : { drop }),
    ...(rateLimit === undefined || rateLimit === 0n ? {} : { rateLimit }),
  }
  try {
    return await library().commit(name.source, { ...opening, ...wishes, signal, onProgress: line.update })
  } catch (error) {
    if (signal.aborted) throw error
    if (!(error instanceof library().Qcow2Error)) throw openRefusal(error, name)
    if (error.code === 'ERR_QCOW2_NO_BACKING' && base === undefined) throw new Refusal('Image does not have a backing file')
    if (/_(NO_BACKING|NOT_IN_CHAIN)$/.test(error.code)) throw new Refusal(`Did not find '${base}' in the backing chain of '${name.given}'`)
    throw await wordFailure(error, name, { ...opening, signal })
  }
}

/** qemu-img opens the chain for reading first: what cannot be opened so is told with every file on the way; what only writing fails at is told by itself. */
async function wordFailure(error: Qcow2Error, name: ImageName, opening: Parameters<typeof blame>[2] & { format: Format }): Promise<unknown> {
  const { format, ...options } = opening
  if (error.code === 'ERR_QCOW2_LOCKED' && error.details.role === undefined) return openRefusal(error, name)
  const told = await blame(error, [{ name, format }], options)
  if (told !== error) return told
  const refusal = error.details.role === undefined ? undefined : openRefusal(error, name)
  if (!(refusal instanceof Refusal)) return new Refusal(`Block job failed: ${jobText(error)}`, { hint: error.message })
  const depth = Number(error.details.depth ?? 0)
  if (depth === 0) return refusal
  const prefix = `Could not open '${name.given}': ${'Could not open backing file: '.repeat(depth)}`
  const text = refusal.message.startsWith(prefix) ? refusal.message.slice(prefix.length) : refusal.message
  return new Refusal(text, refusal.hint === undefined ? {} : { hint: refusal.hint })
}

function jsonText({ given }: ImageName, { base, virtualSize, dataBytes, zeroBytes, baseGrown, emptied }: CommitResult): string {
  return `${formatJson({
    filename: given,
    base,
    'virtual-size': virtualSize,
    'data-bytes': dataBytes,
    'zero-bytes': zeroBytes,
    'base-grown': baseGrown,
    emptied,
  })}\n`
}
