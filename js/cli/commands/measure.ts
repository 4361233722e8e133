/** `measure`: how large a new image will be. */
import { checkCreateValues, checkSecret, createOptionsOf } from '../create-checks.js'
import { type CommandHelp, ROWS } from '../help.js'
import { formatJson } from '../json.js'
import { type Format, library, type MeasureOptions, type MeasureResult } from '../library.js'
import { blame, formatOf, type GatePolicy, gateOptions, gatePolicy, imageName } from '../names.js'
import { sizeArgument } from '../numbers.js'
import { type CreateValues, isOn, isTargetFormat, joinLists, readCreateValues } from '../options.js'
import { type Program, report } from '../program.js'
import { Refusal } from '../refusal.js'
import { readSnapshotParameter, type SnapshotParameter, snapshotId, snapshotRefusal } from '../snapshots.js'
import { commandGrammar, outputForm, readWords, refuseBoth, takeObject } from '../words.js'

const GRAMMAR = commandGrammar('U', 'fOol', 'target-format:=O format:=f image-opts options:=o snapshot:=l object: output: size:=s force-share=U')

const HELP: CommandHelp = {
  summary: 'Calculate the file size that a new image will need.',
  usage: '[-O FMT] [-o OPTIONS] [-f FMT] [-l SNAPSHOT] [-U] [--output human|json] (--size SIZE | FILE)',
  options: [
    ['-O, --target-format FMT', 'format of the new image: qcow2, raw or luks (default raw)'],
    ['-o, --options KEY=VALUE,…', 'its options, as for create'],
    ['--size SIZE', 'measure an empty image of this size'],
    ROWS.format,
    ['-l, --snapshot SNAPSHOT', 'measure this internal snapshot (id or name) of FILE'],
    ROWS.share,
    ROWS.output,
    ROWS.gate,
  ],
  examples: ['measure -O qcow2 --size 20G', 'measure --output=json -O qcow2 -o cluster_size=2M disk.raw'],
}

/** Runs the command. */
export async function measure(program: Program, words: readonly string[]): Promise<number> {
  let format: string | undefined
  let target = 'raw'
  let list: string | undefined
  let form = 'human' as 'human' | 'json'
  let snapshot: SnapshotParameter | undefined
  let size: bigint | undefined
  let imageOpts = false
  let forceShare = false
  let policy: GatePolicy = 'plain'
  const operands = readWords(program, words, GRAMMAR, HELP, (id, value) => {
    if (id === 'f') format = value
    else if (id === 'O') target = value
    else if (id === 'o') list = joinLists(list, value)
    else if (id === 'l') snapshot = readSnapshotParameter(program, value)
    else if (id === 's') size = sizeArgument('image size', value)
    else if (id === 'output') form = outputForm(value)
    else if (id === 'U') forceShare = true
    else if (id === 'object') takeObject(value)
    else if (id === 'image-opts') imageOpts = true
    else if (id === 'backing-files') policy = gatePolicy(value)
  })
  const [file] = operands
  if (operands.length > 1) throw new Refusal('At most one filename argument is allowed.')
  if (file === undefined && (imageOpts || format !== undefined || snapshot !== undefined)) {
    throw new Refusal('--image-opts, -f, and -l require a filename argument.')
  }
  if (file === undefined && size === undefined) throw new Refusal('Either --size N or one filename must be specified.')
  if (file !== undefined && size !== undefined) throw new Refusal('--size N cannot be used together with a filename.')
  refuseBoth(imageOpts, format)
  const result =
    file === undefined
      ? await measureSize(program, size ?? 0n, target, list)
      : await measureFile(program, file, { format, imageOpts, snapshot, target, list, forceShare, policy })
  program.out.print(form === 'json' ? jsonText(result) : humanText(result))
  return 0
}

async function measureSize(program: Program, size: bigint, target: string, list: string | undefined): Promise<MeasureResult> {
  const options = await targetOptions(program, target, list)
  try {
    return await library().measure({ size }, { ...options, signal: program.signal })
  } catch (error) {
    throw tooLarge(error)
  }
}

interface Asked {
  format: string | undefined
  imageOpts: boolean
  snapshot: SnapshotParameter | undefined
  target: string
  list: string | undefined
  forceShare: boolean
  policy: GatePolicy
}

async function measureFile(program: Program, file: string, asked: Asked): Promise<MeasureResult> {
  const name = imageName(file, asked.imageOpts)
  const { signal } = program
  const format = await formatOf(name, asked.format, signal)
  const source = { ...gateOptions(asked.policy), forceShare: asked.forceShare }
  const snapshot = await snapshotId(program, { name, format }, asked.snapshot, source)
  let options: MeasureOptions
  try {
    options = await targetOptions(program, asked.target, asked.list)
  } catch (error) {
    throw await blame(error, [{ name, format }], { ...source, signal }, true)
  }
  try {
    return await library().measure(name.source, {
      ...options,
      sourceFormat: format,
      source,
      signal,
      ...(snapshot === undefined ? {} : { snapshot }),
    })
  } catch (error) {
    throw snapshotRefusal(tooLarge(await blame(error, [{ name, format }], { ...source, signal })))
  }
}

/** Reads what is said about the new image. Both lines of a fault in the list are printed, as qemu-img does. */
async function targetOptions(program: Program, target: string, list: string | undefined): Promise<MeasureOptions> {
  if (!isTargetFormat(target)) throw new Refusal(`Unknown file format '${target}'`)
  let values: CreateValues
  try {
    values = readCreateValues(target, list)
  } catch (error) {
    if (error instanceof Refusal) report(program, error)
    throw new Refusal(`Invalid options for file format '${target}'`)
  }
  if (target === 'raw') return { format: target }
  if (target === 'luks') return containerOptions(values, program.signal)
  const fault = qcow2Fault(values)
  if (fault !== undefined) throw new Refusal(fault)
  await checkSecret(values, program.signal)
  const { clusterSize, compat, refcountBits, extendedL2, preallocation, backing, encryption } = createOptionsOf(values, target)
  const options: MeasureOptions = { format: target }
  if (encryption !== undefined) options.encryption = encryption
  if (clusterSize !== undefined) options.clusterSize = clusterSize
  if (refcountBits !== undefined) options.refcountBits = refcountBits
  if (preallocation !== undefined) options.preallocation = preallocation
  // Version 2 has no extended L2 entries; the size is calculated as if it had.
  if (extendedL2 !== undefined) options.extendedL2 = extendedL2
  if (compat !== undefined && extendedL2 !== true) options.compat = compat
  if (backing !== undefined) Object.assign(options, { backing, backingFormat: 'raw' satisfies Format })
  return options
}

async function containerOptions(values: CreateValues, signal: AbortSignal): Promise<MeasureOptions> {
  await checkCreateValues('luks', values, signal)
  const { encryption } = createOptionsOf(values, 'luks')
  return { format: 'luks', ...(encryption === undefined ? {} : { encryption }) }
}

/** Measuring judges in an order, and partly in words, of its own. */
function qcow2Fault(values: CreateValues): string | undefined {
  const cluster = Number(values.get('cluster_size') ?? 65536)
  const bits = Number(values.get('refcount_bits') ?? 16)
  const compat = values.get('compat') ?? '1.1'
  const preallocation = values.get('preallocation') ?? 'off'
  if (!Number.isInteger(Math.log2(cluster)) || cluster < 512 || cluster > 2 << 20) return 'Cluster size must be a power of two between 512 and 2048k'
  if (isOn(values, 'extended_l2') && cluster < 16384) return 'Extended L2 entries are only supported with cluster sizes of at least 16384 bytes'
  if (compat !== '0.10' && compat !== '1.1') return `Invalid compatibility level: '${compat}'`
  if (![1, 2, 4, 8, 16, 32, 64].includes(bits)) return 'Refcount width must be a power of two and may not exceed 64 bits'
  if (compat === '0.10' && bits !== 16) {
    return 'Different refcount widths than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)'
  }
  if (!['off', 'metadata', 'falloc', 'full'].includes(preallocation)) return `invalid parameter value: ${preallocation}`
  if (!values.has('encrypt.format')) return undefined
  return values.has('encrypt.key-secret') ? undefined : "Parameter 'encrypt.key-secret' is required for cipher"
}

function tooLarge(error: unknown): unknown {
  const { Qcow2Error } = library()
  if (!(error instanceof Qcow2Error) || !/_(IMAGE_TOO_BIG|L1_TOO_LARGE|VIRTUAL_SIZE)$/.test(error.code)) return error
  return new Refusal('The image size is too large (try using a larger cluster size)')
}

function jsonText({ required, fullyAllocated, bitmaps }: MeasureResult): string {
  return `${formatJson({ required, 'fully-allocated': fullyAllocated, bitmaps })}\n`
}

function humanText({ required, fullyAllocated, bitmaps }: MeasureResult): string {
  const rows = [`required size: ${required}`, `fully allocated size: ${fullyAllocated}`]
  if (bitmaps !== undefined) rows.push(`bitmaps size: ${bitmaps}`)
  return `${rows.join('\n')}\n`
}
