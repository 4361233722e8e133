export interface Ran {
  code: number
  output: string
}

export interface Counts {
  passed: number
  failed: number
  skipped: number
  problems: string[]
}

export function readNextest(ran: Ran): Counts
export function readCargoTest(ran: Ran, options?: { mayBeEmpty?: boolean }): Counts
export function readTap(ran: Ran): Counts
export function failedBlocks(output: string): string[]
