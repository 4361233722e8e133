/** `rebase`, as a command beside qemu-img and as a call: what the image reads as, what it names, what is said, and what a cut or kill leaves. */
import { once } from 'node:events'
import { copyFileSync, mkdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { open, rebase } from '../js/index.js'
import { answer, start } from './support/cli.js'
import { must, qemu, temporaryFolder } from './support/qemu.js'
import { Twins } from './support/twins.js'

const MIB = 1 << 20

/** What the top, the old and the new backing file are made with, and how large they are. */
const CASES: Record<string, { top: string; old: string; fresh: string; sizes: [number, number, number] }> = {
  plain: { top: 'compat=1.1', old: 'compat=1.1', fresh: 'compat=1.1', sizes: [4 * MIB, 4 * MIB, 4 * MIB] },
  'with a smaller base': { top: 'cluster_size=4k', old: 'cluster_size=64k', fresh: 'cluster_size=512', sizes: [4 * MIB, 3 * MIB, 2 * MIB] },
  'with a larger base': { top: 'compat=1.1', old: 'cluster_size=4k', fresh: 'raw', sizes: [4 * MIB, MIB, 5 * MIB] },
  'of version 2': { top: 'compat=0.10,cluster_size=4k', old: 'compat=0.10', fresh: 'compat=1.1', sizes: [4 * MIB, 3 * MIB, 4 * MIB] },
  'with subclusters': { top: 'extended_l2=on', old: 'extended_l2=on', fresh: 'cluster_size=4k', sizes: [4 * MIB, 4 * MIB, 3 * MIB] },
}

type Case = (typeof CASES)[string]

async function makeCase(folder: string, { top, old, fresh, sizes }: Case): Promise<void> {
  const make = async (name: string, options: string, size: number, more: string[], commands: string[]) => {
    const format = options === 'raw' ? 'raw' : 'qcow2'
    await must('qemu-img', ['create', '-q', '-f', format, ...(format === 'raw' ? [] : ['-o', options]), ...more, name, String(size)], { cwd: folder })
    await must('qemu-io', ['-f', format, ...commands.flatMap((command) => ['-c', command]), name], { cwd: folder })
  }
  mkdirSync(join(folder, 'sub'))
  await make('old', old, sizes[1], [], ['write -P 1 0 1M', 'write -P 2 700k 33k'])
  await make('new', fresh, sizes[2], [], ['write -P 1 0 600k', 'write -P 9 900k 100k', 'write -P 8 1500k 200k', 'write -z 100k 20k'])
  await make('sub/other', 'compat=1.1', sizes[2], [], ['write -P 3 0 64k'])
  await make(
    'top',
    top,
    sizes[0],
    ['-b', 'old', '-F', 'qcow2'],
    ['write -P 5 64k 200k', 'write -z 256k 100k', 'write -c -P 6 2560k 64k', 'write -P 7 960k 9k'],
  )
  await make('whole', 'compat=1.1', MIB, [], ['write -P 4 0 1M'])
}

const TOP = [{ name: 'top', format: 'qcow2' as const }]
const formatOf = ({ fresh }: Case) => (fresh === 'raw' ? 'raw' : 'qcow2')

for (const [name, made] of Object.entries(CASES)) {
  test(`rebase of an image ${name} does what qemu-img does, and says it in its words`, async (t) => {
    const twins = await Twins.make(TOP, (folder) => makeCase(folder, made))
    const before = await twins.bytes(twins.ours, { name: 'top', format: 'qcow2' })
    const same = async () => t.true((await twins.bytes(twins.ours, { name: 'top', format: 'qcow2' })).equals(before))
    t.deepEqual(await twins.differences(['rebase', '-b', 'new', '-F', formatOf(made), 'top']), [])
    await same()
    t.deepEqual(await twins.differences(['rebase', '-q', '-f', 'qcow2', '-b', 'sub/other', '-F', 'qcow2', 'top']), [])
    await same()
    t.deepEqual(await twins.differences(['rebase', '-b', '', 'top']), [])
    await same()
    t.deepEqual(await twins.differences(['rebase', '-b', 'new', '-F', formatOf(made), 'top']), [])
    t.deepEqual(await twins.differences(['rebase', '-u', '-b', 'old', '-F', 'qcow2', 'top']), [])
    t.deepEqual(await twins.differences(['rebase', '-u', '-b', 'nothing', '-F', 'raw', '-p', '-q', 'top'], unlinkNothing), [])
  })
}

/** The images are compared by what they read as, for which the file that is named has to be there. */
async function unlinkNothing(folder: string): Promise<void> {
  copyFileSync(join(folder, 'new'), join(folder, 'nothing'))
}

test('a file in the chain, and one in another folder, are found from the folder of the image', async (t) => {
  const made = CASES.plain as Case
  const make = async (folder: string) => {
    await makeCase(folder, made)
    await must('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', '../top', '-F', 'qcow2', 'sub/over'], { cwd: folder })
    await must('qemu-io', ['-c', 'write -P 33 1M 64k', 'sub/over'], { cwd: folder })
  }
  const twins = await Twins.make([{ name: 'sub/over', format: 'qcow2' }], make)
  const before = await twins.bytes(twins.ours, { name: 'sub/over', format: 'qcow2' })
  t.deepEqual(await twins.differences(['rebase', '-b', '../old', '-F', 'qcow2', 'sub/over']), [])
  for (const folder of [twins.ours, twins.theirs]) rmSync(join(folder, 'top'))
  t.true((await twins.bytes(twins.ours, { name: 'sub/over', format: 'qcow2' })).equals(before))
  t.deepEqual(await twins.differences(['rebase', '-b', 'other', '-F', 'qcow2', 'sub/over']), [])
  t.true((await twins.bytes(twins.ours, { name: 'sub/over', format: 'qcow2' })).equals(before))
})

test('what is refused is refused in the words of qemu-img, and nothing is changed', async (t) => {
  const twins = await Twins.make(TOP, (folder) => makeCase(folder, CASES.plain as Case))
  const lines = [
    'rebase',
    'rebase top',
    'rebase top new',
    'rebase -b new top',
    'rebase -u -b new top',
    'rebase -b nothing -F qcow2 top',
    'rebase -b nothing top',
    'rebase -b sub -F qcow2 top',
    'rebase -b top -F qcow2 top',
    'rebase -b new -F foo top',
    'rebase -u -b new -F foo top',
    'rebase -b new -F qcow2 nothing',
    'rebase -f foo -b new -F qcow2 top',
    'rebase -f raw -b new -F qcow2 top',
    'rebase -t foo -T bar -b new -F qcow2 top',
    'rebase -T bar -b new -F qcow2 top',
    'rebase --image-opts -f qcow2 -b new -F qcow2 top',
    'rebase -z top',
    'rebase --backing',
  ]
  for (const line of lines) t.deepEqual(await twins.differences(line.split(' ')), [])
  for (const folder of [twins.ours, twins.theirs]) rmSync(join(folder, 'old'))
  const [ours, theirs] = [true, false].map((ours) =>
    answer('qemu-img', ['rebase', '-b', 'new', '-F', 'qcow2', 'top'], { cwd: ours ? twins.ours : twins.theirs, ours }),
  )
  t.deepEqual(await ours, await theirs)
})

test('a file that somebody writes is not read, an image that somebody uses is not written', async (t) => {
  for (const file of ['old', 'new', 'top']) {
    const twins = await Twins.make(TOP, (folder) => makeCase(folder, CASES.plain as Case))
    const users = await Promise.all([twins.ours, twins.theirs].map((folder) => open(join(folder, file), { writable: true })))
    const words = ['rebase', '-b', 'new', '-F', 'qcow2', 'top']
    const ours = await answer('qemu-img', words, { cwd: twins.ours, ours: true })
    t.deepEqual(ours, await answer('qemu-img', words, { cwd: twins.theirs, ours: false }), file)
    t.is(ours.code, 1)
    for (const user of users) await user.close()
    t.deepEqual(await twins.differences(words), [])
  }
})

test('the call tells what it did, also as JSON of the command', async (t) => {
  const folder = temporaryFolder()
  await makeCase(folder, CASES.plain as Case)
  copyFileSync(join(folder, 'top'), join(folder, 'kept'))
  const reports: number[] = []
  const result = await rebase(join(folder, 'top'), { backing: 'new', backingFormat: 'qcow2', onProgress: ({ done }) => reports.push(Number(done)) })
  t.is(result.backing, 'new')
  t.true(result.dataBytes > 100_000 && result.zeroBytes > 100_000)
  t.deepEqual(
    [...reports].sort((a, b) => a - b),
    reports,
  )
  t.is(reports.at(-1), 4 * MIB)
  copyFileSync(join(folder, 'kept'), join(folder, 'top'))
  const { stdout } = await answer('qemu-img', ['rebase', '-b', 'new', '-F', 'qcow2', '--output=json', 'top'], { cwd: folder, ours: true })
  t.deepEqual(JSON.parse(stdout), {
    filename: 'top',
    'backing-filename': 'new',
    'data-bytes': result.dataBytes,
    'zero-bytes': result.zeroBytes,
    'compressed-clusters': 0,
  })
  const alone = await rebase(join(folder, 'top'), { backing: null })
  t.is(alone.backing, null)
  t.true(alone.dataBytes > 0)
  t.deepEqual(await rebase(join(folder, 'top'), { backing: 'no-such', backingFormat: 'raw', unsafe: true }), {
    backing: 'no-such',
    dataBytes: 0,
    zeroBytes: 0,
    compressedClusters: 0,
  })
})

test('what makes no sense is refused by name', async (t) => {
  const folder = temporaryFolder()
  await makeCase(folder, CASES.plain as Case)
  const top = join(folder, 'top')
  const refused = (options: unknown, code: string) => t.throwsAsync(async () => rebase(top, options as Parameters<typeof rebase>[1]), { code })
  await refused({}, 'ERR_QCOW2_INVALID_ARGUMENT')
  await refused({ backing: 'new' }, 'ERR_QCOW2_INVALID_ARGUMENT')
  await refused({ backing: 'top', backingFormat: 'qcow2' }, 'ERR_QCOW2_LOCKED')
  await refused({ backing: 'new', backingFormat: 'qcow2', backingFiles: 'deny' }, 'ERR_QCOW2_BACKING_DENIED')
  await refused({ backing: 'x'.repeat(1024), backingFormat: 'qcow2', unsafe: true }, 'ERR_QCOW2_BACKING_NAME_TOO_LONG')
  await t.throwsAsync(async () => rebase(join(folder, 'whole'), { format: 'raw', backing: 'new', backingFormat: 'qcow2' }), { code: 'ERR_QCOW2_RAW' })
})

test('-c compresses what is copied, and the image is as sound as the one of qemu-img', async (t) => {
  for (const name of ['plain', 'with a smaller base', 'of version 2', 'with subclusters']) {
    const twins = await Twins.make(TOP, (folder) => makeCase(folder, CASES[name] as Case))
    const before = await twins.bytes(twins.ours, { name: 'top', format: 'qcow2' })
    for (const words of [
      ['rebase', '-c', '-b', 'new', '-F', 'qcow2', 'top'],
      ['rebase', '-c', '-b', '', 'top'],
    ]) {
      // qemu-img 10.0.2 aborts where a cluster with subclusters is there in part.
      if (name === 'with subclusters') t.is((await answer('qemu-img', words, { cwd: twins.ours, ours: true })).code, 0)
      else t.deepEqual(await twins.differences(words), [], name)
    }
    t.true((await twins.bytes(twins.ours, { name: 'top', format: 'qcow2' })).equals(before), name)
    const compressed = async (folder: string) => (await qemu.check(join(folder, 'top'))).counts?.['compressed-clusters'] ?? 0
    // qemu-img compresses clusters, too, that do not differ.
    t.true((await compressed(twins.ours)) > 4, name)
    // Compressed clusters that share a host cluster are written over, given back and used again.
    const disk = await open(join(twins.ours, 'top'), { writable: true })
    for (let at = 0; at < 2 * MIB; at += 3 * 64 * 1024) await disk.write(Buffer.alloc(5000, at / 1000), { position: at })
    await disk.discard(MIB, MIB)
    await disk.close()
    t.is((await qemu.check(join(twins.ours, 'top'))).code, 0, name)
  }
})

test('a rebase that is cancelled or killed at any moment leaves the image reading the same, and is begun again', async (t) => {
  const folder = temporaryFolder()
  const path = (name: string) => join(folder, name)
  for (const [name, pattern] of [
    ['old', 1],
    ['new', 2],
  ] as const) {
    await must('qemu-img', ['create', '-q', '-f', 'qcow2', name, '96M'], { cwd: folder })
    await must('qemu-io', ['-c', `write -P ${pattern} 0 80M`, '-c', 'write -P 3 4M 4M', '-c', `write -z ${pattern * 16}M 8M`, name], { cwd: folder })
  }
  await must('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', 'old', '-F', 'qcow2', 'top.0'], { cwd: folder })
  await must('qemu-img', ['convert', '-O', 'raw', 'top.0', 'whole'], { cwd: folder })
  for (let round = 0; round < 10; round++) {
    copyFileSync(path('top.0'), path('top'))
    if (round % 2 === 0) {
      const child = start(['rebase', '-b', 'new', '-F', 'qcow2', 'top'], folder)
      const timer = setTimeout(() => child.kill('SIGKILL'), 60 + round * 25)
      await once(child, 'exit')
      clearTimeout(timer)
    } else {
      const job = rebase(path('top'), { backing: 'new', backingFormat: 'qcow2', onProgress: ({ done }) => done > round * 8 * MIB && job.cancel() })
      await job.then(
        () => {},
        (error) => t.is(error.code, 'ERR_QCOW2_CANCELLED'),
      )
    }
    const same = async () => t.is((await qemu.tryImg('compare', path('top'), path('whole'))).code, 0, `round ${round}`)
    await same()
    await rebase(path('top'), { backing: 'new', backingFormat: 'qcow2' })
    await same()
    // Killed, it may leave leaks, and nothing worse.
    t.true([0, 3].includes((await qemu.check(path('top'))).code), `round ${round}`)
    t.is((await qemu.info(path('top')))['backing-filename'], 'new')
  }
})
