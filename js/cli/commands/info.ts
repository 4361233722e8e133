/** `info`: facts about an image, or about each image of its chain. */

import { realpathSync } from 'node:fs'
import { dirname, resolve } from 'node:path'
import { type CommandHelp, ROWS } from '../help.js'
import { imageBlock } from '../image-block.js'
import { describeImage } from '../image-json.js'
import { formatJson, type JsonObject } from '../json.js'
import { type Format, type ImageInfo, library } from '../library.js'
import { cannotOpen, formatOf, type GatePolicy, gatePolicy, type ImageName, imageName, openRefusal, plainName, refuseSpecial } from '../names.js'
import type { Program } from '../program.js'
import { Refusal } from '../refusal.js'
import { commandGrammar, oneFile, outputForm, readWords, refuseBoth, takeObject } from '../words.js'

const GRAMMAR = commandGrammar('bU', 'f', 'format:=f output: backing-chain=b object: image-opts force-share=U')

const HELP: CommandHelp = {
  summary: 'Show facts about an image. No other file is opened unless asked for.',
  usage: '[-f FMT] [-b] [-U] [--output human|json] FILE',
  options: [ROWS.format, ['-b, --backing-chain', 'show the images below it too'], ROWS.share, ROWS.output],
  examples: ['info disk.qcow2', 'info --backing-chain --output=json overlay.qcow2'],
}

/** Runs the command. */
export async function info(program: Program, words: readonly string[]): Promise<number> {
  let format: string | undefined
  let form = 'human' as 'human' | 'json'
  let chain = false
  let imageOpts = false
  let forceShare = false
  let policy: GatePolicy = 'plain'
  const operands = readWords(program, words, GRAMMAR, HELP, (id, value) => {
    if (id === 'f') format = value
    else if (id === 'output') form = outputForm(value)
    else if (id === 'b') chain = true
    else if (id === 'U') forceShare = true
    else if (id === 'object') takeObject(value)
    else if (id === 'image-opts') imageOpts = true
    else if (id === 'backing-files') policy = gatePolicy(value)
  })
  const file = oneFile(operands)
  refuseBoth(imageOpts, format)
  const images = await readImages(program, file, format, { chain, forceShare, policy, imageOpts })
  const print = (text: string) => program.out.print(text)
  if (form === 'human') print(images.map(imageBlock).join('\n'))
  else if (chain) print(`${formatJson(images.map(describeImage) as JsonObject[])}\n`)
  else for (const image of images) print(`${formatJson(describeImage(image))}\n`)
  return 0
}

/** One image with the name that it is shown by. */
export interface NamedImage {
  name: string
  facts: ImageInfo
}

async function readImages(
  program: Program,
  file: string,
  format: string | undefined,
  { chain, forceShare, policy, imageOpts }: { chain: boolean; forceShare: boolean; policy: GatePolicy; imageOpts: boolean },
): Promise<NamedImage[]> {
  const images: NamedImage[] = []
  const seen = new Set<string>()
  let next: { file: string; format: string | undefined } | undefined = { file, format }
  while (next !== undefined) {
    const name: ImageName = images.length === 0 ? imageName(next.file, imageOpts) : plainName(next.file)
    if (seen.has(next.file)) throw new Refusal(`Backing file '${next.file}' creates an infinite loop.`)
    seen.add(next.file)
    const facts = await readFacts(program, name, next.format, forceShare)
    images.push({ name: name.path === '' ? name.given : name.path, facts })
    const below = facts.fullBackingFile
    if (chain && below !== undefined) refuseOutside(policy, name.path, below)
    next = chain && below !== undefined ? { file: below, format: facts.backingFormat } : undefined
  }
  return images
}

/** What `--backing-files` says of the file that an image names. */
function refuseOutside(policy: GatePolicy, path: string, below: string): void {
  const folder = (file: string): string => dirname(resolve(file))
  if (policy === 'plain' || (policy === 'same-directory' && folder(realpath(path)) === folder(realpath(below)))) return
  throw cannotOpen(below, `it is not opened, as '${path}' names it and --backing-files is ${policy}`)
}

/** Where a file really lies; a name that leads nowhere is judged as it stands. */
function realpath(path: string): string {
  try {
    return realpathSync(path)
  } catch {
    return path
  }
}

async function readFacts(program: Program, name: ImageName, wanted: string | undefined, forceShare: boolean): Promise<ImageInfo> {
  const format: Format = await formatOf(name, wanted, program.signal)
  refuseSpecial(name)
  try {
    return await library().info(name.source, { format, forceShare, bigint: true, signal: program.signal })
  } catch (error) {
    throw openRefusal(error, name)
  }
}
