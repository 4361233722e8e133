/** `convert`: the words of the command, and what is refused about them before anything is opened. */
import { type Conversion, runConversion } from '../conversion.js'
import { type CommandHelp, ROWS } from '../help.js'
import { library } from '../library.js'
import { gatePolicy } from '../names.js'
import { INT64_MAX, integerArgument, readSize, sizeArgument } from '../numbers.js'
import { asksForHelp, joinLists } from '../options.js'
import { profileNamed } from '../profile.js'
import type { Program } from '../program.js'
import { ProgressLine } from '../progress.js'
import { Refusal } from '../refusal.js'
import { readSnapshotParameter } from '../snapshots.js'
import { commandGrammar, isCacheMode, readWords, takeObject } from '../words.js'
import { printHelp } from './create.js'

const GRAMMAR = commandGrammar(
  'CcpqnWU',
  'fOBFolStTmr',
  'quiet=q object: image-opts source-image-opts=image-opts source-format:=f source-cache:=T snapshot:=l sparse-size:=S output-format:=O ' +
    'options:=o output-cache:=t backing:=B backing-format:=F force-share=U target-image-opts salvage target-is-zero bitmaps ' +
    'skip-broken-bitmaps !profile: rate:=r parallel:=m oob-writes=W copy-range-offloading=C',
)

const HELP: CommandHelp = {
  summary: 'Copy an image, or several one behind the other, to a new image. An existing file is replaced when the new one is whole.',
  usage: '[-f FMT] [-O FMT] [-c] [-o OPTIONS] [-B FILE -F FMT] [-l SNAPSHOT] [-p] [-n] [-U] SOURCE [SOURCE …] TARGET',
  options: [
    ['-f, --source-format FMT', 'format of the sources: qcow2, raw or luks (default: as their first bytes say)'],
    ['-O, --output-format FMT', 'format of the target: qcow2, raw or luks (default raw)'],
    ['-c', 'compress (qcow2)'],
    ['--profile NAME', 'make what a destination takes, such as glance, kubevirt or linode'],
    ['-o, --options KEY=VALUE,…', 'options of the target; -o help lists them'],
    ['-B, --backing FILE', 'make the target an overlay of FILE; what FILE has is not copied'],
    ['-F, --backing-format FMT', 'its format'],
    ['-l, --snapshot SNAPSHOT', 'copy this internal snapshot (id or name)'],
    ['-S, --sparse-size SIZE', 'zeros from this length on become holes (default 4k); 0 writes them'],
    ['-n', 'write into an existing image, raw file or block device'],
    ['--target-is-zero', 'with -n: the target is known to be all zeros'],
    ['--bitmaps', 'copy the persistent bitmaps too'],
    ['--skip-broken-bitmaps', 'with --bitmaps: leave out those that are inconsistent'],
    ['--salvage', 'write zeros for what cannot be read, and say what that was'],
    ['-m, --parallel N', 'workers, 1 to 16; the result does not depend on it'],
    ['-r, --rate RATE', 'most bytes a second'],
    ['-t, --output-cache MODE', 'caches of the target: unsafe (default), writeback, writethrough, none or directsync'],
    ['-T, --source-cache MODE', 'caches of the sources (default writeback)'],
    ['-W, --oob-writes', 'accepted; the result does not depend on it'],
    ['-C, --copy-range-offloading', 'accepted; the result does not depend on it'],
    ['-p', ROWS.progress[1]],
    ROWS.quiet,
    ROWS.share,
    ROWS.gate,
    ['SOURCE or TARGET -', 'standard input or output'],
  ],
  examples: ['convert -p -c -O qcow2 disk.raw disk.qcow2', 'convert -f qcow2 -l before-upgrade disk.qcow2 old.raw'],
}

const SPARSE = 'buffer size for sparse output'

/** Runs the command. */
export async function convert(program: Program, words: readonly string[]): Promise<number> {
  const asked: Conversion = {
    sources: [],
    target: '',
    sourceFormat: undefined,
    targetFormat: 'raw',
    profile: undefined,
    list: undefined,
    backing: undefined,
    backingFormat: undefined,
    snapshot: undefined,
    compress: false,
    sparseSize: undefined,
    noCreate: false,
    targetIsZero: false,
    bitmaps: false,
    skipBroken: false,
    salvage: false,
    quiet: false,
    threads: undefined,
    rateLimit: undefined,
    cache: 'unsafe',
    sourceCache: 'writeback',
    forceShare: false,
    policy: 'plain',
    imageOpts: false,
    targetImageOpts: false,
  }
  const flags = new Set<string>()
  const operands = readWords(program, words, GRAMMAR, HELP, (id, value) => {
    if (id === 'f') asked.sourceFormat = value
    else if (id === 'O') asked.targetFormat = value
    else if (id === 'profile') asked.profile = profileNamed(value)
    else if (id === 'o') asked.list = joinLists(asked.list, value)
    else if (id === 'B') asked.backing = value
    else if (id === 'F') asked.backingFormat = value
    else if (id === 'l') asked.snapshot = readSnapshotParameter(program, value)
    else if (id === 'c') asked.compress = true
    else if (id === 'S') asked.sparseSize = sparseSize(value)
    else if (id === 'n') asked.noCreate = true
    else if (id === 'target-is-zero') asked.targetIsZero = true
    else if (id === 'bitmaps') asked.bitmaps = true
    else if (id === 'skip-broken-bitmaps') asked.skipBroken = true
    else if (id === 'salvage') asked.salvage = true
    else if (id === 'q') asked.quiet = true
    else if (id === 'm') asked.threads = Number(integerArgument('number of coroutines', value, 1n, 16n))
    else if (id === 'r') asked.rateLimit = sizeArgument('rate limit', value, 0n, INT64_MAX)
    else if (id === 't') asked.cache = value
    else if (id === 'T') asked.sourceCache = value
    else if (id === 'U') asked.forceShare = true
    else if (id === 'image-opts') asked.imageOpts = true
    else if (id === 'target-image-opts') asked.targetImageOpts = true
    else if (id === 'object') takeObject(value)
    else if (id === 'backing-files') asked.policy = gatePolicy(value)
    flags.add(id)
  })
  if (asked.profile !== undefined && !flags.has('O')) asked.targetFormat = library().profiles[asked.profile].make.format
  asked.target = operands.at(-1) ?? ''
  asked.sources = operands.slice(0, -1)
  refuseCombinations(asked, flags)
  if (asksForHelp(asked.list)) return printHelp(program, asked.targetFormat, operands.length > 1)
  if (asked.sources.length === 0) throw new Refusal('Must specify image file name')
  if (!isCacheMode(asked.sourceCache)) throw new Refusal(`Invalid source cache option: ${asked.sourceCache}`)
  if (asked.bitmaps && asked.sources.length > 1) throw new Refusal('Copying bitmaps only possible with single source')
  refuseUnsupported(flags)
  const line = new ProgressLine(program, flags.has('p') && !flags.has('q') && asked.target !== '-', 1)
  line.start()
  try {
    await runConversion(program, asked, line)
    line.finish(true)
  } finally {
    line.end()
  }
  return 0
}

function sparseSize(text: string): number {
  const size = readSize(text)
  if (size === 'invalid') throw new Refusal(`Invalid ${SPARSE} specified: '${text}'.`)
  if (size === 'range') throw new Refusal(`Invalid ${SPARSE} specified. Must be between 0 and ${INT64_MAX}.`)
  if (size > 16777216n || size % 512n !== 0n) {
    throw new Refusal(
      `Invalid ${SPARSE} specified. Valid sizes are multiples of 512 up to 16777216. Select 0 to disable sparse detection (fully allocates output).`,
    )
  }
  return Number(size)
}

/** What contradicts itself. Of several faults, the first of these is told. */
function refuseCombinations(asked: Conversion, flags: ReadonlySet<string>): void {
  const refuse = (text: string): never => {
    throw new Refusal(text)
  }
  if (flags.has('skip-broken-bitmaps') && !asked.bitmaps) refuse('Use of --skip-broken-bitmaps requires --bitmaps')
  if (flags.has('C') && asked.compress) refuse('Cannot enable copy offloading when -c is used')
  if (flags.has('C') && flags.has('S')) refuse('Cannot enable copy offloading when -S is used')
  if (flags.has('C') && flags.has('salvage')) refuse('Cannot use copy offloading in salvaging mode')
  if (flags.has('target-image-opts') && !asked.noCreate) refuse('--target-image-opts requires use of -n flag')
  if (asked.noCreate && asked.list !== undefined) refuse('-o has no effect when skipping image creation')
  if (asked.targetIsZero && !asked.noCreate) refuse('--target-is-zero requires use of -n flag')
}

/** What this version knows only by name. */
function refuseUnsupported(flags: ReadonlySet<string>): void {
  const imageOpts = flags.has('image-opts')
  const targetImageOpts = flags.has('target-image-opts')
  if ((imageOpts && flags.has('f')) || (targetImageOpts && flags.has('O'))) {
    throw new Refusal('--image-opts and --format are mutually exclusive')
  }
}
