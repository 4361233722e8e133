/**
 * `create`: a new, empty image.
 */

import * as fs from 'node:fs'
import { promisify } from 'node:util'
import type { CreateFacts, Handle, Identity, LayerFacts } from './boundary.js'
import { closeHandle } from './chain.js'
import { createSpec, FILE_RULES, IMAGE_RULES, targetSpec } from './creating.js'
import { atCaller, cancelled, invalid, Qcow2Error } from './errors.js'
import { withoutAbsent } from './facts.js'
import { hasProtocol, sameDirectory } from './gate.js'
import type { CreateOptions, CreateResult } from './job-types.js'
import { call } from './native.js'
import { checkOptions, flag, signal, size } from './options.js'
import { worded } from './refusals.js'
import { withEncryption } from './secret.js'
import { format, layerSettings } from './settings.js'
import { narrow } from './sizes.js'
import { beside, type LocatedTarget, locateTarget } from './source.js'
import type { Format, Target } from './types.js'

// As in gate.ts: node:fs/promises costs more than it is used for.
const stat = promisify(fs.stat)

/** How far down a chain is followed. */
const DEEPEST = 200

const RULES = { ...IMAGE_RULES, ...FILE_RULES, size, format, backingUnchecked: flag, signal }

/**
 * Makes a new image that reads as zeros, or as its backing file.
 *
 * The file is written beside its name and renamed when it is whole; an existing one is refused unless `overwrite` is set. The format is
 * qcow2 unless `format` or the extension `.raw` says otherwise. A LUKS container is noise until it is written.
 *
 * @param target - a path, a `file:` URL, or `memoryStorage()`
 *
 * @example
 * ```ts
 * import { create } from 'qcow2'
 * await create('base.qcow2', { size: '20G' })
 * await create('overlay.qcow2', { backing: 'base.qcow2', backingFormat: 'qcow2' })
 * ```
 */
export function create(target: Target, options?: CreateOptions): Promise<CreateResult> {
  return atCaller(create, async () => {
    const checked = checkOptions('create', options, RULES)
    if (checked.signal?.aborted) throw cancelled(checked.signal.reason)
    const located = locateTarget(target)
    const spec = createSpec(checked, checked.format ?? located.extension ?? 'qcow2', located)
    if (checked.backingUnchecked !== undefined && spec.backing === undefined) throw invalid('backing', 'backingUnchecked needs backing')
    // It is closed while the new file is made, and has been when that is done.
    const closing = new Closing()
    try {
      const backing = checked.backingUnchecked ? undefined : await backingSize(located, spec, closing, checked.signal)
      const detached = checked.encryption?.detachedHeader === true
      const bytes = checked.size ?? backing ?? (detached ? 0n : undefined)
      if (bytes === undefined) throw invalid('size', 'size must be given: there is no backing file to take it from')
      const made = withEncryption(checked.encryption, checked.signal, (encryption) => {
        const whole = { ...spec, size: roundUp(bytes), ...(encryption === undefined ? {} : { encryption }) }
        return call<CreateFacts>((addon, id) => addon.create(id, targetSpec(located, checked), whole), { signal: checked.signal })
      })
      const facts = await worded(made)
      return withoutAbsent({
        path: located.path,
        format: spec.format,
        virtualSize: narrow(facts.virtualSize),
        fileSize: narrow(facts.fileSize),
      })
    } finally {
      await closing.done()
    }
  })
}

/** Layers that nobody needs any longer. */
class Closing {
  private readonly under: Promise<void>[] = []

  add(handle: Handle): void {
    const closed = closeHandle(handle)
    // Told by `done`, also if that is called later.
    closed.catch(() => {})
    this.under.push(closed)
  }

  async done(): Promise<void> {
    await Promise.all(this.under)
  }
}

/** Opens the backing file as far as it takes to know that it is one, and how large. */
async function backingSize(
  target: LocatedTarget,
  spec: { backing?: string; backingFormat?: string; dataFilePath?: string },
  closing: Closing,
  signal: AbortSignal | undefined,
): Promise<bigint | undefined> {
  if (spec.backing === undefined) return undefined
  if (hasProtocol(spec.backing)) {
    throw new Qcow2Error('ERR_QCOW2_NAME_PROTOCOL', `backing must be a plain file name: '${spec.backing}' has a protocol`, {
      details: { name: spec.backing, kind: 'backing' },
    })
  }
  const path = beside(target.path, spec.backing)
  const [facts, ...there] = await Promise.all([
    layerFacts(path, spec.backingFormat as Format, true, closing, signal),
    identityOf(target.path),
    identityOf(spec.dataFilePath),
  ])
  const replaced = there.filter((old) => old !== undefined)
  refuseReplacing(replaced, facts, path)
  if (replaced.length > 0) await refuseReplacingBelow(replaced, facts, path, closing, signal)
  return facts.virtualSize
}

/** The facts of a layer; nothing that it names is opened, and it is closed again. */
async function layerFacts(path: string, format: Format, devices: boolean, closing: Closing, signal: AbortSignal | undefined): Promise<LayerFacts> {
  const facts = await call<LayerFacts>(
    (addon, id) => addon.openLayer(id, { path, devices }, { ...layerSettings({}), format, metadataOnly: true, forCheck: false }),
    { signal },
  )
  closing.add(facts.handle)
  return facts
}

/**
 * The same for what lies further down, as far as it can be seen: what a layer names is looked at wherever it lies, but opened only in that
 * layer's folder.
 */
async function refuseReplacingBelow(
  replaced: Identity[],
  top: LayerFacts,
  path: string,
  closing: Closing,
  signal: AbortSignal | undefined,
): Promise<void> {
  let layer = { facts: top, path }
  for (let depth = 1; depth < DEEPEST; depth++) {
    const { facts } = layer
    for (const name of [facts.backingFile, facts.dataFile]) {
      if (!name || hasProtocol(name)) continue
      const named = beside(layer.path, name)
      refuseReplacing(replaced, (await identityOf(named)) ?? {}, named)
    }
    if (!facts.backingFile || facts.backingFormat !== 'qcow2') return
    const file = { kind: 'backing', name: facts.backingFile, path: beside(layer.path, facts.backingFile) } as const
    // What cannot be opened from here is not followed further.
    const passage = await sameDirectory(file, { depth: depth - 1, format: facts.format, path: layer.path }).catch(() => undefined)
    const below = passage && (await layerFacts(passage.path, 'qcow2', false, closing, signal).catch(() => undefined))
    if (passage === undefined || below === undefined) return
    layer = { facts: below, path: passage.shown }
  }
}

function refuseReplacing(replaced: Identity[], { device, inode }: Identity, path: string): void {
  if (inode === undefined || !replaced.some((old) => old.inode === inode && old.device === device)) return
  throw new Qcow2Error('ERR_QCOW2_SAME_FILE', 'neither an image nor its data file can replace a file that the image is backed by', { path })
}

async function identityOf(path: string | undefined): Promise<Identity | undefined> {
  const found = path === undefined ? undefined : await stat(path, { bigint: true }).catch(() => undefined)
  return found && { device: found.dev, inode: found.ino }
}

function roundUp(bytes: bigint): bigint {
  return ((bytes + 511n) / 512n) * 512n
}
