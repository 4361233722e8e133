/**
 * The library, loaded when it is first used: `--help`, a misspelt option and `-o help` need nothing of it. This is the only file of the command
 * line that reaches out of its folder.
 */
import type * as Library from '../index.js'

export type {
  AmendOptions,
  BenchOptions,
  BenchResult,
  CacheMode,
  CheckOptions,
  CheckResult,
  CommitResult,
  CompareResult,
  ConvertOptions,
  ConvertResult,
  CreateOptions,
  DigestAlgorithm,
  DigestManifest,
  DigestResult,
  Disk,
  Finding,
  Format,
  ImageInfo,
  InspectResult,
  Job,
  KeySlotChange,
  LayerDescription,
  LuksInfo,
  MeasureOptions,
  MeasureResult,
  NamedFile,
  NewEncryption,
  OpenOptions,
  ProfileName,
  Progress,
  Qcow2Error,
  RebaseResult,
  Run,
  SnapshotInfo,
  Source,
  VerifyResult,
} from '../index.js'

/** Everything that the package exports. */
export function library(): typeof Library {
  return require('../index.js') as typeof Library
}
