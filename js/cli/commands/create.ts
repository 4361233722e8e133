/** `create`: a new image. */
import { checkCreateValues, createOptionsOf, warnOfEncryption } from '../create-checks.js'
import { type CommandHelp, ROWS } from '../help.js'
import { type Format, library } from '../library.js'
import { chainSize, openRefusal, plainName } from '../names.js'
import { sizeArgument } from '../numbers.js'
import { asksForHelp, type CreateValues, createHelp, describeValues, isOn, isTargetFormat, joinLists, readCreateValues } from '../options.js'
import type { Program } from '../program.js'
import { misuse, Refusal } from '../refusal.js'
import { beside, isOneFile, isSameFile, refuseNameless, targetFault } from '../targets.js'
import { plainGrammar, readWords, takeObject } from '../words.js'

const GRAMMAR = plainGrammar(
  'qu',
  'Fbfo',
  'quiet=q object: format:=f backing:=b backing-format:=F backing-unsafe=u options:=o !passphrase-file: !passphrase-fd:',
)

const HELP: CommandHelp = {
  summary: 'Make a new image. An existing file is replaced.',
  usage: '[-f FMT] [-o OPTIONS] [-b FILE -F FMT [-u]] [-q] FILE [SIZE]',
  options: [
    ['-f, --format FMT', 'format of the new image: qcow2, raw or luks (default raw)'],
    ['-o, --options KEY=VALUE,…', 'options of the format; -o help lists them'],
    ['-b, --backing FILE', 'the image below the new one'],
    ['-F, --backing-format FMT', 'its format'],
    ['-u, --backing-unsafe', 'do not open it; SIZE is then needed'],
    ROWS.quiet,
    ['SIZE', 'bytes, or with a suffix k, M, G, T, P or E (powers of 1024)'],
  ],
  examples: ['create -f qcow2 disk.qcow2 20G', 'create -f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2'],
}

interface Asked {
  file: string
  format: Format
  values: CreateValues
  size: bigint | undefined
  unsafe: boolean
  quiet: boolean
}

/** Runs the command. */
export async function create(program: Program, words: readonly string[]): Promise<number> {
  let format = 'raw'
  let list: string | undefined
  let backing: string | undefined
  let backingFormat: string | undefined
  let unsafe = false
  let quiet = false
  const operands = readWords(program, words, GRAMMAR, HELP, (id, value) => {
    if (id === 'f') format = value
    else if (id === 'o') list = joinLists(list, value)
    else if (id === 'b') backing = value
    else if (id === 'F') backingFormat = value
    else if (id === 'u') unsafe = true
    else if (id === 'q') quiet = true
    else if (id === 'object') takeObject(value)
  })
  const [file, sizeText, surplus] = operands
  if (asksForHelp(list)) return printHelp(program, format, file !== undefined)
  if (file === undefined) throw misuse('Expecting image file name')
  const size = sizeText === undefined ? undefined : sizeArgument('image size', sizeText)
  if (surplus !== undefined) throw misuse(`Unexpected argument: ${surplus}`)
  try {
    if (!isTargetFormat(format)) throw new Refusal(`Unknown file format '${format}'`)
    const values = readCreateValues(format, list)
    if (backing !== undefined) values.set('backing_file', backing)
    if (backingFormat !== undefined) values.set('backing_fmt', backingFormat)
    await make(program, { file, format, values, size, unsafe, quiet })
  } catch (error) {
    if (!(error instanceof Refusal)) throw error
    throw new Refusal(`${file}: ${error.message}`, error.hint === undefined ? {} : { hint: error.hint })
  }
  return 0
}

/** The answer to `-o help`. */
export function printHelp(program: Program, format: string, file: boolean): number {
  if (!isTargetFormat(format)) throw new Refusal(`Unknown file format '${format}'`)
  program.out.print(createHelp(format, file))
  return 0
}

async function make(program: Program, asked: Asked): Promise<void> {
  const { file, format, values, quiet } = asked
  if (asked.size !== undefined) {
    if (values.has('size')) throw new Refusal('The image size must be specified only once')
    values.set('size', String(asked.size))
  }
  checkBackingNames(asked)
  const size = values.get('size') ?? (await backingSize(program, asked))
  if (values.has('backing_file') && values.has('size')) await backingSize(program, asked)
  const detached = isOn(values, 'detached-header')
  if (size === undefined && !detached) throw new Refusal('Image creation needs a size parameter')
  values.set('size', String(size ?? 0))
  if (!quiet) {
    program.out.print(`Formatting '${file}', fmt=${format}${describeValues(format, values)}\n`)
    program.out.flush()
  }
  await checkCreateValues(format, values, program.signal)
  warnOfEncryption(program, format, values)
  const { path } = plainName(file)
  refuseNameless(path)
  const options = { ...createOptionsOf(values, format), format, size: BigInt(size ?? 0), overwrite: true, signal: program.signal }
  // What can be known of the backing file is known by now.
  const unchecked = values.has('backing_file') ? { backingUnchecked: true } : {}
  try {
    await library().create(path, { ...options, ...unchecked })
  } catch (error) {
    throw targetFault(error, file, format)
  }
}

function checkBackingNames({ file, format, values }: Asked): void {
  const backing = values.get('backing_file')
  if (format !== 'qcow2') {
    if (values.has('backing_file')) throw new Refusal(`Backing file not supported for file format '${format}'`)
    if (values.has('backing_fmt')) throw new Refusal(`Backing file format not supported for file format '${format}'`)
  }
  if (backing === '') throw new Refusal('Expected backing file name, got empty string')
  if (backing !== undefined && isSameFile(backing, file)) {
    throw new Refusal('Error: Trying to create an image with the same filename as the backing file')
  }
}

/** Opens the backing file with everything below it, unless `-u`, and returns its size. */
async function backingSize(program: Program, { file, values, unsafe }: Asked): Promise<bigint | undefined> {
  const backing = values.get('backing_file')
  if (backing === undefined) return undefined
  const said = values.get('backing_fmt')
  if (unsafe) {
    if (said === undefined) throw new Refusal('Backing file specified without backing format')
    return undefined
  }
  const name = plainName(beside(plainName(file).path, backing))
  const layers: string[] = []
  let size: bigint
  try {
    if (said !== undefined && !isTargetFormat(said)) throw new Refusal(`Unknown driver '${said}'`, { hint: 'Could not open backing image.' })
    const format = (said as Format | undefined) ?? (await library().probe(name.path))
    size = await chainSize(name, format, program.signal, layers)
    if (said === undefined) throw new Refusal('Backing file specified without backing format', { hint: `Detected format of ${format}.` })
  } catch (error) {
    const refusal = openRefusal(error, name)
    if (refusal === error) throw error
    const text = (refusal as Refusal).message.replace(`Could not open '${name.given}': `, '')
    throw new Refusal(text, { hint: 'Could not open backing image.' })
  }
  await refuseLayers(file, values, layers)
  return size
}

/** The new files replace what has their names: that must not be something the new image is to be read with. */
async function refuseLayers(file: string, values: Asked['values'], layers: readonly string[]): Promise<void> {
  const { path } = plainName(file)
  const data = values.get('data_file')
  for (const made of data === undefined ? [path] : [path, beside(path, data)]) {
    for (const layer of layers) {
      if (await isOneFile(made, layer)) throw new Refusal('Failed to get "write" lock', { hint: `Is another process using the image [${made}]?` })
    }
  }
}
