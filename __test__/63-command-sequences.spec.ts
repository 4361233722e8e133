/**
 * Commands in random order on twin chains: one folder is changed by qemu-img alone, the other by us and by qemu-img in turn. After each command
 * both have to be the same: exit code, text, every layer and snapshot as a guest sees it, facts, and a clean check by both.
 */
import { createHash } from 'node:crypto'
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { type Answer, answer } from './support/cli.js'
import { caseCount, firstSeed, Prng } from './support/prng.js'
import { type Json, must, temporaryFolder } from './support/qemu.js'
import { look } from './support/seen.js'

const STEPS = caseCount(18)
const LAYERS = ['base.q', 'mid.q', 'top.q', 'other.q'] as const

interface Kind {
  options: string
  /** Some commands are not for every kind. */
  snapshots: boolean
  bitmaps: boolean
}

const KINDS: Record<string, Kind> = {
  plain: { options: 'cluster_size=64k', snapshots: true, bitmaps: true },
  'of small clusters': { options: 'cluster_size=4k,refcount_bits=32', snapshots: true, bitmaps: true },
  'of version 2': { options: 'compat=0.10,cluster_size=8k', snapshots: true, bitmaps: false },
  'with subclusters': { options: 'cluster_size=32k,extended_l2=on', snapshots: true, bitmaps: true },
  'with lazy refcounts': { options: 'lazy_refcounts=on,cluster_size=16k', snapshots: true, bitmaps: true },
}

/** A command line without its program, or changes by qemu-io. */
type Step = { words: string[] } | { io: string[]; file: string }

class Maker {
  private names = 0
  readonly snapshots = new Set<string>()
  readonly bitmaps = new Set<string>()

  constructor(
    private readonly prng: Prng,
    private readonly kind: Kind,
  ) {}

  next(): Step {
    const { prng, kind } = this
    const choice = prng.int(100)
    if (choice < 24) return this.writes()
    if (choice < 44 && kind.snapshots) return { words: this.snapshot() }
    if (choice < 56 && kind.bitmaps) return { words: this.bitmap() }
    if (choice < 64) return { words: ['resize', 'top.q', `+${prng.int(200) * 512}`] }
    if (choice < 74) return { words: this.amend() }
    if (choice < 85) return { words: this.rebase() }
    if (choice < 92) return { words: this.commit() }
    if (choice < 96) return { words: ['check', '-q', '-r', prng.pick(['leaks', 'all']), prng.pick(LAYERS)] }
    return { words: ['convert', ...prng.pick([[], ['-c'], ['-S', '64k']]), '-O', 'qcow2', 'top.q', 'x.q'] }
  }

  private writes(): Step {
    const { prng } = this
    const io = Array.from({ length: 1 + prng.int(6) }, () => {
      const [at, length] = [prng.int(1900) * 512, (1 + prng.int(140)) * 512]
      return `${prng.pick([`write -P ${1 + prng.int(255)}`, `write -P ${1 + prng.int(255)}`, 'write -z', 'discard'])} ${at} ${length}`
    })
    return { io, file: prng.chance(0.8) ? 'top.q' : 'other.q' }
  }

  private snapshot(): string[] {
    const { prng, snapshots, bitmaps } = this
    const some = snapshots.size === 0 ? 'nothing' : prng.pick([...snapshots])
    const choice = prng.int(6)
    // qemu-img applies none while there are bitmaps; we do, and all is dirty then.
    if (choice < 3 || (choice > 3 && bitmaps.size > 0)) {
      const name = `s${++this.names}`
      snapshots.add(name)
      return ['snapshot', '-c', name, 'top.q']
    }
    if (choice === 3) {
      snapshots.delete(some)
      return ['snapshot', '-d', some, 'top.q']
    }
    return ['snapshot', '-a', some, 'top.q']
  }

  private bitmap(): string[] {
    const { prng, bitmaps } = this
    const [some, other] = [0, 0].map(() => (bitmaps.size === 0 ? 'nothing' : prng.pick([...bitmaps]))) as [string, string]
    switch (prng.int(6)) {
      case 0:
      case 1: {
        const name = `b${++this.names}`
        bitmaps.add(name)
        return ['bitmap', '--add', ...prng.pick([[], ['-g', '4k'], ['--disable']]), 'top.q', name]
      }
      case 2:
        bitmaps.delete(some)
        return ['bitmap', '--remove', 'top.q', some]
      case 3:
        return ['bitmap', '--clear', 'top.q', some]
      case 4:
        return ['bitmap', prng.pick(['--enable', '--disable']), 'top.q', some]
      default:
        return ['bitmap', '--merge', some, 'top.q', other]
    }
  }

  private amend(): string[] {
    const options = [
      'compat=1.1',
      'compat=0.10',
      'lazy_refcounts=on',
      'lazy_refcounts=off',
      'refcount_bits=16',
      'refcount_bits=64',
      'refcount_bits=8',
    ]
    // qemu-img drops the bitmaps of what becomes version 2; we refuse.
    const possible = this.bitmaps.size === 0 ? options : options.filter((option) => option !== 'compat=0.10')
    return ['amend', '-o', this.prng.pick(possible), 'top.q']
  }

  private rebase(): string[] {
    const { prng } = this
    const to = prng.pick([
      ['-b', 'mid.q'],
      ['-b', 'other.q'],
      ['-b', 'base.q'],
      ['-b', ''],
    ])
    return ['rebase', ...to, ...(to[1] === '' ? [] : ['-F', 'qcow2']), 'top.q']
  }

  private commit(): string[] {
    return ['commit', ...this.prng.pick([[], [], ['-d'], ['-b', 'base.q']]), 'top.q']
  }
}

async function makeChain(folder: string, { options }: Kind): Promise<void> {
  const cwd = { cwd: folder }
  const create = (...words: string[]) => must('qemu-img', ['create', '-q', '-f', 'qcow2', ...words], cwd)
  const io = (file: string, ...commands: string[]) => must('qemu-io', [...commands.flatMap((command) => ['-c', command]), '-f', 'qcow2', file], cwd)
  await create('-o', options, 'base.q', '1M')
  await io('base.q', 'write -P 1 0 300k', 'write -P 2 700k 64k')
  await create('-o', options, '-b', 'base.q', '-F', 'qcow2', 'mid.q')
  await io('mid.q', 'write -P 3 100k 100k', 'write -z 700k 20k')
  await create('-o', options, '-b', 'mid.q', '-F', 'qcow2', 'top.q')
  await io('top.q', 'write -P 4 150k 70k')
  await create('-o', 'cluster_size=16k', 'other.q', '900k')
  await io('other.q', 'write -P 5 0 100k', 'write -P 1 200k 200k')
}

/** What was seen of files with these bytes before: most commands change one image of the chain. */
const known = new Map<string, Record<string, Json>>()

/** Everything that decides what `file` looks like: its bytes, and those of all that may lie below it. */
function keyOf(folder: string, file: string): string {
  const hash = createHash('sha256').update(file)
  for (const name of file === 'other.q' ? [file] : LAYERS) {
    if (name !== file && (file === 'base.q' || (file === 'mid.q' && name === 'top.q'))) continue
    hash.update(readFileSync(join(folder, name)))
  }
  return hash.digest('hex')
}

/** What can be seen of a folder of images, and what checks say of them. */
async function seen(folder: string): Promise<Record<string, Json>> {
  const all = { ...(existsSync(join(folder, 'x.q')) ? await look(folder, 'x.q') : {}) }
  for (const file of LAYERS) {
    const key = keyOf(folder, file)
    const facts = known.get(key) ?? (await look(folder, file))
    known.set(key, facts)
    Object.assign(all, facts)
  }
  return all
}

async function carryOut(step: Step, cwd: string, ours: boolean): Promise<Answer> {
  if ('words' in step) return answer('qemu-img', step.words, { cwd, ours })
  // What a write reports of its speed is nobody's business.
  const outcome = await answer('qemu-io', [...step.io.flatMap((command) => ['-c', command]), '-d', 'unmap', '-f', 'qcow2', step.file], {
    cwd,
    ours: false,
  })
  return { ...outcome, stdout: '' }
}

for (const [index, [name, kind]] of Object.entries(KINDS).entries()) {
  test(`commands in random order on chains ${name} do what qemu-img does`, async (t) => {
    t.timeout(300_000)
    const folder = temporaryFolder()
    const [theirs, ours] = ['theirs', 'ours'].map((side) => join(folder, side)) as [string, string]
    mkdirSync(theirs)
    await makeChain(theirs, kind)
    cpSync(theirs, ours, { recursive: true })
    const prng = new Prng(firstSeed(5600) + index)
    const maker = new Maker(prng, kind)
    const log: string[] = []
    for (let number = 0; number < STEPS; number++) {
      const step = maker.next()
      const byUs = prng.chance(0.7)
      log.push(`${byUs ? 'ours' : 'both'}: ${'words' in step ? step.words.join(' ') : `${step.file} ${step.io.join(', ')}`}`)
      const [expected, actual] = await Promise.all([carryOut(step, theirs, false), carryOut(step, ours, byUs)])
      const about = log.join('\n')
      t.deepEqual(actual, expected, about)
      const [wanted, found] = [await seen(theirs), await seen(ours)]
      // QEMU's images need not be clean: ours have to.
      for (const key of Object.keys(found).filter((each) => each.includes(' checked by '))) {
        t.is(found[key], 'clean', `${about}\n${key}`)
        wanted[key] = 'clean'
      }
      t.deepEqual(found, wanted, about)
      for (const side of [theirs, ours]) rmSync(join(side, 'x.q'), { force: true })
    }
  })
}
