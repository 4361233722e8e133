/** The table of internal snapshots that `info` and `snapshot -l` print. */
import { clock, humanSize, localTime } from './human.js'
import { library, type SnapshotInfo } from './library.js'

/** The table with its heading; nothing if there are no snapshots. */
export function snapshotTable(snapshots: readonly SnapshotInfo[]): string {
  if (snapshots.length === 0) return ''
  const { printable } = library()
  const lines = [row(['ID', 'TAG', 'VM_SIZE', 'DATE', 'VM_CLOCK', 'ICOUNT'])]
  for (const { id, name, vmStateSize, dateSec, vmClockNsec, icount } of snapshots) {
    lines.push(
      row([
        printable(id),
        printable(name),
        humanSize(vmStateSize),
        localTime(dateSec),
        clock(vmClockNsec),
        icount === undefined ? '--' : String(icount),
      ]),
    )
  }
  return `Snapshot list:\n${lines.join('')}`
}

function row([id = '', name = '', size = '', date = '', time = '', icount = '']: string[]): string {
  return `${id.padEnd(7)} ${padBytes(name, 16)} ${size.padStart(8)} ${date.padStart(19)} ${time.padStart(15)} ${icount.padStart(10)}\n`
}

/** Pads as C does: by bytes, not by characters. */
function padBytes(text: string, width: number): string {
  return text + ' '.repeat(Math.max(0, width - Buffer.byteLength(text)))
}
