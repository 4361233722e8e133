/** `commit`, as a command beside qemu-img and as a call: what every layer reads as, what is said, and what a cut or kill leaves. */
import { once } from 'node:events'
import { copyFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { commit, memoryStorage, open } from '../js/index.js'
import { answer, start } from './support/cli.js'
import { must, qemu, temporaryFolder } from './support/qemu.js'
import { Twins } from './support/twins.js'

const MIB = 1 << 20
const SIZE = 4 * MIB

/** Chains by what their images are made with: the top, what lies between, the base. */
const CHAINS: Record<string, { top: string; middle?: string; base: string; sizes: [number, number, number] }> = {
  plain: { top: 'compat=1.1', base: 'compat=1.1', sizes: [SIZE, SIZE, SIZE] },
  'with a layer between, and a smaller base': {
    top: 'compat=1.1',
    middle: 'cluster_size=4k',
    base: 'cluster_size=1M',
    sizes: [SIZE, 3 * MIB, 2 * MIB],
  },
  'of version 2': { top: 'compat=0.10', middle: 'compat=0.10', base: 'compat=0.10,cluster_size=4k', sizes: [SIZE, SIZE, SIZE + MIB] },
  'with subclusters': { top: 'extended_l2=on', base: 'extended_l2=on,cluster_size=32k', sizes: [SIZE, 0, 3 * MIB] },
  'with a raw base': { top: 'cluster_size=4k', base: 'raw', sizes: [SIZE, 0, MIB + 512] },
}

type Chain = (typeof CHAINS)[string]

async function makeChain(folder: string, { top, middle, base, sizes }: Chain): Promise<void> {
  const io = (file: string, format: string, ...commands: string[]) =>
    must('qemu-io', ['-f', format, ...commands.flatMap((command) => ['-c', command]), file], { cwd: folder })
  const raw = base === 'raw'
  const [format, options] = raw ? ['raw', []] : ['qcow2', ['-o', base]]
  await must('qemu-img', ['create', '-q', '-f', format, ...options, 'base', String(sizes[2])], { cwd: folder })
  await io('base', format, 'write -P 1 0 1M', 'write -P 2 700k 33k')
  let [below, belowFormat] = ['base', format]
  const over = (name: string, made: string, size: number) =>
    must('qemu-img', ['create', '-q', '-f', 'qcow2', '-o', made, '-b', below, '-F', belowFormat, name, String(size)], { cwd: folder })
  if (middle !== undefined) {
    await over('middle', middle, sizes[1])
    await io('middle', 'qcow2', 'write -P 3 100k 300k', 'write -z 512k 128k', 'write -P 4 1M 1M')
    ;[below, belowFormat] = ['middle', 'qcow2']
  }
  await over('top', top, sizes[0])
  await io('top', 'qcow2', 'write -P 5 64k 200k', 'write -z 256k 100k', 'write -c -P 6 3M 64k', 'write -P 7 3500k 1k', 'write -z 1M 512k')
}

const imagesOf = ({ middle, base }: Chain) => [
  { name: 'top', format: 'qcow2' as const },
  ...(middle === undefined ? [] : [{ name: 'middle', format: 'qcow2' as const }]),
  { name: 'base', format: base === 'raw' ? ('raw' as const) : ('qcow2' as const) },
]

for (const [name, chain] of Object.entries(CHAINS)) {
  test(`commit of a chain ${name} does what qemu-img does to every layer, and says it in its words`, async (t) => {
    const lines = [['-f', 'qcow2'], ['-d'], ['-b', 'base'], ['-q', '-r', '1G'], ['-d', '-b', chain.middle === undefined ? 'base' : 'middle']]
    for (const line of lines) {
      const twins = await Twins.make(imagesOf(chain), (folder) => makeChain(folder, chain))
      const [before] = [await twins.bytes(twins.ours, { name: 'top', format: 'qcow2' })]
      t.deepEqual(await twins.differences(['commit', ...line, 'top']), [])
      t.true((await twins.bytes(twins.ours, { name: 'top', format: 'qcow2' })).equals(before), 'the top reads as before')
      // What is left of the top goes down too, into what has become of the base.
      t.deepEqual(await twins.differences(['commit', 'top']), [])
    }
  })
}

test('what is refused is refused in the words of qemu-img, and nothing is changed', async (t) => {
  const chain = CHAINS.plain as Chain
  const twins = await Twins.make(imagesOf(chain), (folder) => makeChain(folder, chain))
  const lines = [
    'commit',
    'commit top base',
    'commit base',
    'commit -b nothing top',
    'commit -b top top',
    'commit -b base base',
    'commit -f raw top',
    'commit -f raw -b base top',
    'commit -f foo top',
    'commit -t foo top',
    'commit -r zz top',
    'commit -r -1 top',
    'commit --image-opts -f qcow2 top',
    'commit nothing',
    'commit -z top',
    'commit --bas',
  ]
  for (const line of lines) t.deepEqual(await twins.differences(line.split(' ')), [])
  t.deepEqual(await twins.differences(['commit', '-b', '', 'top']), [])
})

test('a file that somebody uses is not written, and the message is that of qemu-img', async (t) => {
  const chain = CHAINS.plain as Chain
  for (const [file, writable] of [
    ['base', true],
    ['base', false],
    ['top', true],
  ] as const) {
    const twins = await Twins.make(imagesOf(chain), (folder) => makeChain(folder, chain))
    const users = await Promise.all([twins.ours, twins.theirs].map((folder) => open(join(folder, file), { writable })))
    const [ours, theirs] = [
      await answer('qemu-img', ['commit', 'top'], { cwd: twins.ours, ours: true }),
      await answer('qemu-img', ['commit', 'top'], { cwd: twins.theirs, ours: false }),
    ]
    t.deepEqual(ours, theirs, `${file} ${writable}`)
    t.is(ours.code, 1)
    for (const user of users) await user.close()
    t.deepEqual(await twins.differences(['commit', 'top']), [])
  }
})

test('a dirty bitmap of the base takes note of what is committed, one of the top stays as it was', async (t) => {
  const folder = temporaryFolder()
  const chain = CHAINS.plain as Chain
  await makeChain(folder, chain)
  for (const file of ['top', 'base']) await must('qemu-img', ['bitmap', '--add', file, 'b'], { cwd: folder })
  await must('qemu-io', ['-c', 'write -P 9 2M 64k', 'top'], { cwd: folder })
  await commit(join(folder, 'top'))
  const dirty = async (file: string) => {
    const disk = await open(join(folder, file), { writable: true })
    const found: [number, number][] = []
    for await (const { start, length } of disk.bitmaps.dirty('b')) found.push([Number(start), Number(length)])
    await disk.close()
    return found
  }
  t.deepEqual(await dirty('top'), [[2 * MIB, 64 << 10]])
  const inBase = await dirty('base')
  t.true(inBase.some(([start, length]) => start <= 2 * MIB && start + length >= 2 * MIB + (64 << 10)))
  t.false(
    inBase.some(([start]) => start === 0),
    'what the top does not hold is not dirty',
  )
  for (const file of ['top', 'base']) t.is((await qemu.check(join(folder, file))).code, 0)
})

test('the call tells what it did, also as JSON of the command', async (t) => {
  const chain = CHAINS['with a layer between, and a smaller base'] as Chain
  const folder = temporaryFolder()
  await makeChain(folder, chain)
  copyFileSync(join(folder, 'base'), join(folder, 'base.kept'))
  const reports: number[] = []
  const job = commit(join(folder, 'top'), { base: 'base', onProgress: ({ done }) => reports.push(Number(done)) })
  const { dataBytes, zeroBytes, ...result } = await job
  t.deepEqual(result, { base: join(folder, 'base'), depth: 2, virtualSize: SIZE, baseGrown: true, emptied: false })
  t.true(dataBytes > 500_000 && zeroBytes > 600_000)
  t.deepEqual(
    [...reports].sort((a, b) => a - b),
    reports,
  )
  t.is(reports.at(-1), SIZE)
  copyFileSync(join(folder, 'base.kept'), join(folder, 'base'))
  const { stdout } = await answer('qemu-img', ['commit', '-b', './base', '--output=json', 'top'], { cwd: folder, ours: true })
  t.deepEqual(JSON.parse(stdout), {
    filename: 'top',
    base: 'base',
    'virtual-size': SIZE,
    'data-bytes': dataBytes,
    'zero-bytes': zeroBytes,
    'base-grown': true,
    emptied: false,
  })
})

test('what makes no sense is refused by name', async (t) => {
  const chain = CHAINS['with a layer between, and a smaller base'] as Chain
  const folder = temporaryFolder()
  await makeChain(folder, chain)
  const top = join(folder, 'top')
  await t.throwsAsync(async () => commit(top, { base: 'nothing' }), { code: 'ERR_QCOW2_NOT_IN_CHAIN' })
  await t.throwsAsync(async () => commit(join(folder, 'base')), { code: 'ERR_QCOW2_NO_BACKING' })
  await t.throwsAsync(async () => commit(top, { base: 'base', drop: false }), { code: 'ERR_QCOW2_INVALID_ARGUMENT' })
  await t.throwsAsync(async () => commit(new Uint8Array(512)), { code: 'ERR_QCOW2_INVALID_ARGUMENT' })
  await t.throwsAsync(async () => commit(top, { rateLimit: 0 }), { code: 'ERR_QCOW2_INVALID_ARGUMENT' })
  await t.throwsAsync(async () => commit(top, { backingFiles: 'deny' }), { code: 'ERR_QCOW2_BACKING_DENIED' })
  await t.throwsAsync(async () => commit(memoryStorage(Buffer.alloc(1024))), { code: 'ERR_QCOW2_NOT_QCOW2' })
})

test('a commit that is cancelled or killed at any moment leaves the chain reading the same, and is begun again', async (t) => {
  const folder = temporaryFolder()
  const path = (name: string) => join(folder, name)
  await must('qemu-img', ['create', '-q', '-f', 'qcow2', 'base.0', '64M'], { cwd: folder })
  await must('qemu-io', ['-c', 'write -P 1 0 48M', 'base.0'], { cwd: folder })
  await must('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', 'base', '-F', 'qcow2', '-u', 'top.0', '96M'], { cwd: folder })
  copyFileSync(path('base.0'), path('base'))
  await must('qemu-io', ['-c', 'write -P 2 8M 64M', '-c', 'write -z 1M 4M', 'top.0'], { cwd: folder })
  await must('qemu-img', ['convert', '-O', 'raw', 'top.0', 'whole'], { cwd: folder })
  for (let round = 0; round < 10; round++) {
    for (const name of ['base', 'top']) copyFileSync(path(`${name}.0`), path(name))
    if (round % 2 === 0) {
      const child = start(['commit', 'top'], folder)
      const timer = setTimeout(() => child.kill('SIGKILL'), 60 + round * 25)
      await once(child, 'exit')
      clearTimeout(timer)
    } else {
      const job = commit(path('top'), { onProgress: ({ done }) => done > round * 6 * MIB && job.cancel() })
      await job.then(
        () => {},
        (error) => t.is(error.code, 'ERR_QCOW2_CANCELLED'),
      )
    }
    const same = async () => t.is((await qemu.tryImg('compare', path('top'), path('whole'))).code, 0, `round ${round}`)
    await same()
    const { emptied } = await commit(path('top'))
    t.true(emptied)
    await same()
    // Killed, it may leave leaks, and nothing worse.
    for (const name of ['base', 'top']) t.true([0, 3].includes((await qemu.check(path(name))).code), `round ${round}: ${name}`)
    t.is((await qemu.tryImg('compare', path('base'), path('whole'))).code, 0)
  }
})
