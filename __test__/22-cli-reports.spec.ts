/** The command line, called qemu-img, says of generated disks what qemu-img says: every byte of both streams, and the exit code. */
import { mkdirSync, symlinkSync } from 'node:fs'
import { basename, join } from 'node:path'
import test from 'ava'
import type { DiskCase } from './support/case.js'
import { caseCount, firstSeed, Prng } from './support/prng.js'
import { type Outcome, removeFolder, run, temporaryFolder } from './support/qemu.js'
import { randomQemuCase } from './support/random-qemu.js'
import { randomBuiltCase } from './support/random-spec.js'

const MAIN = join(__dirname, '..', 'dist', 'cli', 'main.js')

function commands(made: DiskCase, random: Prng): string[][] {
  const path = basename(made.path)
  const cluster = 2 ** random.pick([9, 12, 16, 16, 21])
  const lists = [
    ['info', '--output=json', '-f', 'qcow2', path],
    ['info', path],
    ['info', '--backing-chain', '--output=json', path],
    ['map', '--output=json', '-f', 'qcow2', path],
    ['map', path],
    ['check', '--output=json', path],
    ['check', path],
    ['measure', '--output=json', '-O', 'qcow2', '-o', `cluster_size=${cluster}`, path],
    ['measure', '-O', 'raw', path],
    ['snapshot', '-l', path],
  ]
  return random.shuffle(lists).slice(0, 5)
}

test('info, map, check, measure and snapshot -l print what qemu-img prints', async (t) => {
  t.timeout(600_000)
  const first = firstSeed(110_000)
  for (let seed = first, done = 0; done < caseCount(24); seed++) {
    const folder = temporaryFolder()
    const made = seed % 4 === 0 ? await randomQemuCase(seed, folder) : randomBuiltCase(seed, folder)
    if (made.qemu) {
      done++
      mkdirSync(join(folder, 'bin'))
      const ours = join(folder, 'bin', 'qemu-img')
      symlinkSync(MAIN, ours)
      for (const words of commands(made, new Prng(seed))) {
        const [mine, theirs] = await Promise.all([run(process.execPath, [ours, ...words], { cwd: folder }), run('qemu-img', words, { cwd: folder })])
        const seen = ({ code, stdout, stderr }: Outcome): object => ({ code, stdout: stdout.toString(), stderr })
        t.deepEqual(seen(mine), seen(theirs), `QCOW2_SEED=${seed} QCOW2_CASES=1: qemu-img ${words.join(' ')}; ${made.words}`)
      }
    }
    removeFolder(folder)
  }
})
