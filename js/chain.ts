/**
 * Opening an image with everything below it: one layer at a time, and the gate is asked before each.
 */

import { orAborted } from './abort.js'
import type { Addon, ChainFacts, Handle, Identity, LayerFacts, SourceSpec } from './boundary.js'
import { invalid, Qcow2Error } from './errors.js'
import { nameOf, type Passage, pathOf, refuseReplaced } from './gate.js'
import { withHolder } from './holders.js'
import { call } from './native.js'
import { printable } from './printable.js'
import { withSecret } from './secret.js'
import type { Settings } from './settings.js'
import { beside, type Located } from './source.js'
import type { Format, LayerDescription, NamedFile, Secret } from './types.js'

/** A layer that is part of an opened chain. */
export interface OpenedLayer {
  facts: LayerFacts
  /** As the caller, or the image above, spells it. */
  path?: string
  /** The external data file in use. */
  dataFile?: string
  dataIdentity?: Identity
  /** Begins inside a larger file, whose identity says nothing about it. */
  window: boolean
}

/** An opened chain. */
export interface OpenedChain extends ChainFacts {
  layers: OpenedLayer[]
}

/** Opens a source with all its backing files. Whatever goes wrong, nothing stays open. */
export async function openChain(located: Located, settings: Settings): Promise<OpenedChain> {
  const layers = await openLayers(located, settings)
  return settings.writable ? makeDisk(layers, settings) : makeChain(layers, settings)
}

/** Says of a layer below the top, before it is opened, whether it is written too. `above` is the layer that names it. */
export type WrittenBelow = (depth: number, file: NamedFile, path: string, above: LayerDescription) => Promise<boolean>

/** Opens a source and all its backing files, each as a layer by itself. Whatever goes wrong, nothing stays open. */
export async function openLayers(located: Located, settings: Settings, written?: WrittenBelow): Promise<OpenedLayer[]> {
  const layers: OpenedLayer[] = []
  try {
    let next: Step | undefined = topStep(located, settings)
    while (next !== undefined) next = await openNext(next, layers, settings, written)
    return layers
  } catch (error) {
    await closeLayers(layers)
    throw await withHolder(error)
  }
}

/** Opens a source alone: nothing that it names, but for a data file. */
export async function openTop(located: Located, settings: Settings): Promise<OpenedLayer> {
  const layers: OpenedLayer[] = []
  try {
    const step: Step = topStep(located, settings)
    await openOne(step, layers, settings)
    return layers[0] as OpenedLayer
  } catch (error) {
    await closeLayers(layers)
    throw await withHolder(error)
  }
}

function topStep({ spec, path, luksHeader }: Located, { format, writable }: Settings): Step {
  return { spec, path, format, writable, ...(luksHeader === undefined ? {} : { luksHeader }) }
}

/** Closes layers that are not part of a chain yet. */
export async function closeLayers(layers: readonly OpenedLayer[]): Promise<void> {
  await Promise.all(layers.map(({ facts }) => closeHandle(facts.handle).catch(() => {})))
}

/** Makes a disk of layers that is read. They belong to it from then on, also if that fails. `withoutBacking`: the last names one that is not there. */
export async function makeChain(layers: OpenedLayer[], settings: Settings, withoutBacking = false): Promise<OpenedChain> {
  const options = {
    cacheBytes: settings.cacheBytes,
    maxChainDepth: settings.layer.maxChainDepth,
    withoutBacking,
    ...(settings.snapshot === undefined ? {} : { snapshot: settings.snapshot }),
  }
  return made(layers, settings, (addon, id, handles) => addon.openChain(id, handles, options))
}

/** The same, of a disk that is written. */
export async function makeDisk(layers: OpenedLayer[], settings: Settings, withoutBacking = false): Promise<OpenedChain> {
  return made(layers, settings, (addon, id, handles) => addon.openDisk(id, handles, settings.cacheBytes, withoutBacking))
}

async function made(layers: OpenedLayer[], { signal }: Settings, begin: (addon: Addon, id: number, handles: Handle[]) => void): Promise<OpenedChain> {
  const handles = layers.map(({ facts }) => facts.handle)
  try {
    return { ...(await call<ChainFacts>((addon, id) => begin(addon, id, handles), { signal })), layers }
  } catch (error) {
    // A call that was cancelled before it was made took nothing.
    await closeLayers(layers)
    throw await withHolder(error)
  }
}

/** Closes a chain or layer: waits for the requests that it accepted. */
export function closeHandle(handle: Handle): Promise<void> {
  return call<void>((addon, id) => addon.close(id, handle))
}

/** What is opened next. */
interface Step {
  spec: SourceSpec
  path: string | undefined
  format: Format
  writable: boolean
  luksHeader?: string
  /** How it came through the gate; absent for the top, which the caller named. */
  passage?: Passage
}

/** Opens one layer, with its data file, and finds out what lies below. */
async function openNext(step: Step, layers: OpenedLayer[], settings: Settings, written?: WrittenBelow): Promise<Step | undefined> {
  const { facts, description } = await openOne(step, layers, settings)
  if (facts.backingFile === undefined || facts.backingFile === null) return undefined
  return stepDown(facts, description, settings, written)
}

async function openOne(step: Step, layers: OpenedLayer[], settings: Settings): Promise<{ facts: LayerFacts; description: LayerDescription }> {
  const depth = layers.length
  refuseDepth(depth, settings)
  const facts = await openLayer(step, depth, settings)
  const layer: OpenedLayer = { facts, window: (step.spec.offset ?? 0n) > 0n, ...(step.path === undefined ? {} : { path: step.path }) }
  const description: LayerDescription = { depth, format: facts.format, ...pathOf({ depth, format: facts.format, path: step.path }) }
  layers.push(layer)
  refuseMemory(layers, settings)
  if (step.passage !== undefined) await refuseReplaced(step.passage, facts)
  refuseLoop(layers)
  refuseNamesOfProbed(facts, description, settings)
  if (facts.needsDataFile === true) await attachDataFile(layers, description, step.writable, settings)
  if (facts.encryption && settings.secret !== undefined)
    await unlock(facts, { ...description, encryption: facts.encryption }, settings.secret, settings)
  return { facts, description }
}

/** The file that the header of a LUKS container is in, if it has one of its own. */
export function headerSpec(format: Format, { luksHeader: path }: Pick<Located, 'luksHeader'>, writable: boolean): SourceSpec | undefined {
  if (path === undefined) return undefined
  if (format !== 'luks') throw invalid('source.luksHeader', `source.luksHeader goes with format 'luks': it is '${format}'`)
  return { path, writable, devices: true }
}

function openLayer(step: Step, depth: number, settings: Settings): Promise<LayerFacts> {
  const { writable } = step
  const opened = call<LayerFacts>(
    (addon, id) =>
      addon.openLayer(
        id,
        { ...step.spec, writable, cache: settings.cache },
        { ...settings.layer, format: step.format, writable, metadataOnly: false, forCheck: false },
        headerSpec(step.format, step, writable),
      ),
    { signal: settings.signal },
  )
  return depth === 0 ? opened : opened.catch((error) => Promise.reject(inRole(error, 'backing', depth)))
}

/** Gives an encrypted layer its key. Without one it waits until somebody wants to read guest data. */
async function unlock({ handle }: LayerFacts, layer: LayerDescription, secret: Secret, { legacy, signal }: Settings): Promise<void> {
  const opened = withSecret(secret, layer, signal, (bytes) => call<boolean>((addon, id) => addon.unlockLayer(id, handle, bytes, legacy), { signal }))
  await opened.catch((error) => Promise.reject(layer.depth === 0 ? error : inRole(error, 'backing', layer.depth)))
}

/** Asks the gate about the backing file of a layer. */
async function stepDown(facts: LayerFacts, layer: LayerDescription, settings: Settings, written?: WrittenBelow): Promise<Step> {
  const name = facts.backingFile as string
  const file: NamedFile = { kind: 'backing', name, path: beside(layer.path, name) }
  if (facts.backingFormat) file.format = facts.backingFormat
  const passage = await ask(file, layer, settings)
  const format = passage.format ?? recordedFormat(file, layer)
  const writable = (await written?.(layer.depth + 1, file, passage.path, layer)) ?? false
  return { spec: { path: passage.path, devices: passage.devices }, path: passage.shown, format, writable, passage }
}

function ask(file: NamedFile, layer: LayerDescription, { gate, signal }: Settings): Promise<Passage> {
  const answer = gate(file, layer).catch((error) => Promise.reject(inRole(error, file.kind, layer.depth + (file.kind === 'backing' ? 1 : 0))))
  // A function of the caller may wait for anything, such as a person: the signal does not wait for it.
  return signal === undefined ? answer : orAborted(answer, signal)
}

/** Nothing below the top is ever guessed: a guest can write what looks like an image into its raw disk. */
function recordedFormat(file: NamedFile, layer: LayerDescription): Format {
  const { format } = file
  if (format === 'qcow2' || format === 'raw' || format === 'luks') return format
  const details = { name: file.name, ...(format === undefined ? {} : { format }) }
  if (format === undefined) {
    throw new Qcow2Error(
      'ERR_QCOW2_BACKING_FORMAT_MISSING',
      `${nameOf(layer)} does not say which format its backing file '${printable(file.name)}' has: let a backingFiles function answer { path, format }`,
      { ...pathOf(layer), details },
    )
  }
  throw new Qcow2Error(
    'ERR_QCOW2_BACKING_FORMAT_UNKNOWN',
    `${nameOf(layer)} says that its backing file '${printable(file.name)}' is '${printable(format)}': only qcow2, raw and luks are read`,
    { ...pathOf(layer), details },
  )
}

/** Opens the external data file of the layer that was opened last, if the caller permits it. */
async function attachDataFile(layers: readonly OpenedLayer[], layer: LayerDescription, writable: boolean, settings: Settings): Promise<void> {
  const last = layers[layers.length - 1] as OpenedLayer
  const passage = await dataFilePassage(last.facts, layer, settings)
  try {
    const identity = await call<Identity>(
      (addon, id) =>
        addon.attachDataFile(id, last.facts.handle, {
          path: passage.path,
          devices: passage.devices,
          writable,
          cache: settings.cache,
        }),
      { signal: settings.signal },
    )
    await refuseReplaced(passage, identity)
    if (layers.some(({ facts }) => same(facts, identity))) {
      throw new Qcow2Error('ERR_QCOW2_SAME_FILE', `the data file of ${nameOf(layer)} is a layer of its own chain`, { path: passage.shown })
    }
    last.dataIdentity = identity
    last.dataFile = passage.shown
  } catch (error) {
    throw inRole(error, 'data', layer.depth)
  }
}

async function dataFilePassage(facts: LayerFacts, layer: LayerDescription, settings: Settings): Promise<Passage> {
  // A path that the caller names is the top layer's: deeper layers need the gate.
  if (typeof settings.dataFile === 'string' && layer.depth === 0)
    return { path: settings.dataFile, shown: settings.dataFile, devices: true, judged: false }
  const name = facts.dataFile
  if (settings.dataFile !== true) {
    throw new Qcow2Error(
      'ERR_QCOW2_DATA_FILE_DENIED',
      `${nameOf(layer)} keeps its data in another file${name ? ` ('${printable(name)}')` : ''}: say { dataFile: true } to open it, or give its path`,
      { ...pathOf(layer), details: { kind: 'data', ...(name ? { name } : {}) } },
    )
  }
  if (!name) {
    throw new Qcow2Error(
      'ERR_QCOW2_DATA_FILE_REQUIRED',
      `${nameOf(layer)} keeps its data in another file but does not name it: give its path as dataFile`,
      {
        ...pathOf(layer),
      },
    )
  }
  return ask({ kind: 'data', name, path: beside(layer.path, name) }, layer, settings)
}

/** An image whose format nobody said may be a guest's raw disk with an image written into it: it must not lead to files of the host. */
function refuseNamesOfProbed(facts: LayerFacts, layer: LayerDescription, settings: Settings): void {
  if (!settings.probed || layer.depth > 0) return
  const name = facts.needsDataFile === true ? (facts.dataFile ?? '') : facts.backingFile
  if (name === undefined || name === null) return
  throw new Qcow2Error(
    'ERR_QCOW2_FORMAT_NOT_SAID',
    `${nameOf(layer)} looks like qcow2 and names another file ('${printable(name)}'): say its format to allow that, 'qcow2' or 'raw'`,
    { ...pathOf(layer), details: { name } },
  )
}

function refuseDepth(depth: number, { layer }: Settings): void {
  if (depth < layer.maxChainDepth) return
  throw new Qcow2Error('ERR_QCOW2_LIMIT', `the chain has more than ${layer.maxChainDepth} layers`, {
    details: { limit: 'maxChainDepth', allowed: String(layer.maxChainDepth), wanted: String(depth + 1) },
  })
}

/** The core bounds the tables of one layer, and of all when they are a chain: but two hundred that are open before that could be gigabytes. */
function refuseMemory(layers: readonly OpenedLayer[], { layer: { maxMemory } }: Settings): void {
  const wanted = layers.reduce((sum, { facts }) => sum + facts.tableBytes, 0)
  if (wanted <= maxMemory) return
  throw new Qcow2Error('ERR_QCOW2_LIMIT', `maxMemory is ${maxMemory}, but the tables of the chain need ${wanted} bytes or more`, {
    details: { limit: 'maxMemory', allowed: String(maxMemory), wanted: String(wanted) },
  })
}

function refuseLoop(layers: readonly OpenedLayer[]): void {
  const last = layers[layers.length - 1] as OpenedLayer
  const fields = { ...pathOf({ depth: 0, format: 'raw', path: last.path }) }
  const depth = layers.findIndex((layer) => layer !== last && !layer.window && same(layer.facts, last.facts))
  if (depth !== -1) {
    const message = `${last.path ?? 'the image'} is layer ${layers.length - 1} and layer ${depth} of the same chain`
    throw new Qcow2Error('ERR_QCOW2_BACKING_LOOP', message, { ...fields, details: { depth: String(depth) } })
  }
  if (layers.some(({ dataIdentity }) => dataIdentity !== undefined && same(dataIdentity, last.facts))) {
    throw new Qcow2Error('ERR_QCOW2_SAME_FILE', `${last.path ?? 'the image'} is a layer and a data file of the same chain`, fields)
  }
}

function same(a: Identity, b: Identity): boolean {
  return a.inode !== undefined && a.inode !== null && a.inode === b.inode && a.device === b.device
}

/** Says which of the files that make a chain an error is about: its `details` get `role` and `depth`. */
function inRole(error: unknown, role: NamedFile['kind'], depth: number): unknown {
  if (!(error instanceof Qcow2Error)) return error
  const details = Object.freeze({ ...error.details, role, depth: String(depth) })
  return Object.defineProperty(error, 'details', { value: details, enumerable: true, configurable: true, writable: true })
}
