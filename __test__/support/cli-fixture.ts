/** A folder of images of all sorts, whole and broken, for the command line to be asked about. */
import { execFileSync } from 'node:child_process'
import { mkdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { must } from './qemu.js'

const SECRET = ['--object', 'secret,id=s,data=abcdef']

/** Fills a folder. Names in it are relative, as users write them. */
export async function makeFixture(folder: string): Promise<void> {
  const img = (...words: string[]) => must('qemu-img', words, { cwd: folder })
  const io = (file: string, ...commands: string[]) => must('qemu-io', [...commands.flatMap((c) => ['-c', c]), file], { cwd: folder })
  const create = (...words: string[]) => img('create', '-q', '-f', 'qcow2', ...words)
  mkdirSync(join(folder, 'sub'))
  mkdirSync(join(folder, 'dir'))
  execFileSync('mkfifo', [join(folder, 'fifo')])
  writeFileSync(join(folder, 'zero'), '')
  writeFileSync(join(folder, 'txt'), 'not an image\n')
  writeFileSync(join(folder, 'empty.raw'), '')
  truncateSync(join(folder, 'empty.raw'), 1 << 20)

  await create('base.q', '1M')
  await io('base.q', 'write -P 1 0 64k')
  await create('-b', 'base.q', '-F', 'qcow2', 'o.q', '2M')
  await io('o.q', 'write -P 2 512k 64k', 'write -z 128k 64k')
  await img('convert', '-c', '-O', 'qcow2', 'o.q', 'c.q')
  await img('convert', 'o.q', 'o.raw')
  await img('snapshot', '-c', 's1', 'o.q')
  await img('snapshot', '-c', 'second one', 'o.q')
  await create('-b', '../base.q', '-F', 'qcow2', 'sub/o.q')
  await create('-o', 'compat=0.10', 'v2.q', '3M')
  await create('-o', 'extended_l2=on,cluster_size=32k,refcount_bits=64', 'ext.q', '3M')
  await io('ext.q', 'write 0 4k', 'write 100k 9k')
  await img('convert', '-c', '-O', 'qcow2', '-o', 'compression_type=zstd,lazy_refcounts=on', 'o.raw', 'zstd.q')
  await create('-o', 'data_file=d.raw,data_file_raw=on', 'df.q', '1M')
  await io('df.q', 'write 64k 64k')
  await create('-o', 'data_file=gone.raw', 'nodata.q', '1M')
  execFileSync('rm', [join(folder, 'gone.raw')])
  await create('-o', 'encrypt.format=aes,encrypt.key-secret=s', ...SECRET, 'aes.q', '1M')
  await create('bm.q', '1M')
  await img('bitmap', '--add', 'bm.q', 'b0')
  await img('bitmap', '--add', '-g', '4096', 'bm.q', 'b1')
  await img('bitmap', '--disable', 'bm.q', 'b1')
  await create('-u', '-b', 'nothing.q', '-F', 'qcow2', 'miss.q', '1M')
  await create('-u', '-b', 'miss.q', '-F', 'qcow2', 'miss2.q', '1M')
  await create('-u', '-b', 'base.q', '-F', 'qcow2', 'loop.q', '1M')
  await img('rebase', '-u', '-b', 'loop.q', '-F', 'qcow2', 'loop.q')
  await create('-u', '-b', 'json:{"driver":"null-co"}', '-F', 'raw', 'json.q', '1M')
  await create('-u', '-b', 'txt', '-F', 'qcow2', 'badbase.q', '1M')
  await create('big.q', '5T')
  await create('v3.q', '1M')
  await io('v3.q', 'write 0 128k')
  damage(folder)
}

/** Images that are wrong in one place. The layout of `v3.q`: refcount table at 1, block at 2, L1 at 3, L2 at 4, data at 5 and 6. */
function damage(folder: string): void {
  const whole = readFileSync(join(folder, 'v3.q'))
  const patched = (name: string, ...patches: [number, number[]][]) => {
    const bytes = Buffer.from(whole)
    for (const [offset, values] of patches) bytes.set(values, offset)
    writeFileSync(join(folder, name), bytes)
  }
  const refcount = (cluster: number, count: number): [number, number[]] => [0x20000 + 2 * cluster, [0, count]]
  patched('leak.q', [0x20000 + 2 * 7, [0, 1]])
  patched('twice.q', refcount(5, 2))
  patched('low.q', refcount(5, 0))
  patched('both.q', refcount(5, 0), refcount(6, 2))
  patched('table.q', [0x10007, [1]])
  patched('dirty.q', [79, [1]])
  patched('corrupt.q', [79, [2]])
  patched('feature.q', [78, [0x81]])
  patched('reserved.q', [0x40006, [1]])
  patched('copied.q', [0x40000, [0]])
  patched('outside.q', [0x40000, [0x80, 0, 0, 0, 0x10]])
  patched('cluster.q', [23, [0x30]])
  patched('version.q', [7, [9]])
  patched('crypt.q', [35, [7]])
  patched('order.q', [99, [9]])
  patched('length.q', [103, [12]])
  patched('backing.q', [8, [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 9]])
  patched('l1entries.q', [36, [0, 0, 0, 0]])
  patched('l1offset.q', [40, [0, 0, 0, 0, 0, 0, 3, 1]])
  patched('reftable.q', [48, [0, 0, 0, 0, 0, 0, 3, 1]])
  patched('refclusters.q', [56, [0, 0, 0, 0]])
  writeFileSync(join(folder, 'short.q'), whole.subarray(0, 60))
  writeFileSync(join(folder, 'cut.q'), whole.subarray(0, 200_000))
  writeFileSync(join(folder, 'magic.q'), whole.subarray(0, 20))
}
