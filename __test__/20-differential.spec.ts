/**
 * Random disks of every feature: the library beside QEMU, a flat byte model and a naive reader. `QCOW2_SEED` and `QCOW2_CASES` choose others.
 */
import { closeSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { compare, convert } from '../js/index.js'
import type { ConvertOptions } from '../js/job-types.js'
import { checkDiffers, infoDiffers, mapDiffers, measureDiffers, openOptions } from './support/against-qemu.js'
import { type DiskCase, differs, readFrom } from './support/case.js'
import { describeDifference, firstDifference } from './support/model.js'
import { readRange, withDisk } from './support/ours.js'
import { caseCount, firstSeed, Prng } from './support/prng.js'
import { must, qemu, removeFolder, temporaryFolder } from './support/qemu.js'
import { randomQemuCase } from './support/random-qemu.js'
import { randomBuiltCase } from './support/random-spec.js'
import { naiveChain } from './support/reader.js'

/** Runs `body` for many seeds, some at a time, and reports every seed that failed with its reason. */
async function forSeeds(
  t: ExecutionContext,
  first: number,
  count: number,
  body: (seed: number, folder: string) => Promise<string | undefined>,
): Promise<void> {
  t.timeout(600_000)
  const failures: string[] = []
  let next = first
  const worker = async (): Promise<void> => {
    while (next < first + count && failures.length < 8) {
      const seed = next++
      const folder = temporaryFolder()
      try {
        const wrong = await body(seed, folder)
        if (wrong !== undefined) failures.push(`QCOW2_SEED=${seed} QCOW2_CASES=1: ${wrong}`)
      } catch (error) {
        failures.push(`QCOW2_SEED=${seed} QCOW2_CASES=1: ${(error as Error).stack}`)
      }
      removeFolder(folder)
    }
  }
  await Promise.all([worker(), worker(), worker()])
  t.deepEqual(failures, [])
}

const make = (seed: number, folder: string): Promise<DiskCase> =>
  seed % 4 === 0 ? randomQemuCase(seed, folder) : Promise.resolve(randomBuiltCase(seed, folder))

const told = (made: DiskCase, wrong: string | undefined): string | undefined => (wrong === undefined ? undefined : `${wrong}\n  ${made.words}`)

/** Whole reads, then reads of odd places and lengths. */
async function readsDiffer(made: DiskCase, random: Prng): Promise<string | undefined> {
  const states = [
    { model: made.model, snapshot: undefined as string | undefined },
    ...made.snapshots.map(({ model, id }) => ({ model, snapshot: id as string | undefined })),
  ]
  for (const { model, snapshot } of states) {
    const options = snapshot === undefined ? openOptions(made) : { ...openOptions(made), snapshot }
    const wrong = await withDisk(made.path, options, async (disk) => {
      if (Number(disk.virtualSize) !== model.size) return `virtual size ${disk.virtualSize}, it is ${model.size}`
      const whole = await differs(model, random, (start, length) => readRange(disk, start, length))
      if (whole !== undefined || model.size === 0) return whole
      const small = Array.from({ length: 12 }, async () => {
        const start = random.int(model.size)
        const length = Math.min(model.size - start, random.between(1, 200_000))
        const bytes = await readRange(disk, start, length)
        const expected = model.read(start, length)
        return firstDifference(bytes, expected) === -1 ? undefined : describeDifference(bytes, expected, start)
      })
      return (await Promise.all(small)).find((one) => one !== undefined)
    })
    if (wrong !== undefined) return `${snapshot === undefined ? '' : `snapshot ${snapshot}: `}${wrong}`
  }
  return undefined
}

test('every generated disk reads as its model says, whole, in pieces and by snapshot', (t) =>
  forSeeds(t, firstSeed(10_000), caseCount(220), async (seed, folder) => {
    const made = await make(seed, folder)
    return told(made, await readsDiffer(made, new Prng(seed)))
  }))

test('the same image in memory, and inside a larger file, reads the same', (t) =>
  forSeeds(t, firstSeed(20_000), caseCount(40), async (seed, folder) => {
    const made = randomBuiltCase(seed, folder)
    if (made.layers.length > 1 || made.dataFile) return undefined
    const random = new Prng(seed)
    const bytes = readFileSync(made.path)
    const inside = join(folder, 'larger')
    const offset = random.int(5000)
    writeFileSync(inside, Buffer.concat([random.bytes(offset), bytes, random.bytes(random.int(9000))]))
    for (const source of [new Uint8Array(bytes), { path: inside, offset, size: bytes.length }]) {
      const wrong = await withDisk(source, {}, (disk) => differs(made.model, random, (start, length) => readRange(disk, start, length)))
      if (wrong !== undefined) return told(made, wrong)
    }
    return undefined
  }))

test('map, info, check and measure answer as QEMU does', (t) =>
  forSeeds(t, firstSeed(30_000), caseCount(110), async (seed, folder) => {
    let made = await make(seed, folder)
    for (let other = seed + 1_000_003; !made.qemu; other += 1_000_003) made = await make(other, folder)
    const random = new Prng(seed)
    let wrong = await mapDiffers(made)
    for (const { path, format } of made.layers) if (format === 'qcow2') wrong ??= (await infoDiffers(path)) ?? (await checkDiffers(path))
    wrong ??= await measureDiffers(made, random)
    return told(made, wrong)
  }))

/** A random target that can hold `size` bytes: the L1 table has a limit, and small clusters reach it soon. */
function randomTarget(random: Prng, size: number): ConvertOptions {
  const compat = random.chance(0.15) ? '0.10' : '1.1'
  const clusterSize = 2 ** Math.max(random.pick([9, 12, 14, 16, 16, 18, 21]), size > 2 ** 36 ? 16 : 9)
  const compression = random.pick([undefined, undefined, 'zlib', 'zstd', 'lz4'] as const)
  const options: ConvertOptions = {
    format: 'qcow2',
    compat,
    clusterSize,
    threads: random.between(1, 4),
    sparseSize: random.pick([0, 512, 4096, 4096, 65536]),
  }
  if (compat === '1.1') {
    options.refcountBits = random.pick([1, 2, 4, 8, 16, 32, 64])
    options.extendedL2 = clusterSize >= 16384 && random.chance(0.3)
    options.lazyRefcounts = random.chance(0.2)
  }
  if (compression !== undefined && (compat === '1.1' || compression === 'zlib')) options.compression = compression
  return options
}

/** Small enough that writing it out whole is quick. */
const WHOLE = 64 * 2 ** 20

test('converted to qcow2, every disk is sound and reads as before, and the threads do not show', (t) =>
  forSeeds(t, firstSeed(50_000), caseCount(90), async (seed, folder) => {
    const made = await make(seed, folder)
    const random = new Prng(seed)
    const state = random.pick([undefined, ...made.snapshots])
    const model = state?.model ?? made.model
    const options = randomTarget(random, model.size)
    if (model.size > WHOLE) options.sparseSize = 4096
    const target = join(folder, 'target.qcow2')
    const source = { ...options, sourceFormat: 'qcow2' as const, source: openOptions(made), ...(state === undefined ? {} : { snapshot: state.id }) }
    await convert(made.path, target, source)
    const words = `${JSON.stringify(options)} from ${made.words}`
    const naive = naiveChain(target)
    const wrong =
      Number(naive.size) !== model.size ? `size ${naive.size}` : await differs(model, random, (start, length) => naive.read(BigInt(start), length))
    naive.close()
    if (wrong !== undefined) return `read naively: ${wrong}\n  ${words}`
    if (options.compression !== 'lz4') {
      const { code, stderr } = await qemu.check(target)
      if (code !== 0) return `qemu-img check: ${code} ${stderr}\n  ${words}`
      if (model.size <= WHOLE) {
        const raw = join(folder, 'target.raw')
        await qemu.raw(target, raw)
        const handle = openSync(raw, 'r')
        const differing = await differs(model, random, (start, length) => readFrom(handle, start, length))
        closeSync(handle)
        if (differing !== undefined) return `read by QEMU: ${differing}\n  ${words}`
      }
    }
    const again = join(folder, 'again.qcow2')
    await convert(made.path, again, { ...source, threads: (options.threads ?? 1) === 1 ? 3 : 1 })
    return readFileSync(target).equals(readFileSync(again)) ? undefined : `other bytes with another number of threads\n  ${words}`
  }))

test('converted to raw, every disk is the model’s bytes', (t) =>
  forSeeds(t, firstSeed(70_000), caseCount(60), async (seed, folder) => {
    const made = await make(seed, folder)
    const random = new Prng(seed)
    const target = join(folder, 'target.raw')
    if (made.model.size > 2 ** 40) return undefined
    await convert(made.path, target, { sourceFormat: 'qcow2', format: 'raw', source: openOptions(made), sparseSize: random.pick([512, 4096, 65536]) })
    const handle = openSync(target, 'r')
    const wrong = await differs(made.model, random, (start, length) => readFrom(handle, start, length))
    closeSync(handle)
    if (wrong !== undefined) return told(made, wrong)
    const compared = await compare(made.path, target, { formatA: 'qcow2', formatB: 'raw', source: openOptions(made) })
    if (!compared.identical) return `compare finds a difference at ${compared.offset} (${compared.reason})\n  ${made.words}`
    if (made.qemu && made.model.size <= WHOLE) await must('qemu-img', ['compare', '-f', 'qcow2', '-F', 'raw', made.path, target], { cwd: folder })
    rmSync(target)
    return undefined
  }))
