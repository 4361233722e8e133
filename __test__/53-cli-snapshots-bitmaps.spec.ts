/** `snapshot` and `bitmap` beside qemu-img on twin files: what the guest sees, now and in each snapshot, and what each bitmap says. */
import { mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { type Disk, open } from '../js/index.js'
import { answer } from './support/cli.js'
import { firstSeed, Prng } from './support/prng.js'
import { must, qemu, temporaryFolder } from './support/qemu.js'

const SIZE = 4 << 20
const NAMES = ['a', 'b', 'c']

class Twin {
  readonly folder: string

  constructor(
    root: string,
    readonly ours: boolean,
  ) {
    this.folder = join(root, ours ? 'ours' : 'theirs')
    mkdirSync(this.folder)
  }

  run(words: string[]) {
    return answer('qemu-img', words, { cwd: this.folder, ours: this.ours })
  }

  path(name: string): string {
    return join(this.folder, name)
  }

  /** What a guest sees now and in each snapshot, told by qemu-img. */
  async contents(file: string): Promise<string[]> {
    const { snapshots = [] } = (await qemu.info(this.path(file))) as { snapshots?: { name: string }[] }
    const out: string[] = []
    for (const name of [undefined, ...snapshots.map((snapshot) => snapshot.name)]) {
      await qemu.raw(this.path(file), this.path('raw'), ['-f', 'qcow2', ...(name === undefined ? [] : ['-l', `snapshot.name=${name}`])])
      out.push(`${name ?? ''}: ${readFileSync(this.path('raw')).toString('base64')}`)
    }
    return out
  }

  /** Name, granularity, state and dirty ranges of each bitmap. */
  async bitmaps(file: string): Promise<unknown[]> {
    const disk = (await open(this.path(file), { writable: true })) as Disk<number>
    const out: unknown[] = []
    for (const { name, granularity, enabled } of disk.bitmaps.list()) {
      const dirty: number[] = []
      for await (const { start, length } of disk.bitmaps.dirty(name)) dirty.push(start, length)
      out.push({ name, granularity, enabled, dirty })
    }
    await disk.close()
    return out
  }
}

for (const options of ['cluster_size=4k', 'cluster_size=16k,extended_l2=on,refcount_bits=32', 'compat=0.10,cluster_size=8k']) {
  test(`snapshots and bitmaps in random order, ${options}`, async (t) => {
    t.timeout(120_000)
    const root = temporaryFolder()
    const twins = [new Twin(root, false), new Twin(root, true)]
    const each = (work: (twin: Twin) => Promise<unknown>) => Promise.all(twins.map(work))
    const old = options.startsWith('compat')
    const prng = new Prng(firstSeed(5300))
    await each(async (twin) => {
      for (const file of ['x.q', 'y.q']) await qemu.create(twin.path(file), { size: SIZE, o: options.split(',') })
    })
    for (let step = 0; step < 36; step++) {
      const [file, other] = prng.pick([
        ['x.q', 'y.q'],
        ['y.q', 'x.q'],
      ]) as [string, string]
      const name = prng.pick(NAMES)
      const choice = prng.int(old ? 4 : 8)
      if (choice === 0) {
        const writes = Array.from(
          { length: 4 },
          () => `${prng.pick(['write -P 7', 'write -z', 'write -P 9'])} ${prng.int(8000) * 512} ${(1 + prng.int(100)) * 512}`,
        )
        await each((twin) => must('qemu-io', [...writes.flatMap((write) => ['-c', write]), file], { cwd: twin.folder }))
        continue
      }
      const words = [
        ['snapshot', '-c', name, file],
        ['snapshot', '-a', name, file],
        ['snapshot', '-d', name, file],
        ['bitmap', '--add', '-g', prng.pick(['512', '4k', '64k', '1M']), file, name],
        ['bitmap', ...prng.pick([['--remove'], ['--clear'], ['--disable', '--clear'], ['--enable'], ['--disable']]), file, name],
        ['bitmap', '--merge', prng.pick(NAMES), '--merge', prng.pick(NAMES), file, name],
        ['bitmap', '--merge', prng.pick(NAMES), '-b', other, '-F', 'qcow2', file, name],
      ][choice - 1] as string[]
      const [theirs, ours] = await Promise.all(twins.map((twin) => twin.run(words)))
      t.deepEqual(ours, theirs, `step ${step}: ${words.join(' ')}`)
    }
    for (const file of ['x.q', 'y.q']) {
      const [theirs, ours] = await Promise.all(twins.map((twin) => twin.contents(file)))
      t.true(theirs?.length === ours?.length && theirs?.every((one, index) => one === ours?.[index]), file)
      const [dirty, ourDirty] = await Promise.all(twins.map((twin) => twin.bitmaps(file)))
      t.deepEqual(ourDirty, dirty)
      await each(async (twin) => t.is((await qemu.check(twin.path(file))).code, 0))
    }
  })
}

test('snapshot --output=json tells what was listed or done', async (t) => {
  const twin = new Twin(temporaryFolder(), true)
  await qemu.create(twin.path('x.q'), { size: SIZE })
  const json = async (...words: string[]) => {
    const { code, stdout, stderr } = await twin.run(['snapshot', '--output=json', ...words, 'x.q'])
    t.deepEqual([code, stderr], [0, ''])
    return JSON.parse(stdout) as Record<string, unknown>
  }
  t.deepEqual(await json(), { filename: 'x.q', snapshots: [] })
  t.like(await json('-c', 'one'), { filename: 'x.q', created: { id: '1', name: 'one', 'vm-state-size': 0 } })
  t.like(await json('-l'), { snapshots: [{ id: '1', name: 'one' }] })
  t.like(await json('-a', 'one'), { applied: { id: '1' } })
  t.like(await json('-d', 'one'), { deleted: { id: '1' } })
  t.deepEqual(await json('-l'), { filename: 'x.q', snapshots: [] })
  t.like(await twin.run(['snapshot', '--output=xml', 'x.q']), { code: 1 })
})
