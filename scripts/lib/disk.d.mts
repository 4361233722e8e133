export interface DiskContents {
  files: number
  bytes: number
  kind: string
}

export function makeDisk(path: string, options: { folder: string; size?: number; most?: number }): Promise<DiskContents>
export function walk(folder: string): Generator<{ path: string; size: number }>
