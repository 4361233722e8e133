/** `map`: where the bytes of an image are. */
import { type CommandHelp, ROWS } from '../help.js'
import { hex } from '../human.js'
import { type Disk, library, type Run } from '../library.js'
import { formatOf, type GatePolicy, gateOptions, gatePolicy, imageName, openRefusal } from '../names.js'
import { sizeArgument } from '../numbers.js'
import type { Program } from '../program.js'
import { Refusal } from '../refusal.js'
import { commandGrammar, oneFile, outputForm, readWords, refuseBoth, takeObject } from '../words.js'

const GRAMMAR = commandGrammar('U', 'fsl', 'format:=f output: object: image-opts force-share=U start-offset:=s max-length:=l')

const HELP: CommandHelp = {
  summary: 'Show which ranges of an image are allocated, and where their bytes are.',
  usage: '[-f FMT] [-s OFFSET] [-l LENGTH] [-U] [--output human|json] FILE',
  options: [
    ROWS.format,
    ['-s, --start-offset OFFSET', 'begin there'],
    ['-l, --max-length LENGTH', 'show no more than this'],
    ROWS.share,
    ROWS.output,
    ROWS.gate,
  ],
  examples: ['map disk.qcow2', 'map --output=json -s 1G -l 64M overlay.qcow2'],
}

/** Runs the command. */
export async function map(program: Program, words: readonly string[]): Promise<number> {
  let form = 'human' as 'human' | 'json'
  let format: string | undefined
  let imageOpts = false
  let forceShare = false
  let policy: GatePolicy = 'plain'
  let start = 0n
  let length: bigint | undefined
  const operands = readWords(program, words, GRAMMAR, HELP, (id, value) => {
    if (id === 'f') format = value
    else if (id === 'output') form = outputForm(value)
    else if (id === 'U') forceShare = true
    else if (id === 's') start = sizeArgument('start offset', value)
    else if (id === 'l') length = sizeArgument('max length', value)
    else if (id === 'object') takeObject(value)
    else if (id === 'image-opts') imageOpts = true
    else if (id === 'backing-files') policy = gatePolicy(value)
  })
  const file = oneFile(operands)
  refuseBoth(imageOpts, format)
  const name = imageName(file, imageOpts)
  const options = { format: await formatOf(name, format, program.signal), forceShare, signal: program.signal, ...gateOptions(policy) }
  const disk = await library()
    .open(name.source, options)
    .catch((error: unknown) => Promise.reject(openRefusal(error, name)))
  try {
    const size = BigInt(disk.virtualSize)
    const end = length === undefined || start + length > size ? size : start + length
    if (form === 'json') await printJson(program, disk, start, end)
    else await printRows(program, disk, start, end)
  } finally {
    await disk.close()
  }
  return 0
}

async function printJson(program: Program, disk: Disk, start: bigint, end: bigint): Promise<void> {
  let before = '['
  for await (const run of runs(program, disk, start, end)) {
    program.out.print(before + describe(run))
    before = ',\n'
  }
  // An empty range still has its entry, which says nothing.
  if (before === '[') {
    const nothing: Run = { start, length: 0, depth: 0, present: false, zero: false, data: false, compressed: false }
    program.out.print(before + describe(nothing))
  }
  program.out.print(']\n')
}

function describe({ start, length, depth, present, zero, data, compressed, offset }: Run): string {
  const where = offset === undefined ? '' : `, "offset": ${offset}`
  return `{ "start": ${start}, "length": ${length}, "depth": ${depth}, "present": ${present}, "zero": ${zero}, "data": ${data}, "compressed": ${compressed}${where}}`
}

async function printRows(program: Program, disk: Disk, start: bigint, end: bigint): Promise<void> {
  program.out.print(`${'Offset'.padEnd(16)}${'Length'.padEnd(16)}${'Mapped to'.padEnd(16)}File\n`)
  for await (const run of runs(program, disk, start, end)) {
    if (!run.data) continue
    if (run.offset === undefined) throw new Refusal('File contains external, encrypted or compressed clusters.')
    if (run.zero) continue
    const numbers = [run.start, run.length, run.offset].map((value) => hex(value).padEnd(16))
    program.out.print(`${numbers.join('')}${run.path}\n`)
  }
}

function runs(program: Program, disk: Disk, start: bigint, end: bigint): AsyncIterable<Run> {
  return start >= end ? noRuns() : disk.map({ start, end, signal: program.signal })
}

async function* noRuns(): AsyncGenerator<Run> {}
