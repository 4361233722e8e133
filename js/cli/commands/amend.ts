/** `amend`: the format of an image is changed in place. */
import { iterTimeFault } from '../create-checks.js'
import { type CommandHelp, ROWS } from '../help.js'
import { formatJson } from '../json.js'
import { type AmendOptions, type ImageInfo, type KeySlotChange, library } from '../library.js'
import { formatOf, type GatePolicy, gateOptions, gatePolicy, type ImageName, imageName, openRefusal, refuseReadOnly } from '../names.js'
import { amendHelp, asksForHelp, type CreateValues, isOn, isTargetFormat, joinLists, readAmendValues } from '../options.js'
import type { Program } from '../program.js'
import { ProgressLine } from '../progress.js'
import { misuse, Refusal } from '../refusal.js'
import { newSecretBytes, secretBytes } from '../secrets.js'
import { withoutPath } from '../texts.js'
import { commandGrammar, isCacheMode, outputForm, readWords, refuseBoth, takeObject } from '../words.js'
import { changeFault, openWritable } from '../writable.js'

const GRAMMAR = commandGrammar('pq', 'oft', 'options:=o format:=f image-opts cache:=t force object: !output: progress=p quiet=q')

const HELP: CommandHelp = {
  summary: 'Change an image in place: version, refcount width, lazy refcounts, data file, size and key slots of qcow2, key slots of luks.',
  usage: '-o OPTIONS [-f FMT] [-p] [-q] [--force] [--output human|json] FILE',
  options: [
    ['-o, --options KEY=VALUE,…', 'what is changed; -o help lists it'],
    ROWS.format,
    ['--force', 'erase the last key slot too, and overwrite one that is in use: data may be lost for good'],
    ['-t, --cache MODE', 'caches: writeback, writethrough, none, directsync or unsafe'],
    ROWS.progress,
    ROWS.quiet,
    ROWS.output,
    ROWS.gate,
  ],
  examples: ['amend -o compat=1.1,lazy_refcounts=on disk.qcow2', 'amend -p -o refcount_bits=32 disk.qcow2'],
}

const DOWNGRADED = /^(v2|0\.10)$/
const UPGRADED = /^(v3|1\.1)$/

/** Runs the command. */
export async function amend(program: Program, words: readonly string[]): Promise<number> {
  let format: string | undefined
  let list: string | undefined
  let form = 'human' as 'human' | 'json'
  let cache = 'writeback'
  let progress = false
  let quiet = false
  let imageOpts = false
  let force = false
  let policy: GatePolicy = 'plain'
  const operands = readWords(program, words, GRAMMAR, HELP, (id, value) => {
    if (id === 'f') format = value
    else if (id === 'o') list = joinLists(list, value)
    else if (id === 't') cache = value
    else if (id === 'p') progress = true
    else if (id === 'q') quiet = true
    else if (id === 'force') force = true
    else if (id === 'output') form = outputForm(value)
    else if (id === 'object') takeObject(value)
    else if (id === 'image-opts') imageOpts = true
    else if (id === 'backing-files') policy = gatePolicy(value)
  })
  if (list === undefined) throw misuse('Must specify options (-o)')
  if (format !== undefined && asksForHelp(list)) return help(program, format)
  const [file, surplus] = operands
  if (file === undefined || surplus !== undefined) throw new Refusal('Expecting one image file name')
  refuseBoth(imageOpts, format)
  if (!isCacheMode(cache)) throw new Refusal(`Invalid cache option: ${cache}`)
  const line = new ProgressLine(program, progress && !quiet, 1)
  try {
    const name = imageName(file, imageOpts)
    const options = await wished(program, name, list, format, policy, force)
    if (options === 'help') return 0
    line.start()
    const virtualSize = await run(program, name, { ...options, ...gateOptions(policy, cache) }, line)
    line.finish(true)
    if (form === 'json') program.out.print(`${formatJson({ filename: name.given, 'virtual-size': virtualSize })}\n`)
  } finally {
    line.end()
  }
  return 0
}

/** What is asked for. As with qemu-img, what is wrong with the image is told before what is wrong with the list, so only then it is opened twice. */
async function wished(
  program: Program,
  name: ImageName,
  list: string,
  format: string | undefined,
  policy: GatePolicy,
  force: boolean,
): Promise<AmendOptions | 'help'> {
  refuseReadOnly(name)
  const kind = await formatOf(name, format, program.signal)
  try {
    if (kind === 'raw' && !asksForHelp(list)) throw new Refusal(`Format driver '${kind}' does not support option amendment`)
    if (!asksForHelp(list)) {
      const format = kind === 'luks' ? 'luks' : 'qcow2'
      const values = readAmendValues(format, list)
      const facts = await library().info(name.source, { format, bigint: true, signal: program.signal })
      const keySlot = keySlotOf(values, facts, force)
      return { format, ...optionsOf(withoutUnchanged(facts, values)), ...(keySlot === undefined ? {} : { keySlot }) }
    }
  } catch (error) {
    await (await openWritable(program, name, format, policy)).close()
    throw error
  }
  await (await openWritable(program, name, format, policy)).close()
  help(program, kind)
  return 'help'
}

function help(program: Program, format: string): number {
  if (!isTargetFormat(format)) throw new Refusal(`Unknown file format '${format}'`)
  if (format === 'raw') throw new Refusal(`Format driver '${format}' does not support option amendment`)
  program.out.print(amendHelp(format))
  return 0
}

/** A backing file, named with its format as the image has both, is no change. */
function withoutUnchanged({ backingFile, backingFormat }: ImageInfo, values: CreateValues): CreateValues {
  const [file, format] = [values.get('backing_file'), values.get('backing_fmt')]
  if (file === undefined || format === undefined) return values
  if (file !== backingFile || format !== backingFormat) return values
  values.delete('backing_file')
  values.delete('backing_fmt')
  return values
}

/** What `encrypt.…` asks for, or in a LUKS container the same without that; the keys are taken out of `values`. */
function keySlotOf(values: CreateValues, { format, encryption }: ImageInfo, force: boolean): KeySlotChange | undefined {
  const before = format === 'luks' ? '' : 'encrypt.'
  const take = (key: string): string | undefined => {
    const value = values.get(`${before}${key}`)
    values.delete(`${before}${key}`)
    return value
  }
  if (before !== '' && ![...values.keys()].some((key) => key.startsWith(before))) return undefined
  if (encryption === undefined) throw new Refusal("Can't amend encryption options - encryption not present")
  if (encryption !== 'luks') throw new Refusal('Only LUKS encryption options can be amended')
  const [state, slot, added, gone, iterTime] = [take('state'), take('keyslot'), take('new-secret'), take('old-secret'), take('iter-time')]
  if (state === undefined) throw new Refusal("Parameter 'state' is missing")
  if (state !== 'active' && state !== 'inactive') throw new Refusal(`Parameter 'state' does not accept value '${state}'`)
  const active = state === 'active'
  if (active && added === undefined) throw new Refusal("'new-secret' is required to activate a keyslot")
  if (active && gone !== undefined) throw new Refusal("'old-secret' must not be given when activating keyslots")
  if (!active && added !== undefined) throw new Refusal("'new-secret' must not be given when erasing keyslots")
  if (!active && iterTime !== undefined) throw new Refusal("'iter-time' must not be given when erasing keyslots")
  // A number below 0 is a very large one to QEMU.
  if (slot !== undefined && !(Number(slot) >= 0 && Number(slot) <= 7))
    throw new Refusal(`Invalid keyslot ${Number(slot) >>> 0} specified, must be between 0 and 7`)
  const time = iterTimeFault(iterTime)
  if (time !== undefined) throw new Refusal(time)
  if (!active && slot === undefined && gone === undefined) {
    throw new Refusal('To erase keyslot(s), either explicit keyslot index or the password currently contained in them must be given')
  }
  return {
    ...(added === undefined ? {} : { newSecret: () => newSecretBytes(added) }),
    ...(gone === undefined ? {} : { oldSecret: () => secretBytes(gone) }),
    ...(slot === undefined ? {} : { slot: Number(slot) }),
    ...(iterTime === undefined ? {} : { iterTime: Number(iterTime) }),
    force,
  }
}

/** What is asked for, in the library's terms. */
function optionsOf(values: CreateValues): AmendOptions {
  const compat = values.get('compat')
  if (compat !== undefined && !DOWNGRADED.test(compat) && !UPGRADED.test(compat)) throw new Refusal(`Unknown compatibility level ${compat}`)
  const bits = values.get('refcount_bits')
  if (bits !== undefined && !/^(1|2|4|8|16|32|64)$/.test(bits)) {
    throw new Refusal('Refcount width must be a power of two and may not exceed 64 bits')
  }
  if (values.has('backing_file') || values.has('backing_fmt')) {
    throw new Refusal('Cannot amend the backing file', { hint: "You can use 'qemu-img rebase' instead." })
  }
  const size = values.get('size')
  const dataFile = values.get('data_file')
  if (size !== undefined && BigInt(size) % 512n !== 0n) throw new Refusal('The new size must be a multiple of 512')
  return {
    ...(compat === undefined ? {} : { compat: DOWNGRADED.test(compat) ? '0.10' : '1.1' }),
    ...(bits === undefined ? {} : { refcountBits: Number(bits) }),
    ...(values.has('lazy_refcounts') ? { lazyRefcounts: isOn(values, 'lazy_refcounts') } : {}),
    ...(values.has('data_file_raw') ? { dataFileRaw: isOn(values, 'data_file_raw') } : {}),
    ...(dataFile === undefined ? {} : { dataFileName: dataFile }),
    ...(size === undefined ? {} : { size: BigInt(size) }),
  }
}

async function run(program: Program, name: ImageName, options: AmendOptions, line: ProgressLine): Promise<number | bigint> {
  const { Qcow2Error } = library()
  try {
    const { virtualSize } = await library().amend(name.source, { ...options, signal: program.signal, onProgress: line.update })
    return virtualSize
  } catch (error) {
    if (program.signal.aborted || !(error instanceof Qcow2Error)) throw error
    if (/_(AMEND|KEY_SLOT|REFCOUNT_OVERFLOW|REFCOUNT_TABLE_FULL)$/.test(error.code)) throw new Refusal(withoutPath(error))
    if (error.code === 'ERR_QCOW2_RESIZE_SNAPSHOTS') throw new Refusal("Can't resize a v2 image which has snapshots")
    const refusal = openRefusal(error, name)
    throw refusal instanceof Refusal && error.syscall !== 'write' ? refusal : new Refusal(changeFault(error))
  }
}
