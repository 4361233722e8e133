/** The facts of an image as qemu-img's JSON has them. */
import type { NamedImage } from './commands/info.js'
import type { JsonObject, JsonValue } from './json.js'
import type { ImageInfo, LuksInfo, SnapshotInfo } from './library.js'

/** The object that `info --output=json` prints. Key order is not decided here. */
export function describeImage({ name, facts }: NamedImage): JsonObject {
  return {
    filename: name,
    format: facts.format,
    'virtual-size': facts.virtualSize,
    'actual-size': facts.actualSize,
    'cluster-size': facts.clusterSize,
    encrypted: facts.encrypted || undefined,
    'dirty-flag': facts.dirty,
    'backing-filename': facts.backingFile,
    'full-backing-filename': facts.fullBackingFile,
    'backing-filename-format': facts.backingFormat,
    snapshots: facts.snapshots.length > 0 ? facts.snapshots.map(describeSnapshot) : undefined,
    'format-specific': facts.format === 'raw' ? undefined : { type: facts.format, data: formatSpecific(facts) },
    children: [{ name: 'file', info: describeFile(name, facts) }],
  }
}

/** One snapshot of the list that `info` has. */
export function describeSnapshot(snapshot: SnapshotInfo): JsonObject {
  return {
    id: snapshot.id,
    name: snapshot.name,
    'vm-state-size': snapshot.vmStateSize,
    'date-sec': snapshot.dateSec,
    'date-nsec': snapshot.dateNsec,
    'vm-clock-sec': snapshot.vmClockNsec / 1_000_000_000n,
    'vm-clock-nsec': snapshot.vmClockNsec % 1_000_000_000n,
    icount: snapshot.icount,
  }
}

/** The part that only qcow2 has. Version 2 has none of the newer features, so they are not mentioned. */
export function formatSpecific(facts: ImageInfo): JsonObject {
  if (facts.format === 'luks') {
    const { format: _, ...container } = describeEncryption('luks', facts.luks)
    return container
  }
  const oldest: JsonObject = { compat: facts.compat, 'compression-type': facts.compressionType, 'refcount-bits': facts.refcountBits }
  const encrypt = facts.encryption === undefined ? undefined : describeEncryption(facts.encryption, facts.luks)
  if (facts.compat === '0.10') return { ...oldest, encrypt }
  return {
    ...oldest,
    encrypt,
    'lazy-refcounts': facts.lazyRefcounts,
    corrupt: facts.corrupt,
    'extended-l2': facts.extendedL2,
    'data-file': facts.dataFile,
    'data-file-raw': facts.dataFile === undefined ? undefined : facts.dataFileRaw,
    bitmaps: facts.bitmaps.length > 0 ? facts.bitmaps.map(describeBitmap) : undefined,
  }
}

function describeEncryption(format: 'aes' | 'luks', luks: LuksInfo | undefined): JsonObject {
  if (luks === undefined) return { format }
  return {
    format,
    'cipher-alg': luks.cipher,
    'cipher-mode': luks.cipherMode,
    'ivgen-alg': luks.ivGenerator,
    'ivgen-hash-alg': luks.ivHash,
    'hash-alg': luks.hash,
    'detached-header': luks.detachedHeader,
    'payload-offset': luks.payloadOffset,
    'master-key-iters': luks.digestIterations,
    uuid: luks.uuid,
    slots: luks.slots.map(({ active, iterations, keyOffset }) =>
      active ? { active, iters: iterations, 'key-offset': keyOffset, stripes: 4000 } : { active, 'key-offset': keyOffset },
    ),
  }
}

function describeBitmap({ name, granularity, flags }: ImageInfo['bitmaps'][number]): JsonValue {
  return { name, granularity, flags: [...flags] }
}

function describeFile(name: string, facts: ImageInfo): JsonObject {
  return {
    filename: name,
    format: 'file',
    'virtual-size': fileLength(facts),
    'actual-size': facts.actualSize,
    'dirty-flag': false,
    'format-specific': { type: 'file', data: {} },
    children: [],
  }
}

/** The file's length as a disk has it: in whole sectors. */
export function fileLength({ fileSize }: ImageInfo): bigint {
  return ((BigInt(fileSize) + 511n) / 512n) * 512n
}
