/**
 * The catalogue of hostile and damaged images, one generated file each, with the answer that is expected. Numbers are the catalogue's.
 */
import type { BuiltImage } from './image.js'

/** What a reader must do with a file. */
export type Expected =
  /** Refused by `open`, `info` and everything else. */
  | { action: 'refuse'; code: string; offset?: number; table?: string; message?: RegExp }
  /**
   * Opens and reads rightly, or with `otherBytes` as the naive reader does: another cluster's bytes, which no reader can tell from its own.
   * What is wrong is told by a notice or found by `check`; with `clean`, `check` finds nothing.
   */
  | { action: 'report'; notice?: string; finding?: string; table?: string; clean?: boolean; otherBytes?: boolean }
  /** Opens; reading the guest range fails; what lies outside of it reads rightly. */
  | { action: 'range'; code: string; start: number; length: number; offset?: number; table?: string; finding?: boolean }
  /** Opens and reads rightly; opening this snapshot fails. */
  | { action: 'snapshot'; id: string; code: string; table?: string }

export interface HostileFile {
  /** Number in the catalogue, and which of its forms. */
  name: string
  /** What the undamaged image reads as. */
  good: Uint8Array
  /** Makes the damaged file anew: hundreds of them do not live at once. */
  make(): { bytes: Buffer; expected: Expected }
}

/** Writes damage into a copy, or makes other bytes, and says what must come of it. */
export type Damage = (copy: BuiltImage) => Expected | { expected: Expected; bytes: Buffer }

export class Catalogue {
  readonly files: HostileFile[] = []

  add(name: string, image: BuiltImage, good: Uint8Array, damage: Damage): void {
    this.files.push({
      name,
      good,
      make() {
        const copy = image.copy()
        const result = damage(copy)
        return 'expected' in result ? result : { bytes: copy.bytes, expected: result }
      },
    })
  }
}
