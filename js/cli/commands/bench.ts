/** `bench`: how fast requests to an image are. */
import { type CommandHelp, ROWS } from '../help.js'
import { formatJson } from '../json.js'
import { type BenchOptions, type BenchResult, type Format, library, type Progress } from '../library.js'
import {
  blame,
  cannotOpen,
  formatOf,
  type GatePolicy,
  gateOptions,
  gatePolicy,
  type ImageName,
  imageName,
  openRefusal,
  refuseReadOnly,
} from '../names.js'
import { integerArgument, sizeArgument } from '../numbers.js'
import { isTargetFormat } from '../options.js'
import type { Program } from '../program.js'
import { ProgressLine } from '../progress.js'
import { Refusal } from '../refusal.js'
import { systemText } from '../texts.js'
import { commandGrammar, isCacheMode, oneFile, outputForm, readWords, refuseBoth } from '../words.js'

export const GRAMMAR = commandGrammar(
  'nqUw',
  'cdfiosSt',
  'format:=f image-opts cache:=t count:=c buffer-size:=s depth:=d offset:=o step-size:=S aio:=i native=n write=w pattern: flush-interval: no-drain force-share=U !output:',
)

export const HELP: CommandHelp = {
  summary: 'Measure requests to an image. With -w what the image holds there is overwritten.',
  usage: '[-f FMT] [-t CACHE] [-c N] [-d N] [-o OFFSET] [-s SIZE] [-S STEP] [-w [--pattern BYTE] [--flush-interval N [--no-drain]]] FILE',
  options: [
    ROWS.format,
    ['-c, --count N', 'requests to make (default 75000)'],
    ['-d, --depth N', 'requests under way at a time (default 64)'],
    ['-s, --buffer-size SIZE', 'bytes a request (default 4096)'],
    ['-o, --offset OFFSET', 'where the first request begins (default 0)'],
    ['-S, --step-size STEP', 'bytes from one request to the next (default: as many as one has)'],
    ['-w, --write', 'write instead of reading'],
    ['--pattern BYTE', 'the byte that is written, 0 (default) to 255'],
    ['--flush-interval N', 'flush after every N writes'],
    ['--no-drain', 'do not wait for writes under way before a flush'],
    ['-t, --cache MODE', 'caches: writeback, writethrough, none, directsync or unsafe'],
    ['-i, --aio MODE', 'accepted: threads, native or io_uring; the way to the file is our own'],
    ['-n, --native', 'the same as -i native'],
    ['-q', 'accepted; the result is printed all the same, as qemu-img does'],
    ROWS.share,
    ['--output human|json', 'form of the output; json has rates and latencies too'],
    ROWS.gate,
    ['', 'SIGUSR1 prints the progress on stderr'],
  ],
  examples: ['bench -c 100000 -d 16 disk.qcow2', 'bench -w --pattern 7 -d 1 --flush-interval 100 --output=json scratch.qcow2'],
}

const INT_MAX = 2n ** 31n - 1n
const AIO_MODES = new Set(['threads', 'native', 'io_uring'])

interface Settings {
  count: bigint
  depth: bigint
  size: bigint
  step: bigint
  offset: bigint
  write: boolean
  pattern: bigint
  flushInterval: bigint
  drain: boolean
  native: boolean
  cache: string
  forceShare: boolean
}

/** Runs the command. */
export async function bench(program: Program, words: readonly string[]): Promise<number> {
  const settings: Settings = {
    count: 75_000n,
    depth: 64n,
    size: 4096n,
    step: 0n,
    offset: 0n,
    write: false,
    pattern: 0n,
    flushInterval: 0n,
    drain: true,
    native: false,
    cache: 'writeback',
    forceShare: false,
  }
  let format: string | undefined
  let form = 'human' as 'human' | 'json'
  let imageOpts = false
  let policy: GatePolicy = 'plain'
  const operands = readWords(program, words, GRAMMAR, HELP, (id, value) => {
    if (readNumber(settings, id, value)) return
    if (id === 'f') format = value
    else if (id === 'output') form = outputForm(value)
    else if (id === 't') settings.cache = cacheMode(value)
    else if (id === 'i') settings.native = aioMode(value) === 'native' || settings.native
    else if (id === 'n') settings.native = true
    else if (id === 'w') settings.write = true
    else if (id === 'no-drain') settings.drain = false
    else if (id === 'U') settings.forceShare = true
    else if (id === 'image-opts') imageOpts = true
    else if (id === 'backing-files') policy = gatePolicy(value)
  })
  const file = oneFile(operands)
  const { flushInterval, depth, write } = settings
  if (flushInterval > 0n && !write) throw new Refusal('--flush-interval is only available in write tests')
  if (flushInterval > 0n && flushInterval < depth) throw new Refusal("Flush interval can't be smaller than depth")
  refuseBoth(imageOpts, format)
  const name = imageName(file, imageOpts)
  if (settings.write) refuseReadOnly(name)
  const kind = await formatFor(program, name, format, policy, settings)
  const announce = (): void => {
    if (form === 'human') program.out.print(announcement(settings))
  }
  const result = await run(program, name, kind, policy, settings, announce)
  program.out.print(form === 'human' ? `Run completed in ${result.seconds.toFixed(3)} seconds.\n` : jsonText(name, kind, settings, result))
  return 0
}

/** Reads the options that are numbers. */
function readNumber(settings: Settings, id: string, value: string): boolean {
  if (id === 'c') settings.count = integerArgument('request count', value, 1n, INT_MAX)
  else if (id === 'd') settings.depth = integerArgument('queue depth', value, 1n, INT_MAX)
  else if (id === 's') settings.size = sizeArgument('buffer size', value, 1n, INT_MAX)
  else if (id === 'S') settings.step = sizeArgument('step size', value, 0n, INT_MAX)
  else if (id === 'o') settings.offset = sizeArgument('offset', value)
  else if (id === 'pattern') settings.pattern = integerArgument('pattern byte', value, 0n, 255n)
  else if (id === 'flush-interval') settings.flushInterval = integerArgument('flush interval', value, 0n, INT_MAX)
  else return false
  return true
}

function cacheMode(value: string): string {
  if (isCacheMode(value)) return value
  throw new Refusal('Invalid cache mode')
}

function aioMode(value: string): string {
  if (AIO_MODES.has(value)) return value
  throw new Refusal(`Invalid aio option: ${value}`)
}

/** Finds out what the image is, and refuses what contradicts itself. */
async function formatFor(program: Program, name: ImageName, given: string | undefined, policy: GatePolicy, settings: Settings): Promise<Format> {
  const { signal } = program
  const { write, forceShare, native, cache } = settings
  if (write && forceShare && isTargetFormat(given ?? 'raw')) throw cannotOpen(name.given, 'force-share=on can only be used with read-only images')
  const format = await formatOf(name, given, signal)
  if (!native || /^(none|off|directsync)$/.test(cache)) return format
  // That the file is there, and an image, is looked at before.
  const refusal = cannotOpen(name.given, 'aio=native was specified, but it requires cache.direct=on, which was not specified.')
  throw await blame(refusal, [{ name, format }], { ...gateOptions(policy, cache), forceShare, signal }, true)
}

async function run(
  program: Program,
  name: ImageName,
  format: Format,
  policy: GatePolicy,
  settings: Settings,
  announce: () => void,
): Promise<BenchResult> {
  const { bigint: _, ...gate } = gateOptions(policy, settings.cache)
  const { signal } = program
  const { size, step, offset, write, drain, forceShare } = settings
  const [count, depth, pattern, flushInterval] = [
    Number(settings.count),
    Number(settings.depth),
    Number(settings.pattern),
    Number(settings.flushInterval),
  ]
  const plan: BenchOptions = { count, depth, size, step, offset, write, pattern, drain }
  // What the modes mean for flushes.
  if (settings.cache !== 'unsafe') plan.flushInterval = flushInterval ?? 0
  if (write && /^(writethrough|directsync)$/.test(settings.cache)) plan.durable = true
  const line = new ProgressLine(program, false, 2)
  let begun = false
  const onProgress = (progress: Progress): void => {
    line.update(progress)
    if (!begun) announce()
    begun = true
  }
  try {
    return await library().bench(name.source, { ...gate, ...plan, format, forceShare, signal, onProgress })
  } catch (error) {
    const { Qcow2Error } = library()
    if (!begun) throw openRefusal(error, name)
    if (signal.aborted || !(error instanceof Qcow2Error)) throw error
    if (error.code === 'ERR_QCOW2_OUT_OF_RANGE') throw new Refusal('Failed request: Input/output error')
    throw new Refusal(`Failed request: ${systemText(error)}`, { hint: error.message })
  } finally {
    line.end()
  }
}

function announcement({ count, depth, size, step, offset, write, flushInterval }: Settings): string {
  const kind = write ? 'write' : 'read'
  const first = `Sending ${count} ${kind} requests, ${size} bytes each, ${depth} in parallel (starting at offset ${offset}, step size ${step || size})\n`
  return flushInterval > 0n ? `${first}Sending flush every ${flushInterval} requests\n` : first
}

function jsonText({ given }: ImageName, format: Format, settings: Settings, result: BenchResult): string {
  const { write, depth, size, step, offset, pattern, flushInterval } = settings
  const { requests, bytes, seconds, requestsPerSecond, bytesPerSecond, flushes, latency } = result
  return `${formatJson({
    filename: given,
    format,
    operation: write ? 'write' : 'read',
    requests,
    'buffer-size': size,
    depth,
    offset,
    'step-size': step || size,
    pattern: write ? pattern : undefined,
    'flush-interval': write ? flushInterval : undefined,
    flushes: write ? flushes : undefined,
    bytes,
    seconds,
    'requests-per-second': requestsPerSecond,
    'bytes-per-second': bytesPerSecond,
    'latency-microseconds': { ...latency },
  })}\n`
}
