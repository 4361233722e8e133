/** What an image names is opened only if the caller's policy says so, and a format is never guessed below the top. */
import { execFileSync } from 'node:child_process'
import { copyFile, link, mkdir, open as openFile, readFile, rename, symlink, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { Worker } from 'node:worker_threads'
import test from 'ava'
import { type BackingFiles, compare, convert, info, type LayerDescription, measure, memoryStorage, type NamedFile, open } from '../js/index.js'
import { failure, MIB, smallChain, smallModel } from './support/fixtures.js'
import { qemu, temporaryFolder } from './support/qemu.js'

/** An overlay that names any text as its backing file. */
async function naming(folder: string, name: string, format?: string): Promise<string> {
  const path = join(folder, `naming-${Math.random().toString(36).slice(2)}.qcow2`)
  await qemu.create(path, { size: MIB })
  await qemu.img('rebase', '-u', '-f', 'qcow2', ...(format === undefined ? [] : ['-F', format]), '-b', name, path)
  return path
}

/** An overlay without a recorded format: qemu-img makes none any more, so the extension is taken out by hand. */
async function withoutFormat(path: string): Promise<void> {
  const bytes = await readFile(path)
  const at = bytes.indexOf(Buffer.from([0xe2, 0x79, 0x2a, 0xca]))
  if (at < 0) throw new Error('there is no backing format extension')
  // An extension type that nobody knows is skipped.
  bytes.writeUInt32BE(0x7e577e57, at)
  await writeFile(path, bytes)
}

test('a backing file in the same folder opens', async (t) => {
  const { top } = await smallChain()
  const disk = await open(top)
  t.true((await disk.read(Buffer.alloc(8 * MIB), { position: 0 })).buffer.equals(smallModel()))
  await disk.close()
})

test('a gate that never answers is left when the signal says so', async (t) => {
  // The signal was heard only after the answer, which for a gate that asks a person may never come.
  const { folder, top } = await smallChain()
  const never: BackingFiles = () => new Promise(() => {})
  const error = await failure(() => open(top, { backingFiles: never, signal: AbortSignal.timeout(20) }))
  t.is(error.code, 'ERR_QCOW2_CANCELLED')
  t.is((error.cause as Error).name, 'TimeoutError')
  const job = convert(top, join(folder, 'never.raw'), { source: { backingFiles: never } })
  setTimeout(() => job.cancel(), 20)
  t.is((await failure(() => job)).code, 'ERR_QCOW2_CANCELLED')
  const late: BackingFiles = async () => {
    controller.abort()
    throw new Error('too late to be heard')
  }
  const controller = new AbortController()
  t.is((await failure(() => open(top, { backingFiles: late, signal: controller.signal }))).code, 'ERR_QCOW2_CANCELLED')
})

test('names that leave the folder are denied, however they leave it', async (t) => {
  const { folder, base } = await smallChain()
  const inner = join(folder, 'inner')
  await mkdir(inner)
  await symlink(base, join(inner, 'link-out.qcow2'))
  await mkdir(join(folder, 'deep'))
  await copyFile(base, join(folder, 'deep', 'base.qcow2'))
  await symlink(join(folder, 'deep'), join(inner, 'folder-link'))
  await mkdir(join(inner, 'sub'))
  await copyFile(base, join(inner, 'sub', 'base.qcow2'))
  for (const name of [
    '../base.qcow2',
    base,
    'link-out.qcow2',
    'folder-link/base.qcow2',
    'sub/base.qcow2',
    '/dev/null',
    '/etc/passwd',
    '/proc/self/mem',
  ]) {
    const path = await naming(inner, name, 'qcow2')
    const error = await failure(() => open(path))
    t.is(error.code, 'ERR_QCOW2_BACKING_DENIED', name)
    t.like(error.details, { name, kind: 'backing', role: 'backing', depth: '1' })
    t.is(error.path, path)
  }
})

test('a link to the image finds the backing file beside the link or beside the image', async (t) => {
  const { folder, top, base } = await smallChain()
  const other = temporaryFolder()
  const alias = join(other, 'alias.qcow2')
  await symlink(top, alias)
  // Relative names start at the folder of the name that was used, as with QEMU: there is nothing there yet.
  t.is((await failure(() => open(alias))).details.errno, 'ENOENT')
  await copyFile(base, join(other, 'base.qcow2'))
  const beside = await open(alias)
  t.is(beside.chain[1]?.path, join(other, 'base.qcow2'))
  await beside.close()
  // A link inside the folder, to inside the folder, leads nowhere else.
  await rename(base, join(folder, 'moved.qcow2'))
  await symlink('moved.qcow2', base)
  const inside = await open(top)
  t.true((await inside.read(Buffer.alloc(8 * MIB), { position: 0 })).buffer.equals(smallModel()))
  await inside.close()
})

test('devices, FIFOs and folders are never opened, and never wait', async (t) => {
  const folder = temporaryFolder()
  execFileSync('mkfifo', [join(folder, 'fifo')])
  await mkdir(join(folder, 'dir'))
  for (const [name, policy] of [
    ['fifo', 'same-directory'],
    ['dir', 'same-directory'],
    ['fifo', () => true],
    ['dir', () => true],
    ['/dev/zero', () => true],
    ['/dev/zero', ['/dev']],
    ['/dev/tty', () => true],
  ] as [string, BackingFiles][]) {
    const path = await naming(folder, name, 'raw')
    const error = await failure(() => open(path, { backingFiles: policy }))
    t.regex(error.code, /^ERR_QCOW2_(NOT_REGULAR|IO|BACKING_DENIED)$/, name)
  }
  t.is((await failure(() => open(join(folder, 'fifo')))).code, 'ERR_QCOW2_NOT_REGULAR')
})

test('names with a protocol are refused by every policy that does not name a path itself', async (t) => {
  const { folder, base } = await smallChain()
  await copyFile(base, join(folder, 'a:b.qcow2'))
  for (const name of ['nbd://localhost/x', 'json:{"driver":"file"}', 'file:base.qcow2', 'https://example.org/x', 'fat:/etc', 'a:b.qcow2']) {
    // qemu-img would interpret the name: it is written by hand, over one of the same length.
    const path = await naming(folder, 'x'.repeat(name.length), 'qcow2')
    const bytes = await readFile(path)
    bytes.write(name, bytes.indexOf('x'.repeat(name.length)))
    await writeFile(path, bytes)
    for (const backingFiles of ['same-directory', [folder], () => true] as BackingFiles[]) {
      t.is((await failure(() => open(path, { backingFiles }))).code, 'ERR_QCOW2_NAME_PROTOCOL', name)
    }
    const disk = await open(path, { backingFiles: () => base })
    t.is(disk.chain[1]?.path, base)
    await disk.close()
  }
  const colon = await naming(folder, './a:b.qcow2', 'qcow2')
  await (await open(colon)).close()
})

test("'deny' denies, and a list allows what is inside its folders", async (t) => {
  const { folder, top } = await smallChain()
  t.is((await failure(() => open(top, { backingFiles: 'deny' }))).code, 'ERR_QCOW2_BACKING_DENIED')
  await (await open(top, { backingFiles: [folder] })).close()
  await (await open(top, { backingFiles: [temporaryFolder(), '/'] })).close()
  t.is((await failure(() => open(top, { backingFiles: ['/nowhere', '/'] }))).details.errno, 'ENOENT')
  t.is((await failure(() => open(top, { backingFiles: [temporaryFolder()] }))).code, 'ERR_QCOW2_BACKING_DENIED')
  t.is((await failure(() => open(top, { backingFiles: [] }))).code, 'ERR_QCOW2_BACKING_DENIED')
  // A folder whose name only begins alike is another one.
  const sibling = `${folder}-sibling`
  await mkdir(sibling)
  await copyFile(join(folder, 'base.qcow2'), join(sibling, 'base.qcow2'))
  const path = await naming(folder, `../${basename(sibling)}/base.qcow2`, 'qcow2')
  t.is((await failure(() => open(path, { backingFiles: [folder] }))).code, 'ERR_QCOW2_BACKING_DENIED')
  await (await open(path, { backingFiles: [sibling] })).close()
})

test('a function sees what is named and by whom, and its answer counts', async (t) => {
  const { folder, top, base } = await smallChain()
  const seen: [NamedFile, LayerDescription][] = []
  const disk = await open(top, { backingFiles: (file, layer) => seen.push([file, layer]) > 0 })
  t.deepEqual(seen, [
    [
      { kind: 'backing', name: 'base.qcow2', path: base, format: 'qcow2' },
      { depth: 0, format: 'qcow2', path: top },
    ],
  ])
  await disk.close()
  t.is((await failure(() => open(top, { backingFiles: async () => false }))).code, 'ERR_QCOW2_BACKING_DENIED')
  const raw = join(folder, 'other.raw')
  await writeFile(raw, Buffer.alloc(8 * MIB, 4))
  const elsewhere = await open(top, { backingFiles: async () => ({ path: raw, format: 'raw' }) })
  t.is((await elsewhere.read(Buffer.alloc(1), { position: 0 })).buffer[0], 4)
  t.like(elsewhere.chain[1], { path: raw, format: 'raw' })
  await elsewhere.close()
  for (const answer of [undefined, 7, { path: raw }, { path: raw, format: 'vmdk' }, { path: 7, format: 'raw' }]) {
    t.is((await failure(() => open(top, { backingFiles: () => answer as never }))).code, 'ERR_QCOW2_INVALID_ARGUMENT')
  }
  const own = new Error('mine')
  t.is(
    await t.throwsAsync(
      open(top, {
        backingFiles: () => {
          throw own
        },
      }),
    ),
    own,
  )
})

test('a backing file without a recorded format opens only once the gate names one', async (t) => {
  const { top, base } = await smallChain()
  await withoutFormat(top)
  t.is((await failure(() => open(top))).code, 'ERR_QCOW2_BACKING_FORMAT_MISSING')
  t.is((await failure(() => open(top, { backingFiles: () => true }))).code, 'ERR_QCOW2_BACKING_FORMAT_MISSING')
  const disk = await open(top, { backingFiles: (file) => (file.format === undefined ? { path: file.path, format: 'qcow2' } : false) })
  t.is(disk.chain[1]?.path, base)
  await disk.close()
})

test('a recorded format is believed, and an unknown one refused', async (t) => {
  const { folder } = await smallChain()
  const raw = await open(await naming(folder, 'base.qcow2', 'raw'))
  // As raw, the backing file's own header is data.
  t.is((await raw.read(Buffer.alloc(4), { position: 0 })).buffer.toString('latin1'), 'QFI\xfb')
  await raw.close()
  const path = await naming(folder, 'base.qcow2', 'vmdk')
  const error = await failure(() => open(path))
  t.is(error.code, 'ERR_QCOW2_BACKING_FORMAT_UNKNOWN')
  t.is(error.details.format, 'vmdk')
})

test('loops are found at once: itself, two in a circle, hard links, links', async (t) => {
  const folder = temporaryFolder()
  const self = await naming(folder, 'self.qcow2', 'qcow2')
  await rename(self, join(folder, 'self.qcow2'))
  t.is((await failure(() => open(join(folder, 'self.qcow2')))).code, 'ERR_QCOW2_BACKING_LOOP')
  await rename(await naming(folder, 'b.qcow2', 'qcow2'), join(folder, 'a.qcow2'))
  await rename(await naming(folder, 'a.qcow2', 'qcow2'), join(folder, 'b.qcow2'))
  const error = await failure(() => open(join(folder, 'a.qcow2')))
  t.is(error.code, 'ERR_QCOW2_BACKING_LOOP')
  t.is(error.details.depth, '0')
  const hard = await naming(folder, 'hard.qcow2', 'qcow2')
  await link(hard, join(folder, 'hard.qcow2'))
  t.is((await failure(() => open(hard))).code, 'ERR_QCOW2_BACKING_LOOP')
  const soft = await naming(folder, 'soft.qcow2', 'qcow2')
  await symlink(basename(soft), join(folder, 'soft.qcow2'))
  t.is((await failure(() => open(soft))).code, 'ERR_QCOW2_BACKING_LOOP')
})

test('200 layers open, 201 do not, and a lower limit holds', async (t) => {
  const folder = temporaryFolder()
  const path = (index: number): string => join(folder, `layer-${index}.qcow2`)
  await qemu.create(path(0), { size: MIB })
  await qemu.io(path(0), ['write -P 8 64k 64k'])
  await qemu.create(path(1), { backing: 'layer-0.qcow2', cwd: folder })
  const overlay = await readFile(path(1))
  const at = overlay.indexOf('layer-0.qcow2')
  for (let index = 2; index <= 200; index++) {
    const name = `layer-${index - 1}.qcow2`
    const copy = Buffer.from(overlay)
    copy.write(name, at)
    copy.writeUInt32BE(name.length, 16)
    await writeFile(path(index), copy)
  }
  const disk = await open(path(199))
  t.is(disk.chain.length, 200)
  t.is((await disk.read(Buffer.alloc(1), { position: 65536 })).buffer[0], 8)
  await disk.close()
  const error = await failure(() => open(path(200)))
  t.is(error.code, 'ERR_QCOW2_LIMIT')
  t.like(error.details, { limit: 'maxChainDepth', allowed: '200' })
  t.is((await failure(() => open(path(3), { limits: { maxChainDepth: 3 } }))).code, 'ERR_QCOW2_LIMIT')
  await (await open(path(2), { limits: { maxChainDepth: 3 } })).close()
})

test('an external data file opens only once it is permitted', async (t) => {
  const folder = temporaryFolder()
  const path = join(folder, 'disk.qcow2')
  await qemu.create(path, { size: MIB, o: ['data_file=data.raw'], cwd: folder })
  await qemu.io(path, ['write -P 6 0 64k'])
  const denied = await failure(() => open(path))
  t.is(denied.code, 'ERR_QCOW2_DATA_FILE_DENIED')
  t.is(denied.details.name, 'data.raw')
  const disk = await open(path, { dataFile: true })
  t.is((await disk.read(Buffer.alloc(1), { position: 0 })).buffer[0], 6)
  t.is(disk.chain[0]?.dataFile, join(folder, 'data.raw'))
  for await (const run of disk.map()) if (run.data) t.is(run.path, join(folder, 'data.raw'))
  await disk.close()
  const moved = join(temporaryFolder(), 'moved.raw')
  await rename(join(folder, 'data.raw'), moved)
  t.is((await failure(() => open(path, { dataFile: true }))).details.errno, 'ENOENT')
  const named = await open(path, { dataFile: moved })
  t.is((await named.read(Buffer.alloc(1), { position: 0 })).buffer[0], 6)
  await named.close()
  await symlink(moved, join(folder, 'data.raw'))
  t.is((await failure(() => open(path, { dataFile: true }))).code, 'ERR_QCOW2_DATA_FILE_DENIED')
  const kinds: string[] = []
  const asked = await open(path, { dataFile: true, backingFiles: (file) => kinds.push(file.kind) > 0 })
  t.deepEqual(kinds, ['data'])
  await asked.close()
  t.is((await failure(() => open(path, { dataFile: path }))).code, 'ERR_QCOW2_SAME_FILE')
  t.is((await info(path)).dataFile, 'data.raw')
})

test('an image in memory has no folder: only a path helps', async (t) => {
  const { top, base } = await smallChain()
  const bytes = await readFile(top)
  t.is((await failure(() => open(bytes))).code, 'ERR_QCOW2_BACKING_DENIED')
  t.is((await failure(() => open(memoryStorage(bytes), { backingFiles: () => true }))).code, 'ERR_QCOW2_BACKING_DENIED')
  const disk = await open(bytes, { backingFiles: () => base })
  t.true((await disk.read(Buffer.alloc(8 * MIB), { position: 0 })).buffer.equals(smallModel()))
  await disk.close()
})

test('open takes qcow2 for granted whatever the name, jobs go by extension and then content', async (t) => {
  const { folder, base, top } = await smallChain()
  const img = join(folder, 'cloud.img')
  await copyFile(base, img)
  await (await open(img)).close()
  const bare = join(folder, 'bare.img')
  await writeFile(bare, Buffer.alloc(8 * MIB))
  t.is((await failure(() => open(bare))).code, 'ERR_QCOW2_NOT_QCOW2')
  t.is((await measure(img)).required, (await measure(base)).required)
  // By content, an image may name no other file.
  const named = join(folder, 'named.img')
  await copyFile(top, named)
  const refused = await failure(() => measure(named))
  t.is(refused.code, 'ERR_QCOW2_FORMAT_NOT_SAID')
  t.is(refused.details.name, 'base.qcow2')
  await measure(named, { sourceFormat: 'qcow2' })
  t.is((await failure(() => compare(named, base))).code, 'ERR_QCOW2_FORMAT_NOT_SAID')
  t.true((await compare(named, top, { formatA: 'qcow2' })).identical)
  // A raw disk may begin with what looks like an image.
  const raw = join(folder, 'guest.raw')
  await copyFile(base, raw)
  t.is((await failure(() => measure(raw))).code, 'ERR_QCOW2_FORMAT_AMBIGUOUS')
  t.is((await failure(() => convert(raw, join(folder, 'out.qcow2')))).code, 'ERR_QCOW2_FORMAT_AMBIGUOUS')
  await measure(raw, { sourceFormat: 'raw' })
  await measure(raw, { sourceFormat: 'qcow2' })
})

test('a backing file that is swapped for a link at any moment never leads out of its folder', async (t) => {
  const { folder, top, base } = await smallChain()
  const secret = join(temporaryFolder(), 'secret.qcow2')
  await qemu.create(secret, { size: 8 * MIB })
  await qemu.io(secret, ['write -P 0x5e 0 8M'])
  const [kept, bait] = [join(folder, 'kept'), join(folder, 'bait')]
  await rename(base, kept)
  await symlink(secret, bait)
  await copyFile(kept, base)
  const swap = `
    const { linkSync, renameSync, symlinkSync } = require('node:fs')
    const { workerData: { base, kept, secret } } = require('node:worker_threads')
    for (let n = 0; ; n++) {
      const next = base + n
      if (n % 2) linkSync(kept, next)
      else symlinkSync(secret, next)
      renameSync(next, base)
    }`
  const swapper = new Worker(swap, { eval: true, workerData: { base, kept, secret } })
  const outcomes: Record<string, number> = {}
  try {
    for (let round = 0; round < 400; round++) {
      const outcome = await open(top).then(
        async (disk) => {
          const { buffer } = await disk.read(Buffer.alloc(1), { position: 0 })
          await disk.close()
          return buffer[0] === 0 ? 'right' : 'leaked'
        },
        (error) => error.code,
      )
      outcomes[outcome] = (outcomes[outcome] ?? 0) + 1
    }
  } finally {
    await swapper.terminate()
  }
  t.log(outcomes)
  t.is(outcomes.leaked, undefined)
  t.true((outcomes.ERR_QCOW2_BACKING_DENIED ?? 0) > 0)
})

test('info opens nothing that is named', async (t) => {
  const folder = temporaryFolder()
  execFileSync('mkfifo', [join(folder, 'fifo')])
  const facts = await info(await naming(folder, 'fifo', 'raw'))
  t.like(facts, { backingFile: 'fifo', backingFormat: 'raw', fullBackingFile: join(folder, 'fifo') })
  const gone = await info(await naming(folder, '/nowhere/at/all', 'qcow2'))
  t.like(gone, { backingFile: '/nowhere/at/all', fullBackingFile: '/nowhere/at/all' })
})

// A chain of small sparse files whose tables are 32 MiB of holes each was opened to its end, in gigabytes of memory, before it was refused.
test('opening a chain stops at the layer whose tables pass the memory limit', async (t) => {
  const folder = temporaryFolder()
  for (let depth = 0; depth < 12; depth++) {
    const path = join(folder, `${depth}.qcow2`)
    await rename(await naming(folder, `${depth + 1}.qcow2`, 'qcow2'), path)
    const file = await openFile(path, 'r+')
    const header = Buffer.alloc(12)
    header.writeUInt32BE(1 << 22, 0)
    header.writeBigUInt64BE(1n << 20n, 4)
    await file.write(header, 0, 12, 36)
    await file.truncate(33 * MIB)
    await file.close()
  }
  const error = await failure(() => open(join(folder, '0.qcow2')))
  t.deepEqual(error.details, { limit: 'maxMemory', allowed: String(256 * MIB), wanted: String(9 * 32 * MIB) })
  const small = await failure(() => open(join(folder, '0.qcow2'), { limits: { maxMemory: 64 * MIB } }))
  t.is(small.details.wanted, String(96 * MIB))
})
