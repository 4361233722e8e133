/**
 * The shape of the table of profiles.
 */

/** What can be asked of an image. */
export type Predicate =
  | { is: 'formatIn'; formats: readonly string[] }
  | { is: 'formatNotIn'; formats: readonly string[] }
  /** Of the formats that the destination looks for; a file of fewer bytes than stand beside one is not known for it. */
  | { is: 'atMostOneMark'; marks: Readonly<Record<string, number>> }
  | { is: 'noBackingFile' }
  | { is: 'backingNameIsPlain' }
  /** By the bit of version 3, whatever the version. */
  | { is: 'noDataFile' }
  | { is: 'noIncompatibleAbove'; bit: number }
  | { is: 'versionIn'; versions: readonly number[] }
  /** Bytes that a file of each format must have. */
  | { is: 'headIsWhole'; bytes: Readonly<Record<string, number>> }
  | { is: 'partitionsAreSound' }
  | { is: 'descriptorIsSound' }
  /** In small letters. */
  | { is: 'createTypeIn'; types: readonly string[] }
  | { is: 'extentsArePlain' }
  | { is: 'virtualSizeBelow'; bytes: number }
  | { is: 'fileSizeAtMost'; format: string; bytes: number }
  | { is: 'virtualSizeMultipleOf'; bytes: number }
  | { is: 'notCompressed' }
  | { is: 'notEncrypted' }
  | { is: 'clusterSizeAtLeast'; bytes: number }

/** One rule. It says nothing of files to which its predicate does not apply, such as that of clusters of a raw file. */
export interface Rule {
  code: string
  must: Predicate
  /** `warning`: not confirmed. */
  severity: 'error' | 'warning'
  message: string
  source: string
  mend?: string
}

/** A destination. */
export interface Profile {
  summary: string
  rules: readonly Rule[]
  /** What `convert` makes for it. */
  make: { format: 'qcow2' | 'raw'; gzip?: true; compat?: '1.1'; clusterSize?: number; plain?: true }
  /** What whoever uploads needs to know besides. `{required}`: bytes that it takes as qcow2; `{gibibytes}`: of the disk, rounded up. */
  notes?: readonly { code: string; message: string; source: string }[]
}
