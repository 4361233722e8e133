/** `snapshot -l`: the internal snapshots of an image. */
import { type CommandHelp, ROWS } from '../help.js'
import { library } from '../library.js'
import { formatOf, type GatePolicy, gateOptions, gatePolicy, imageName, openRefusal } from '../names.js'
import type { Program } from '../program.js'
import { misuse, Refusal } from '../refusal.js'
import { snapshotTable } from '../snapshot-table.js'
import { commandGrammar, oneFile, readWords, refuseImageOpts, refuseObject } from '../words.js'

const GRAMMAR = commandGrammar('lqU', 'acdf', 'quiet=q object: format:=f image-opts force-share=U list=l apply:=a create:=c delete:=d')

const HELP: CommandHelp = {
  summary: 'List the internal snapshots of an image. Making, applying and deleting them is not in this version.',
  usage: '[-f FMT] [-l] [-U] FILE',
  options: [['-l, --list', 'list the snapshots (the default)'], ROWS.format, ROWS.share, ROWS.gate],
  examples: ['snapshot -l disk.qcow2', 'snapshot -U disk-in-use.qcow2'],
}

/** Runs the command. */
export async function snapshot(program: Program, words: readonly string[]): Promise<number> {
  let action: string | undefined
  let format: string | undefined
  let imageOpts = false
  let forceShare = false
  let policy: GatePolicy = 'plain'
  const operands = readWords(program, words, GRAMMAR, HELP, (id, value) => {
    if ('lacd'.includes(id)) {
      if (action !== undefined) throw misuse("Cannot mix '-l', '-a', '-c', '-d'")
      action = id
    } else if (id === 'f') format = value
    else if (id === 'U') forceShare = true
    else if (id === 'object') refuseObject(value)
    else if (id === 'image-opts') imageOpts = true
    else if (id === 'backing-files') policy = gatePolicy(value)
  })
  const file = oneFile(operands)
  if (imageOpts) throw refuseImageOpts(format)
  if (action !== undefined && action !== 'l') throw new Refusal(`Snapshots cannot be made, applied or deleted ('-${action}') in this version`)
  const name = imageName(file)
  const options = { format: await formatOf(name, format, program.signal), forceShare, signal: program.signal, ...gateOptions(policy) }
  try {
    await using disk = await library().open(name.path, options)
    program.out.print(snapshotTable(await disk.snapshots.list()))
  } catch (error) {
    throw openRefusal(error, name)
  }
  return 0
}
