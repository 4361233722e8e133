/** `resize`: another size for the disk of an image. */
import { type CommandHelp, ROWS } from '../help.js'
import { formatJson } from '../json.js'
import { type Disk, library } from '../library.js'
import { type GatePolicy, gatePolicy, imageName } from '../names.js'
import { INT64_MAX, readSize } from '../numbers.js'
import { complain, type Program, warn } from '../program.js'
import { misuse, Refusal } from '../refusal.js'
import { commandGrammar, Done, outputForm, readWords, refuseBoth, takeObject } from '../words.js'
import { changeFault, openWritable } from '../writable.js'

const GRAMMAR = commandGrammar('q', 'f', 'format:=f image-opts preallocation: shrink quiet=q object: !output:')

const HELP: CommandHelp = {
  summary: 'Give the disk of an image another size. What is new reads as zeros.',
  usage: '[-f FMT] [--shrink] [--preallocation MODE] [-q] [--output human|json] FILE [+|-]SIZE',
  options: [
    ROWS.format,
    ['--shrink', 'let the disk become smaller: what lies beyond its new end is lost'],
    ['--preallocation MODE', 'what is set aside for the new part: off (default), metadata, falloc or full'],
    ROWS.quiet,
    ROWS.output,
    ROWS.gate,
    ['[+|-]SIZE', 'the new size in bytes or with a suffix k, M, G, T, P or E (powers of 1024); with a sign, by how much it changes'],
  ],
  examples: ['resize disk.qcow2 +10G', 'resize --shrink disk.qcow2 20G'],
}

const MODES = new Set(['off', 'metadata', 'falloc', 'full'])
const SHRINKING =
  "Shrinking an image will delete all data beyond the shrunken image's end. Before performing such an operation, make sure there is no important data there."

type Preallocation = 'off' | 'metadata' | 'falloc' | 'full'

interface Wish {
  sign: '+' | '-' | ''
  size: bigint
}

/** Runs the command. */
export async function resize(program: Program, words: readonly string[]): Promise<number> {
  let format: string | undefined
  let form = 'human' as 'human' | 'json'
  let preallocation = 'off'
  let shrink = false
  let quiet = false
  let imageOpts = false
  let policy: GatePolicy = 'plain'
  // A size that begins with a minus is no option: it is taken away before options are looked for.
  const last = words.at(-1) ?? ''
  const relative = /^-\d/.test(last)
  const operands = readWords(program, relative ? words.slice(0, -1) : words, GRAMMAR, HELP, (id, value) => {
    if (id === 'f') format = value
    else if (id === 'preallocation') {
      if (!MODES.has(value)) throw new Refusal(`Invalid preallocation mode '${value}'`)
      preallocation = value
    } else if (id === 'shrink') shrink = true
    else if (id === 'q') quiet = true
    else if (id === 'output') form = outputForm(value)
    else if (id === 'object') takeObject(value)
    else if (id === 'image-opts') imageOpts = true
    else if (id === 'backing-files') policy = gatePolicy(value)
  })
  if (relative) operands.push(last)
  const [file, text, surplus] = operands
  if (file === undefined || text === undefined) throw misuse('Expecting image file name and size')
  if (surplus !== undefined) throw misuse('Extra argument(s) in command line')
  refuseBoth(imageOpts, format)
  const wish = readWish(text)
  const disk = await openWritable(program, imageName(file, imageOpts), format, policy)
  try {
    await change(program, disk, wish, { shrink, preallocation: preallocation as Preallocation })
    await disk.close()
  } catch (error) {
    await disk.close().catch(() => {})
    throw error instanceof Refusal || error instanceof Done ? error : inWords(error)
  }
  if (form === 'json') program.out.print(`${formatJson({ filename: file, 'virtual-size': disk.virtualSize })}\n`)
  else if (!quiet) program.out.print('Image resized.\n')
  return 0
}

function readWish(text: string): Wish {
  const [, sign = '', digits = ''] = /^([+-]?)(.*)$/s.exec(text) ?? []
  const size = digits === '' || /^[+-]/.test(digits) ? 'invalid' : readSize(digits)
  if (size === 'range') throw new Refusal(`Value '${digits}' is out of range for parameter 'size'`)
  if (size === 'invalid') {
    throw new Refusal("Parameter 'size' expects a non-negative number below 2^64", {
      hint: 'Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively.',
    })
  }
  return { sign: sign as Wish['sign'], size }
}

async function change(
  program: Program,
  disk: Disk,
  { sign, size }: Wish,
  { shrink, preallocation }: { shrink: boolean; preallocation: Preallocation },
): Promise<void> {
  const old = BigInt(disk.virtualSize)
  const asked = sign === '+' ? old + size : sign === '-' ? old - size : size
  if (asked <= 0n || asked > INT64_MAX) throw new Refusal('New image size must be positive')
  if (asked <= old && preallocation !== 'off') throw new Refusal('Preallocation can only be used for growing images')
  if (asked < old && !shrink) {
    complain(program, 'Use the --shrink option to perform a shrink operation.')
    warn(program, SHRINKING)
    throw new Done(1)
  }
  if (disk.format === 'raw' && preallocation === 'metadata') throw new Refusal('Unsupported preallocation mode: metadata')
  if (disk.format === 'qcow2' && asked % 512n !== 0n) throw new Refusal('The new size must be a multiple of 512')
  await disk.resize(asked, { shrink, preallocation })
}

function inWords(error: unknown): unknown {
  const { Qcow2Error } = library()
  if (!(error instanceof Qcow2Error)) return error
  if (error.code === 'ERR_QCOW2_RESIZE_SNAPSHOTS') return new Refusal("Can't resize a v2 image which has snapshots")
  if (error.code === 'ERR_QCOW2_LIMIT') return new Refusal('Failed to grow the L1 table: File too large', { hint: error.message })
  return new Refusal(changeFault(error))
}
