/** `dd`: blocks of an image into a new image. */
import { type CommandHelp, ROWS } from '../help.js'
import { type Format, library } from '../library.js'
import { blame, formatOf, type GatePolicy, gateOptions, gatePolicy, imageName, openRefusal, plainName } from '../names.js'
import { INT64_MAX, integerArgument, sizeArgument } from '../numbers.js'
import { isTargetFormat } from '../options.js'
import { complain, type Program } from '../program.js'
import { Refusal } from '../refusal.js'
import { isCreation, refuseNameless, targetFault } from '../targets.js'
import { isSystemError, systemText } from '../texts.js'
import { commandGrammar, readWords, refuseBoth, takeObject } from '../words.js'

const GRAMMAR = commandGrammar('U', 'fO', 'object: format:=f output-format:=O image-opts force-share=U')

const HELP: CommandHelp = {
  summary: 'Copy blocks of an image to a new image. An existing file is replaced when the new one is whole.',
  usage: '[-f FMT] [-O FMT] [-U] [bs=SIZE] [count=N] [skip=N] if=SOURCE of=TARGET',
  options: [
    ROWS.format,
    ['-O, --output-format FMT', 'format of the target: qcow2, raw or luks (default raw)'],
    ROWS.share,
    ROWS.gate,
    ['bs=SIZE', 'bytes a block (default 512)'],
    ['count=N', 'blocks of the source to read, those that are skipped included (default all)'],
    ['skip=N', 'blocks of the source to leave out first'],
  ],
  examples: ['dd bs=512 count=1 if=disk.qcow2 of=boot-sector.raw', 'dd -O qcow2 bs=1M skip=4 if=disk.raw of=rest.qcow2'],
}

const INT_MAX = 2n ** 31n - 1n

/** Runs the command. */
export async function dd(program: Program, words: readonly string[]): Promise<number> {
  let format: string | undefined
  let target = 'raw'
  let imageOpts = false
  let forceShare = false
  let policy: GatePolicy = 'plain'
  const operands = readWords(program, words, GRAMMAR, HELP, (id, value) => {
    if (id === 'f') format = value
    else if (id === 'O') target = value
    else if (id === 'U') forceShare = true
    else if (id === 'object') takeObject(value)
    else if (id === 'image-opts') imageOpts = true
    else if (id === 'backing-files') policy = gatePolicy(value)
  })
  const { from, to, blockSize, count, skip } = readOperands(operands)
  if (from === undefined || to === undefined) throw new Refusal('Must specify both input and output files')
  refuseBoth(imageOpts, format)
  const name = imageName(from, imageOpts)
  const { signal } = program
  const source = { ...gateOptions(policy), forceShare }
  const sourceFormat = await formatOf(name, format, signal)
  const size = await sizeOf(program, { name, format: sourceFormat }, source)
  if (!isTargetFormat(target)) throw new Refusal('Unknown file format')
  const end = count !== undefined && count * blockSize < size ? count * blockSize : size
  // As dd(1): nothing is left to copy, and that is no failure.
  if (skip * blockSize > end) complain(program, `${from}: cannot skip to specified offset`)
  try {
    refuseNameless(plainName(to).path)
    const options = { blockSize, skip, format: target, sourceFormat, source, overwrite: true, signal }
    await library().dd(name.source, plainName(to).path, { ...options, ...(count === undefined ? {} : { count: countAfter(count, skip) }) })
  } catch (error) {
    if (signal.aborted) throw error
    throw wordFailure(await blame(error, [{ name, format: sourceFormat }], { ...source, signal }), to, target)
  }
  return 0
}

/** qemu-img counts from the start of the source, also what is skipped; the library behind it, as dd(1) does. */
function countAfter(count: bigint, skip: bigint): bigint {
  return count > skip ? count - skip : 0n
}

interface Operands {
  from: string | undefined
  to: string | undefined
  blockSize: bigint
  count: bigint | undefined
  skip: bigint
}

function readOperands(words: readonly string[]): Operands {
  const operands: Operands = { from: undefined, to: undefined, blockSize: 512n, count: undefined, skip: 0n }
  for (const word of words) {
    const equals = word.indexOf('=')
    const key = equals === -1 ? word : word.slice(0, equals)
    const value = word.slice(equals + 1)
    if (equals === -1) throw new Refusal(`unrecognized operand ${key}`)
    if (key === 'if') operands.from = value
    else if (key === 'of') operands.to = value
    else if (key === 'bs') operands.blockSize = sizeArgument('bs', value, 1n, INT_MAX)
    else if (key === 'count') operands.count = integerArgument('count', value, 0n, INT64_MAX)
    else if (key === 'skip') operands.skip = integerArgument('skip', value, 0n, INT64_MAX)
    else throw new Refusal(`unrecognized operand ${key}`)
  }
  return operands
}

async function sizeOf(
  program: Program,
  { name, format }: { name: ReturnType<typeof imageName>; format: Format },
  source: ReturnType<typeof gateOptions>,
): Promise<bigint> {
  try {
    const disk = await library().open(name.source, { ...source, format, signal: program.signal })
    const size = BigInt(disk.virtualSize)
    await disk.close()
    return size
  } catch (error) {
    throw openRefusal(error, name)
  }
}

function wordFailure(error: unknown, to: string, format: Format): unknown {
  const { Qcow2Error } = library()
  if (error instanceof Refusal && error.message.startsWith('Could not create'))
    return new Refusal(`${to}: error while creating output image: ${error.message}`)
  if (!(error instanceof Qcow2Error)) return error
  if (/_(CORRUPT|TRUNCATED|DECOMPRESS)$/.test(error.code) || /^p?read/.test(error.syscall ?? '')) {
    return new Refusal(`error while reading from input image file: ${systemText(error)}`, { hint: error.message })
  }
  if (isSystemError(error) && !isCreation(error)) return new Refusal(`error while writing to output image file: ${systemText(error)}`)
  const fault = targetFault(error, to, format)
  if (!(fault instanceof Refusal)) return fault
  return new Refusal(`${to}: error while creating output image: ${fault.message}`, fault.hint === undefined ? {} : { hint: fault.hint })
}
