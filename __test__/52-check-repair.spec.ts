/** `check` with repair, from JavaScript: what it mends, that it stays small, and that doing it twice changes nothing. */
import { copyFileSync, openSync, readFileSync, statSync, truncateSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { type CheckResult, check, memoryStorage } from '../js/index.js'
import { failure } from './support/fixtures.js'
import { caseCount, firstSeed, Prng } from './support/prng.js'
import { qemu, removeFolder, temporaryFolder } from './support/qemu.js'

const folder = temporaryFolder()
/** Clusters of `sound()`: refcount table, first refcount block, L1 table. */
const [TABLE, BLOCK, L1] = [1, 2, 3]
const CLUSTER = 4096

/** An image with data, a snapshot and a bitmap. */
async function sound(name: string, options = ''): Promise<string> {
  const path = join(folder, name)
  await qemu.create(path, { size: 4 << 20, o: [`cluster_size=${CLUSTER}${options}`] })
  await qemu.io(path, ['write -P 1 0 300k', 'write -P 2 1M 64k'])
  await qemu.img('snapshot', '-c', 'then', path)
  await qemu.io(path, ['write -P 3 100k 80k', 'write -z 2M 64k'])
  await qemu.img('bitmap', '--add', path, 'b')
  return path
}

async function guest(path: string): Promise<[Buffer, Buffer]> {
  // Tests run at the same time.
  const own = temporaryFolder()
  const [now, then] = [join(own, 'now.raw'), join(own, 'then.raw')]
  await qemu.raw(path, now)
  await qemu.raw(path, then, ['-f', 'qcow2', '-l', 'then'])
  const contents: [Buffer, Buffer] = [readFileSync(now), readFileSync(then)]
  removeFolder(own)
  return contents
}

function l2Tables(image: Buffer): number[] {
  const tables: number[] = []
  for (let at = L1 * CLUSTER; at < (L1 + 1) * CLUSTER; at += 8) {
    const offset = Number(image.readBigUInt64BE(at) & 0x00ff_ffff_ffff_fe00n)
    if (offset !== 0) tables.push(offset)
  }
  return tables
}

/** Damages what a repair can tell from everything else. */
function damage(image: Buffer, prng: Prng): void {
  for (let times = 1 + prng.int(6); times > 0; times--) {
    const refcount = BLOCK * CLUSTER + 2 * prng.int(200)
    const tables = l2Tables(image)
    switch (prng.int(6)) {
      case 0:
        image.writeUInt16BE(prng.int(5), refcount)
        break
      case 1:
        image.writeUInt16BE(prng.int(65536), refcount)
        break
      case 2:
        image.fill(0, BLOCK * CLUSTER + 2 * prng.int(100), BLOCK * CLUSTER + 400)
        break
      case 3: {
        const at = prng.pick(tables) + 8 * prng.int(200)
        const entry = image.readBigUInt64BE(at)
        if ((entry & 0x00ff_ffff_ffff_fe00n) !== 0n) image.writeBigUInt64BE(entry ^ (1n << 63n), at)
        break
      }
      case 4:
        image.writeBigUInt64BE(prng.pick([0n, 1n, BigInt(BLOCK * CLUSTER) + 512n, 0x00ff_0000_0000_0000n, BigInt(CLUSTER)]), TABLE * CLUSTER)
        break
      default: {
        // A cluster of zeros that claims a place which cannot be one.
        const at = prng.pick(tables) + 8 * (256 + prng.int(256))
        if (image.readBigUInt64BE(at) === 0n) image.writeBigUInt64BE(BigInt(CLUSTER * 9 + 512) | 1n, at)
      }
    }
  }
}

test('what can be told from the rest of an image is mended, counted as before by both checkers, and once is enough', async (t) => {
  t.timeout(120_000)
  const whole = await sound('sound.q')
  const expected = await guest(whole)
  const prng = new Prng(firstSeed(5200))
  const path = join(folder, 'damaged.q')
  let mended = 0
  for (let round = 0; round < caseCount(25); round++) {
    const image = readFileSync(whole)
    damage(image, prng)
    writeFileSync(path, image)
    const before = await check(path)
    const theirs = await qemu.check(path)
    if (theirs.counts !== undefined && before.checkErrors === 0) {
      t.is(before.corruptions, theirs.counts.corruptions ?? 0, `round ${round}`)
      t.is(before.leaks, theirs.counts.leaks ?? 0, `round ${round}`)
    }
    const report = await check(path, { repair: 'all' })
    const { corruptions, leaks, checkErrors, repair } = report
    t.deepEqual(
      { corruptions, leaks, checkErrors, marked: repair?.stillMarked },
      { corruptions: 0, leaks: 0, checkErrors: 0, marked: false },
      `${round}`,
    )
    t.deepEqual(repair?.found, before.findings)
    t.is(report.leaksFixed + report.corruptionsFixed > 0, before.corruptions + before.leaks > 0, `round ${round}`)
    t.is((repair?.fixed.length ?? 0) + (repair?.rebuilt ?? 0), report.leaksFixed + report.corruptionsFixed, `round ${round}`)
    mended += report.corruptionsFixed
    t.is((await qemu.check(path)).code, 0, `round ${round}`)
    const once = readFileSync(path)
    t.like(await check(path, { repair: 'all' }), { leaksFixed: 0, corruptionsFixed: 0 })
    t.true(once.equals(readFileSync(path)), `round ${round}: the second repair changes nothing`)
    const [now, then] = await guest(path)
    t.true(now.equals(expected[0]) && then.equals(expected[1]), `round ${round}: the guest sees the same`)
  }
  t.true(mended > 0)
})

test('leaks alone are given back, and what is corrupt stays as it is', async (t) => {
  const path = await sound('leaks.q')
  const image = readFileSync(path)
  const length = Math.ceil(image.length / CLUSTER)
  image.writeUInt16BE(7, BLOCK * CLUSTER + 2 * (length - 3))
  writeFileSync(path, Buffer.concat([image, Buffer.alloc((length + 2) * CLUSTER - image.length)]))
  const file = openSync(path, 'r+')
  writeSync(file, Buffer.from([0, 1, 0, 1]), 0, 4, BLOCK * CLUSTER + 2 * length)
  const report = await check(path, { repair: 'leaks' })
  t.is(report.leaks, 0)
  t.deepEqual(
    report.repair?.fixed.map(({ code, cluster }) => [code, cluster]),
    [
      ['LEAK', length - 3],
      ['LEAK', length],
      ['LEAK', length + 1],
    ].filter(([, cluster]) => report.repair?.found.some((finding) => finding.cluster === cluster)),
  )
  t.is((await qemu.check(path)).code, 0)
})

test('offsets far beyond the file make neither the file nor the memory large, checked or repaired', async (t) => {
  const whole = await sound('whole.q')
  const image = readFileSync(whole)
  const far = 0x00ff_ffff_ffff_f000n
  const [l2 = 0] = l2Tables(image)
  const places: Record<string, [number, bigint]> = {
    'L1 entry': [L1 * CLUSTER, far | (1n << 63n)],
    'L2 entry': [l2, far | (1n << 63n)],
    'refcount table entry': [TABLE * CLUSTER + 8, far],
    'last refcount table entry': [TABLE * CLUSTER + CLUSTER - 8, far],
    'compressed cluster': [l2 + 8, (1n << 62n) | 0x03ff_ffff_ffff_ff00n],
  }
  for (const [name, [at, word]] of Object.entries(places)) {
    for (const repair of [undefined, 'leaks', 'all'] as const) {
      const path = join(folder, 'far.q')
      const bytes = Buffer.from(image)
      bytes.writeBigUInt64BE(word, at)
      writeFileSync(path, bytes)
      const before = process.memoryUsage().rss
      const report = await check(path, repair === undefined ? {} : { repair })
      t.true(report.findings.length + (report.repair?.found.length ?? 0) > 0, `${name}: it is found`)
      t.true(process.memoryUsage().rss - before < 64 << 20, `${name}: memory`)
      t.true(statSync(path).size <= image.length + 64 * CLUSTER, `${name}: the file has ${statSync(path).size} bytes after ${repair}`)
    }
  }
})

test('a repair that is cancelled, or of something else, is refused and changes nothing', async (t) => {
  const path = await sound('refused.q')
  const image = readFileSync(path)
  image.writeUInt16BE(9, BLOCK * CLUSTER + 20)
  writeFileSync(path, image)
  t.is((await failure(() => check(path, { repair: 'all', signal: AbortSignal.abort() }))).code, 'ERR_QCOW2_CANCELLED')
  t.is((await failure(() => check(path, { repair: 'all', forceShare: true }))).details.argument, 'forceShare')
  t.is((await failure(() => check(image, { repair: 'all' }))).details.argument, 'source')
  t.is((await failure(() => check(path, { repair: 'every' as 'all' }))).details.argument, 'repair')
  t.is((await failure(() => check(path, { repair: 'all', format: 'raw' }))).code, 'ERR_QCOW2_NO_CHECK')
  t.true(image.equals(readFileSync(path)))
  const memory = memoryStorage(image)
  t.true((await check(memory, { repair: 'all' })).leaksFixed > 0)
  t.like(await check(memory), { corruptions: 0, leaks: 0 })
  const cut = join(folder, 'cut.q')
  copyFileSync(path, cut)
  truncateSync(cut, 60)
  t.regex((await failure(() => check(cut, { repair: 'all' }))).code, /HEADER/)
})

/** The extra data of each entry of the snapshot table, changed. */
function withExtra(image: Buffer, change: (extra: Buffer) => Buffer): void {
  const begin = Number(image.readBigUInt64BE(64))
  const table: Buffer[] = []
  let at = begin
  for (let left = image.readUInt32BE(60); left > 0; left--) {
    const names = at + 40 + image.readUInt32BE(at + 36)
    const end = names + image.readUInt16BE(at + 12) + image.readUInt16BE(at + 14)
    const fixed = Buffer.from(image.subarray(at, at + 40))
    const extra = change(image.subarray(at + 40, names))
    fixed.writeUInt32BE(extra.length, 36)
    const entry = Buffer.concat([fixed, extra, image.subarray(names, end)])
    table.push(entry, Buffer.alloc(-entry.length & 7))
    at = (end + 7) & ~7
  }
  Buffer.concat(table).copy(image, begin)
}

test('a snapshot table that nobody opens is written anew, and the snapshots are what they were', async (t) => {
  const whole = await sound('snapshots.q')
  const expected = await guest(whole)
  const changes: [string, string, (extra: Buffer) => Buffer][] = [
    ['too much', 'SNAPSHOT_EXTRA', (extra) => Buffer.concat([extra, Buffer.alloc(1500, 7)])],
    ['too little', 'SNAPSHOT_INCOMPLETE', (extra) => extra.subarray(0, 8)],
    ['none', 'SNAPSHOT_INCOMPLETE', () => Buffer.alloc(0)],
  ]
  for (const [name, code, change] of changes) {
    const path = join(folder, 'table.q')
    const image = readFileSync(whole)
    withExtra(image, change)
    writeFileSync(path, image)
    const found = await check(path)
    t.deepEqual([found.findings.map((finding) => finding.code), found.findings[0]?.snapshot], [[code], 'then'], name)
    t.like(await check(path, { repair: 'leaks' }), { corruptions: 1, corruptionsFixed: 0 }, name)
    const report = await check(path, { repair: 'all' })
    t.like(report, { corruptions: 0, leaks: 0, corruptionsFixed: 1, leaksFixed: 0 }, name)
    t.deepEqual(report.repair?.fixed, found.findings, name)
    t.is((await qemu.check(path)).code, 0, name)
    const [now, then] = await guest(path)
    t.true(now.equals(expected[0]) && then.equals(expected[1]), name)
  }
})

function withoutFlags({ corruptions, findings }: CheckResult): number {
  return corruptions - findings.filter(({ code }) => code === 'COPIED_FLAG').length
}

test('whatever is damaged, a repair makes it no worse, ends typed, and a second one finds nothing to do', async (t) => {
  const image = readFileSync(await sound('any.q'))
  const prng = new Prng(firstSeed(5210))
  // Bytes of metadata: what the guest wrote is runs of one value.
  const places = Array.from(image.keys()).filter((at) => image[at] !== 0 && (image[at] !== image[at + 1] || image[at] !== image[at - 1]))
  let mended = 0
  for (let round = 0; round < caseCount(300); round++) {
    const bytes = Buffer.from(image)
    for (let times = 1 + prng.int(4); times > 0; times--) {
      const at = prng.pick(places)
      if (prng.chance(0.5)) bytes[at] = (bytes[at] ?? 0) ^ (1 << prng.int(8))
      else bytes.writeBigUInt64BE(BigInt(prng.int(130) * CLUSTER) | (prng.chance(0.5) ? 1n << 63n : 0n), at & ~7)
    }
    const memory = memoryStorage(bytes)
    const before = await check(memory).catch((error: unknown) => (error as { code: string }).code)
    if (typeof before === 'string') {
      t.regex(before, /^ERR_QCOW2_(?!INTERNAL)/)
      continue
    }
    const report = await check(memory, { repair: 'all' })
    mended += report.corruptionsFixed
    // A flag of a cluster that has two references is cleared also where its refcount cannot be raised: that is the safe side.
    t.true(withoutFlags(report) <= withoutFlags(before), `round ${round}: ${before.corruptions} before, ${report.corruptions} after`)
    t.like(await check(memory, { repair: 'all' }), { leaksFixed: 0, corruptionsFixed: 0, corruptions: report.corruptions }, `round ${round}`)
  }
  t.true(mended > 0)
})
