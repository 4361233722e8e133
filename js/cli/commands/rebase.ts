/** `rebase`: an overlay over another backing file. */
import { type CommandHelp, ROWS } from '../help.js'
import { formatJson } from '../json.js'
import { type Format, library, type Qcow2Error, type RebaseResult } from '../library.js'
import { formatOf, type GatePolicy, gateOptions, gatePolicy, type ImageName, imageName, openRefusal, refuseReadOnly } from '../names.js'
import { isTargetFormat } from '../options.js'
import type { Program } from '../program.js'
import { ProgressLine } from '../progress.js'
import { misuse, Refusal } from '../refusal.js'
import { beside } from '../targets.js'
import { jobText, systemText } from '../texts.js'
import { commandGrammar, isCacheMode, oneFile, outputForm, readWords, refuseBoth, takeObject } from '../words.js'
import { warnOfGuess } from '../writable.js'

const GRAMMAR = commandGrammar(
  'cpquU',
  'bfFtT',
  'backing:=b backing-cache:=T backing-format:=F backing-unsafe=u cache:=t compress=c force-share=U format:=f image-opts object: !output: progress=p quiet=q',
)

const HELP: CommandHelp = {
  summary: 'Give an overlay another backing file. It reads as before: what the new one lacks is copied into it.',
  usage: "[-f FMT] -b BACKING|'' [-F FMT] [-u] [-c] [-p] [-q] [--output human|json] FILE",
  options: [
    ROWS.format,
    ['-b, --backing FILE', "the new backing file, by a name relative to the image's folder; '' for none"],
    ['-F, --backing-format FMT', 'its format'],
    ['-u, --backing-unsafe', 'change the name only; neither backing file is opened'],
    ['-c, --compress', 'compress what is copied'],
    ['-t, --cache MODE', 'caches: writeback, writethrough, none, directsync or unsafe'],
    ['-T, --backing-cache MODE', 'accepted; -t is for the backing files too'],
    ['-U, --force-share', 'accepted; nobody else may use the image all the same'],
    ROWS.progress,
    ROWS.quiet,
    ROWS.output,
    ROWS.gate,
  ],
  examples: ['rebase -p -b new-base.qcow2 -F qcow2 overlay.qcow2', "rebase -b '' overlay.qcow2"],
}

/** What is asked for. */
interface Wishes {
  /** Empty: none. Absent: not said, which only `-u` may leave out. */
  backing: string | undefined
  backingFormat: string | undefined
  unsafe: boolean
  compress: boolean
}

/** Runs the command. */
export async function rebase(program: Program, words: readonly string[]): Promise<number> {
  let format: string | undefined
  let form = 'human' as 'human' | 'json'
  const caches = { t: 'writeback', T: 'writeback' }
  let progress = false
  let quiet = false
  let imageOpts = false
  let policy: GatePolicy = 'plain'
  const wishes: Wishes = { backing: undefined, backingFormat: undefined, unsafe: false, compress: false }
  const operands = readWords(program, words, GRAMMAR, HELP, (id, value) => {
    if (id === 'f') format = value
    else if (id === 'b') wishes.backing = value
    else if (id === 'F') wishes.backingFormat = value
    else if (id === 'u') wishes.unsafe = true
    else if (id === 'c') wishes.compress = true
    else if (id === 't' || id === 'T') caches[id] = value
    else if (id === 'p') progress = true
    else if (id === 'q') quiet = true
    else if (id === 'output') form = outputForm(value)
    else if (id === 'object') takeObject(value)
    else if (id === 'image-opts') imageOpts = true
    else if (id === 'backing-files') policy = gatePolicy(value)
  })
  const file = oneFile(operands)
  refuseBoth(imageOpts, format)
  if (wishes.backing === undefined && !wishes.unsafe) throw misuse('Must specify backing file (-b) or use unsafe mode (-u)')
  if (!isCacheMode(caches.t)) throw new Refusal(`Invalid cache option: ${caches.t}`)
  if (!isCacheMode(caches.T)) throw new Refusal(`Invalid source cache option: ${caches.T}`)
  const name = imageName(file, imageOpts)
  refuseReadOnly(name)
  const kind = await formatOf(name, format, program.signal)
  if (format === undefined && kind === 'raw') warnOfGuess(name)
  const line = new ProgressLine(program, progress && !quiet, 1)
  try {
    line.start()
    const result = await run(program, name, kind, wishes, gateOptions(policy, caches.t), line)
    line.finish(true)
    line.end()
    if (form === 'json') program.out.print(jsonText(name, result))
    return 0
  } catch (error) {
    line.end()
    throw error
  }
}

async function run(
  program: Program,
  name: ImageName,
  format: Format,
  { backing, backingFormat, unsafe, compress }: Wishes,
  opened: ReturnType<typeof gateOptions>,
  line: ProgressLine,
): Promise<RebaseResult> {
  const { signal } = program
  const opening = { ...opened, format, signal }
  try {
    if (format !== 'qcow2' || (backingFormat !== undefined && !isTargetFormat(backingFormat)) || (backing && backingFormat === undefined)) {
      // What is wrong with the image itself is told first, as is what is wrong with the new backing file.
      if (!unsafe) await (await library().open(name.source, opening)).close()
      if (compress && format !== 'qcow2') throw new Refusal('Compression not supported for this file format')
      if (backingFormat !== undefined && !isTargetFormat(backingFormat)) throw new Refusal(`Invalid format name: '${backingFormat}'`)
      if (!unsafe && backing) await openBacking(beside(name.path, backing), backingFormat, opening)
      throw new Refusal(
        `Could not change the backing file to '${backing ?? ''}': ${format !== 'qcow2' ? 'Operation not supported' : 'backing format must be specified'}`,
      )
    }
    const wishes = { backing: backing || null, ...(backing ? { backingFormat: backingFormat as Format } : {}), unsafe, compress }
    return await library().rebase(name.source, { ...opening, ...wishes, onProgress: line.update })
  } catch (error) {
    if (signal.aborted || error instanceof Refusal) throw error
    throw wordFailure(error, name, backing ?? '')
  }
}

/** Opens the new backing file as the library would, if its format were said. */
async function openBacking(
  path: string,
  format: string | undefined,
  opening: ReturnType<typeof gateOptions> & { signal: AbortSignal },
): Promise<void> {
  try {
    const kind = (format as Format | undefined) ?? (await library().probe(path, { signal: opening.signal }))
    await (await library().open(path, { ...opening, format: kind })).close()
  } catch (error) {
    if (!(error instanceof library().Qcow2Error)) throw error
    throw Object.assign(error, { details: { ...error.details, chain: 'new' } })
  }
}

function wordFailure(error: unknown, name: ImageName, backing: string): unknown {
  if (!(error instanceof library().Qcow2Error)) return openRefusal(error, name)
  if (error.details.chain === 'new') return newFault(error, name, backing)
  if (/_(HEADER_FULL|BACKING_NAME_TOO_LONG|RAW)$/.test(error.code)) return unchanged(error, backing)
  if (error.code === 'ERR_QCOW2_BACKING_LOOP') return new Refusal(`Could not change the backing file to '${backing}': ${error.message}`)
  const hint = error.message
  if (error.details.guest !== undefined || /^p?read/.test(error.syscall ?? '')) {
    return new Refusal('error while reading from old backing file', { hint })
  }
  if (isOpening(error)) return openRefusal(error, name)
  return new Refusal(`Error while writing to COW image: ${jobText(error)}`, { hint })
}

function isOpening(error: Qcow2Error): boolean {
  return (
    error.details.role !== undefined ||
    error.code === 'ERR_QCOW2_LOCKED' ||
    /^(open|stat|lstat|realpath)/.test(error.syscall ?? '') ||
    !/_IO$/.test(error.code)
  )
}

function unchanged(error: Qcow2Error, backing: string): Refusal {
  const texts: Record<string, string> = {
    ERR_QCOW2_HEADER_FULL: 'No space left in the file header',
    ERR_QCOW2_BACKING_NAME_TOO_LONG: 'Invalid argument',
    ERR_QCOW2_RAW: 'Operation not supported',
  }
  return new Refusal(`Could not change the backing file to '${backing}': ${texts[error.code] ?? systemText(error)}`)
}

function newFault(error: Qcow2Error, { path }: ImageName, backing: string): unknown {
  const refusal = openRefusal(error, { given: backing, path: beside(path, backing), source: beside(path, backing) })
  if (!(refusal instanceof Refusal)) return refusal
  const text = refusal.message.replace(`Could not open '${backing}': `, '')
  return new Refusal(`Could not open new backing file '${backing}': ${text}`, refusal.hint === undefined ? {} : { hint: refusal.hint })
}

function jsonText({ given }: ImageName, { backing, dataBytes, zeroBytes, compressedClusters }: RebaseResult): string {
  return `${formatJson({
    filename: given,
    ...(backing === null ? {} : { 'backing-filename': backing }),
    'data-bytes': dataBytes,
    'zero-bytes': zeroBytes,
    'compressed-clusters': compressedClusters,
  })}\n`
}
