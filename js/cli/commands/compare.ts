/** `compare`: whether two images have the same contents. */
import { type CommandHelp, ROWS } from '../help.js'
import { formatJson } from '../json.js'
import { type CompareResult, library } from '../library.js'
import { blame, formatOf, type GatePolicy, gateOptions, gatePolicy, imageName, type OpenedName } from '../names.js'
import type { Program } from '../program.js'
import { ProgressLine } from '../progress.js'
import { misuse, Refusal } from '../refusal.js'
import { systemText } from '../texts.js'
import { commandGrammar, isCacheMode, outputForm, readWords, refuseBoth, takeObject } from '../words.js'

const GRAMMAR = commandGrammar(
  'pqsU',
  'fFT',
  'quiet=q object: cache:=T image-opts a-format:=f left-format:=f b-format:=F right-format:=F force-share=U strict=s progress=p !output:',
)

const HELP: CommandHelp = {
  summary: 'Tell whether two images have the same contents. Space that only one of them has must read as zeros.',
  usage: '[-f FMT] [-F FMT] [-s] [-p] [-q] [-U] [--output human|json] FILE1 FILE2',
  options: [
    ['-f, --a-format FMT', 'format of the first image'],
    ['-F, --b-format FMT', 'format of the second image'],
    ['-s, --strict', 'sizes and allocation must be equal too'],
    ROWS.progress,
    ROWS.quiet,
    ['-T, --cache MODE', 'caches: writeback, writethrough, none, directsync or unsafe'],
    ROWS.share,
    ROWS.output,
    ROWS.gate,
    ['', 'exit code: 0 same, 1 different, 2 cannot be opened, 4 cannot be read'],
  ],
  examples: ['compare disk.raw disk.qcow2', 'compare -s -F qcow2 copy.qcow2 original.img'],
}

/** Cannot be opened; cannot be read. */
const NOT_OPENED = 2
const NOT_READ = 4

/** Runs the command. */
export async function compare(program: Program, words: readonly string[]): Promise<number> {
  const formats: [string | undefined, string | undefined] = [undefined, undefined]
  let form = 'human' as 'human' | 'json'
  let cache = 'writeback'
  let strict = false
  let progress = false
  let quiet = false
  let imageOpts = false
  let forceShare = false
  let policy: GatePolicy = 'plain'
  const operands = readWords(program, words, GRAMMAR, HELP, (id, value) => {
    if (id === 'f') formats[0] = value
    else if (id === 'F') formats[1] = value
    else if (id === 'T') cache = value
    else if (id === 's') strict = true
    else if (id === 'p') progress = true
    else if (id === 'q') quiet = true
    else if (id === 'U') forceShare = true
    else if (id === 'output') form = outputForm(value)
    else if (id === 'object') takeObject(value)
    else if (id === 'image-opts') imageOpts = true
    else if (id === 'backing-files') policy = gatePolicy(value)
  })
  const [a, b] = operands
  if (a === undefined || b === undefined || operands.length > 2) throw misuse('Expecting two image file names')
  const line = new ProgressLine(program, progress && !quiet, 2)
  try {
    if (!isCacheMode(cache)) throw new Refusal(`Invalid source cache option: ${cache}`, { code: NOT_OPENED })
    refuseBoth(imageOpts, formats[0] ?? formats[1], NOT_OPENED)
    const result = await runCompare(program, [a, b], formats, { strict, forceShare, policy, cache, line, imageOpts })
    line.finish(result.identical)
    if (!quiet) program.out.print(form === 'json' ? jsonText(result) : outcome(result, strict))
    return result.identical ? 0 : 1
  } finally {
    line.end()
  }
}

interface Settings {
  strict: boolean
  forceShare: boolean
  cache: string
  policy: GatePolicy
  line: ProgressLine
  imageOpts: boolean
}

async function runCompare(
  program: Program,
  files: readonly [string, string],
  formats: readonly [string | undefined, string | undefined],
  { strict, forceShare, policy, cache, line, imageOpts }: Settings,
): Promise<CompareResult> {
  const source = { ...gateOptions(policy, cache), forceShare }
  const { signal } = program
  const names: OpenedName[] = []
  try {
    for (const [index, file] of files.entries()) {
      const name = imageName(file, imageOpts)
      names.push({ name, format: await formatOf(name, formats[index], signal) })
    }
    const [a, b] = names as [OpenedName, OpenedName]
    const options = { strict, formatA: a.format, formatB: b.format, source, signal, onProgress: line.update }
    return await library().compare(a.name.source, b.name.source, options)
  } catch (error) {
    throw withCode(await blame(error, names, { ...source, signal }), names)
  }
}

/** Opening and reading have exit codes of their own. */
function withCode(error: unknown, names: readonly OpenedName[]): unknown {
  if (error instanceof Refusal) return new Refusal(error.message, { ...(error.hint === undefined ? {} : { hint: error.hint }), code: NOT_OPENED })
  if (!(error instanceof library().Qcow2Error) || error.code === 'ERR_QCOW2_CANCELLED') return error
  const name = names.find(({ name }) => name.path === error.path)?.name.given ?? error.path ?? names[0]?.name.given
  const offset = error.details.guest ?? '0'
  return new Refusal(`Error while reading offset ${offset} of ${name}: ${systemText(error)}`, { code: NOT_READ, hint: error.message })
}

function outcome({ identical, offset, reason, sizesDiffer }: CompareResult, strict: boolean): string {
  if (strict && reason === 'size') return 'Strict mode: Image size mismatch!\n'
  if (strict && reason === 'allocation') return `Strict mode: Offset ${offset} block status mismatch!\n`
  const warning = sizesDiffer && (identical || reason === 'size') ? 'Warning: Image size mismatch!\n' : ''
  return warning + (identical ? 'Images are identical.\n' : `Content mismatch at offset ${offset}!\n`)
}

/** As data: qemu-img has no words for it. */
function jsonText({ identical, offset, reason, sizesDiffer }: CompareResult): string {
  return `${formatJson({ identical, offset, reason, 'sizes-differ': sizesDiffer })}\n`
}
