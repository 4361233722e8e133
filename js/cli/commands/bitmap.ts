/** `bitmap`: the persistent bitmaps of an image are added, changed, merged and removed. */
import { type CommandHelp, ROWS } from '../help.js'
import { type Disk, library } from '../library.js'
import { formatOf, type GatePolicy, gateOptions, gatePolicy, imageName, openRefusal } from '../names.js'
import { sizeArgument } from '../numbers.js'
import type { Program } from '../program.js'
import { Refusal } from '../refusal.js'
import { commandGrammar, readWords, refuseBoth, takeObject } from '../words.js'
import { changeFault, openWritable } from '../writable.js'

const GRAMMAR = commandGrammar(
  '',
  'bfFg',
  'add remove clear enable disable merge: granularity:=g source-file:=b source-format:=F format:=f image-opts object:',
)

const HELP: CommandHelp = {
  summary: 'Change the persistent bitmaps of an image. Several operations are done in the order they are given.',
  usage: '{--add [-g SIZE] | --remove | --clear | --enable | --disable | --merge SOURCE}… [-b FILE [-F FMT]] [-f FMT] FILE BITMAP',
  options: [
    ['--add', 'make BITMAP, which follows writes from now on'],
    ['-g, --granularity SIZE', 'with --add: bytes that one bit stands for (default 65536)'],
    ['--remove', 'remove BITMAP'],
    ['--clear', 'make nothing dirty in it'],
    ['--enable, --disable', 'let it follow writes, or no longer'],
    ['--merge SOURCE', 'add what is dirty in the bitmap SOURCE'],
    ['-b, --source-file FILE', 'with --merge: the image that has SOURCE (default: FILE)'],
    ['-F, --source-format FMT', 'its format'],
    ROWS.format,
    ROWS.gate,
  ],
  examples: ['bitmap --add -g 64k disk.qcow2 backup', 'bitmap --merge backup -b overlay.qcow2 disk.qcow2 backup'],
}

const OPERATIONS = new Set(['add', 'remove', 'clear', 'enable', 'disable', 'merge'])
const NEED = 'Need at least one of --add, --remove, --clear, --enable, --disable, or --merge'

/** One operation; the bitmap that is merged is its source. */
interface Operation {
  verb: string
  source: string
}

interface Asked {
  operations: Operation[]
  granularity: bigint
  format: string | undefined
  imageOpts: boolean
  source: { file: string; format: string | undefined } | undefined
  policy: GatePolicy
}

/** Runs the command. */
export async function bitmap(program: Program, words: readonly string[]): Promise<number> {
  const operations: Operation[] = []
  let granularity = 0n
  let format: string | undefined
  let sourceFile: string | undefined
  let sourceFormat: string | undefined
  let imageOpts = false
  let policy: GatePolicy = 'plain'
  const operands = readWords(program, words, GRAMMAR, HELP, (id, value) => {
    if (OPERATIONS.has(id)) operations.push({ verb: id, source: value })
    else if (id === 'g') granularity = sizeArgument('granularity', value)
    else if (id === 'b') sourceFile = value
    else if (id === 'F') sourceFormat = value
    else if (id === 'f') format = value
    else if (id === 'image-opts') imageOpts = true
    else if (id === 'object') takeObject(value)
    else if (id === 'backing-files') policy = gatePolicy(value)
  })
  const [file, name, surplus] = operands
  if (operations.length === 0) throw new Refusal(NEED)
  if (file === undefined || name === undefined || surplus !== undefined) throw new Refusal('Expecting filename and bitmap name')
  const has = (verb: string) => operations.some((operation) => operation.verb === verb)
  if (granularity !== 0n && !has('add')) throw new Refusal('granularity only supported with --add')
  if (sourceFormat !== undefined && sourceFile === undefined) throw new Refusal('-F only supported with -b')
  if (sourceFile !== undefined && !has('merge')) throw new Refusal('Merge bitmap source file only supported with --merge')
  refuseBoth(imageOpts, format)
  const source = sourceFile === undefined ? undefined : { file: sourceFile, format: sourceFormat }
  return await run(program, file, name, { operations, granularity, format, imageOpts, source, policy })
}

async function run(program: Program, file: string, bitmap: string, asked: Asked): Promise<number> {
  const disk = await openWritable(program, imageName(file, asked.imageOpts), asked.format, asked.policy)
  let other: Disk | undefined
  let failure: unknown
  try {
    other = asked.source && (await openSource(program, asked.source.file, asked.source.format, asked.policy))
    for (const { verb, source } of asked.operations) {
      try {
        await operate(disk, other ?? disk, verb, bitmap, source, asked.granularity)
      } catch (error) {
        throw inWords(error, verb, bitmap)
      }
    }
  } catch (error) {
    failure = error
  }
  await other?.close()
  try {
    // What was done before a failure stays, as with qemu-img.
    await disk.close()
  } catch (error) {
    failure ??= new Refusal(`Error while closing the image: ${changeFault(error)}`)
  }
  if (failure !== undefined) throw failure
  return 0
}

async function openSource(program: Program, file: string, format: string | undefined, policy: GatePolicy): Promise<Disk> {
  const name = imageName(file)
  const { signal } = program
  const kind = await formatOf(name, format, signal)
  try {
    return await library().open(name.source, { ...gateOptions(policy), format: kind, signal })
  } catch (error) {
    throw openRefusal(error, name)
  }
}

async function operate(disk: Disk, from: Disk, verb: string, bitmap: string, source: string, granularity: bigint): Promise<void> {
  if (verb === 'add') return await add(disk, bitmap, granularity)
  // The target is looked for first, whatever is to become of it.
  find(disk, bitmap, verb === 'remove')
  if (verb === 'remove') return await disk.bitmaps.remove(bitmap)
  if (verb === 'clear') return await disk.bitmaps.clear(bitmap)
  if (verb === 'enable') return await disk.bitmaps.enable(bitmap)
  if (verb === 'disable') return await disk.bitmaps.disable(bitmap)
  find(from, source, false)
  const [size, sourceSize] = [disk.virtualSize, from.virtualSize]
  if (size !== sourceSize) {
    throw new Refusal(`Bitmaps are of different sizes (destination size is ${size}, source size is ${sourceSize}) and can't be merged`)
  }
  await disk.bitmaps.merge(bitmap, source, { from })
}

function find(disk: Disk, name: string, evenInconsistent: boolean): void {
  const found = disk.bitmaps.list().find((bitmap) => bitmap.name === name)
  if (found === undefined) throw new Refusal(`Dirty bitmap '${name}' not found`)
  if (!found.inconsistent || evenInconsistent) return
  throw new Refusal(`Bitmap '${name}' is inconsistent and cannot be used`, {
    hint: 'Try block-dirty-bitmap-remove to delete this bitmap from disk',
  })
}

async function add(disk: Disk, name: string, granularity: bigint): Promise<void> {
  if (granularity !== 0n && (granularity < 512n || granularity > 1n << 31n || (granularity & (granularity - 1n)) !== 0n)) {
    throw new Refusal('Granularity must be power of 2 and at least 512')
  }
  if (disk.bitmaps.list().some((bitmap) => bitmap.name === name)) throw new Refusal(`Bitmap already exists: ${name}`)
  if (name === '') throw new Refusal('Bitmap name cannot be empty')
  const lasting = (text: string) => new Refusal(`Can't make bitmap '${name}' persistent in '${disk.chain[0]?.path ?? ''}': ${text}`)
  if (disk.format !== 'qcow2') throw new Refusal(`Can't store persistent bitmaps to ${disk.chain[0]?.path ?? ''}: Operation not supported`)
  if (Buffer.byteLength(name) > 1023) throw lasting('Name length exceeds maximum (1023 characters)')
  try {
    await disk.bitmaps.add(name, granularity === 0n ? {} : { granularity })
  } catch (error) {
    const old = error instanceof library().Qcow2Error && error.code === 'ERR_QCOW2_BITMAP_UNSUPPORTED' && BigInt(disk.virtualSize) > 0n
    throw old ? lasting('Cannot store dirty bitmaps in qcow2 v2 files') : error
  }
}

function inWords(error: unknown, verb: string, bitmap: string): Refusal {
  const hint = error instanceof Refusal ? error.hint : undefined
  const text = error instanceof Refusal ? error.message : changeFault(error)
  return new Refusal(`Operation ${verb} on bitmap ${bitmap} failed: ${text}`, hint === undefined ? {} : { hint })
}
