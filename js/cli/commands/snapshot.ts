/** `snapshot`: the internal snapshots of an image are listed, made, applied and deleted. */
import { constants } from 'node:os'
import { type CommandHelp, ROWS } from '../help.js'
import { describeSnapshot } from '../image-json.js'
import { formatJson, type JsonObject } from '../json.js'
import { type Disk, library } from '../library.js'
import { cannotOpen, formatOf, type GatePolicy, gateOptions, gatePolicy, type ImageName, imageName, openRefusal, refuseReadOnly } from '../names.js'
import type { Program } from '../program.js'
import { misuse, Refusal } from '../refusal.js'
import { snapshotTable } from '../snapshot-table.js'
import { strerror } from '../strerror.js'
import { commandGrammar, oneFile, outputForm, readWords, refuseBoth, takeObject } from '../words.js'
import { changeFault, openWritable } from '../writable.js'

const GRAMMAR = commandGrammar('lqU', 'acdf', 'quiet=q object: format:=f image-opts force-share=U list=l apply:=a create:=c delete:=d !output:')

const HELP: CommandHelp = {
  summary: 'List, make, apply or delete internal snapshots of an image.',
  usage: '[-f FMT] [-l | -c NAME | -a NAME | -d NAME] [-U] [-q] [--output human|json] FILE',
  options: [
    ['-l, --list', 'list the snapshots (the default)'],
    ['-c, --create NAME', 'make a snapshot of what the disk holds now'],
    ['-a, --apply NAME', 'make the disk what it was in a snapshot, named by its id or name'],
    ['-d, --delete NAME', 'delete a snapshot'],
    ROWS.format,
    ROWS.quiet,
    ['-U, --force-share', 'with -l: read although another process may be writing'],
    ROWS.output,
    ROWS.gate,
  ],
  examples: ['snapshot -l disk.qcow2', 'snapshot -c before-upgrade disk.qcow2'],
}

/** What a command line asks for. */
interface Asked {
  name: ImageName
  format: string | undefined
  policy: GatePolicy
}

/** Names are cut to so many bytes. */
const MOST_NAME = 255
const { EFBIG, EINVAL, ENOENT, EOPNOTSUPP } = constants.errno

/** Runs the command. */
export async function snapshot(program: Program, words: readonly string[]): Promise<number> {
  let action: string | undefined
  let which = ''
  let format: string | undefined
  let form = 'human' as 'human' | 'json'
  let imageOpts = false
  let forceShare = false
  let policy: GatePolicy = 'plain'
  const operands = readWords(program, words, GRAMMAR, HELP, (id, value) => {
    if ('lacd'.includes(id)) {
      if (action !== undefined) throw misuse("Cannot mix '-l', '-a', '-c', '-d'")
      action = id
      which = value
    } else if (id === 'f') format = value
    else if (id === 'U') forceShare = true
    else if (id === 'output') form = outputForm(value)
    else if (id === 'object') takeObject(value)
    else if (id === 'image-opts') imageOpts = true
    else if (id === 'backing-files') policy = gatePolicy(value)
  })
  const file = oneFile(operands)
  refuseBoth(imageOpts, format)
  const name = imageName(file, imageOpts)
  if (action !== undefined && action !== 'l') refuseReadOnly(name)
  const asked = { name, format, policy }
  const facts =
    action === undefined || action === 'l' ? await list(program, asked, forceShare, form) : await change(program, asked, action, which, forceShare)
  if (form === 'json') program.out.print(`${formatJson({ filename: name.given, ...facts })}\n`)
  return 0
}

async function list(program: Program, { name, format, policy }: Asked, forceShare: boolean, form: 'human' | 'json'): Promise<JsonObject> {
  const options = { format: await formatOf(name, format, program.signal), forceShare, signal: program.signal, ...gateOptions(policy) }
  try {
    await using disk = await library().open(name.source, options)
    const snapshots = disk.snapshots.list()
    if (form === 'human') program.out.print(snapshotTable(snapshots))
    return { snapshots: snapshots.map(describeSnapshot) }
  } catch (error) {
    throw openRefusal(error, name)
  }
}

async function change(program: Program, asked: Asked, action: string, given: string, forceShare: boolean): Promise<JsonObject> {
  if (forceShare) throw cannotOpen(asked.name.given, 'force-share=on can only be used with read-only images')
  const disk = await openWritable(program, asked.name, asked.format, asked.policy)
  let facts: JsonObject
  try {
    facts = await CHANGES[action as 'a' | 'c' | 'd'](disk, given)
  } catch (error) {
    await disk.close().catch(() => {})
    throw error
  }
  try {
    await disk.close()
  } catch (error) {
    throw new Refusal(`Error while closing the image: ${changeFault(error)}`)
  }
  return facts
}

const CHANGES = {
  async c(disk: Disk, given: string): Promise<JsonObject> {
    try {
      if (disk.format !== 'qcow2') throw new Refusal(strerror(EOPNOTSUPP))
      return { created: describeSnapshot(await disk.snapshots.create(cut(given), { allowDuplicate: true, icount: 0 })) }
    } catch (error) {
      throw new Refusal(
        `Could not create snapshot '${given}': ${why(error, { SNAPSHOT_UNSUPPORTED: EOPNOTSUPP, REFCOUNT_OVERFLOW: EINVAL, LIMIT: EFBIG })}`,
      )
    }
  },

  async a(disk: Disk, given: string): Promise<JsonObject> {
    const failed = (text: string) => new Refusal(`Could not apply snapshot '${given}': ${text}`)
    if (disk.format !== 'qcow2') throw failed('Block driver does not support snapshots')
    const all = disk.snapshots.list()
    // An image that has a data file cannot have snapshots: that is said before one is looked for.
    const unsupported = all.length === 0 && disk.chain[0]?.dataFile !== undefined
    const found = all.find(({ id }) => id === given) ?? all.find(({ name }) => name === given)
    if (unsupported || found === undefined) throw failed(`Failed to load snapshot: ${strerror(unsupported ? EOPNOTSUPP : ENOENT)}`)
    try {
      await disk.snapshots.apply({ id: found.id })
      return { applied: describeSnapshot(found) }
    } catch (error) {
      throw failed(`Failed to load snapshot: ${why(error, { REFCOUNT_OVERFLOW: EINVAL })}`)
    }
  },

  async d(disk: Disk, given: string): Promise<JsonObject> {
    const found = disk.snapshots.list().find(({ name }) => name === given)
    if (found === undefined) throw new Refusal(`Could not delete snapshot '${given}': snapshot not found`)
    try {
      await disk.snapshots.delete({ id: found.id })
      return { deleted: describeSnapshot(found) }
    } catch (error) {
      throw new Refusal(`Could not delete snapshot '${given}': ${why(error, {})}`)
    }
  },
}

/** Why it failed, in the system's words where qemu-img has no others: the number of its error by our code. */
function why(error: unknown, numbers: Readonly<Record<string, number>>): string {
  if (error instanceof Refusal) return error.message
  const { Qcow2Error } = library()
  const number = error instanceof Qcow2Error ? numbers[error.code.replace('ERR_QCOW2_', '')] : undefined
  return number === undefined ? changeFault(error) : strerror(number)
}

/** As much of a name as there is room for, in whole characters. */
function cut(name: string): string {
  let text = name
  while (Buffer.byteLength(text) > MOST_NAME) text = text.slice(0, /[\uDC00-\uDFFF]$/.test(text) ? -2 : -1)
  return text
}
