/** What `inspect` says of files that strangers have made. */
import { randomBytes } from 'node:crypto'
import { mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import test from 'ava'
import { convert, create, type InspectResult, inspect, open, type ProfileName, printable, profiles } from '../js/index.js'
import { answer } from './support/cli.js'
import { failure } from './support/fixtures.js'
import { hostileCases, IMAGE } from './support/hostile-cases.js'
import { expectedAnswers } from './support/hostile-table.js'
import { must, temporaryFolder } from './support/qemu.js'

const codes = ({ findings }: InspectResult) => findings.map(({ code }) => code)
const errors = ({ findings }: InspectResult) => findings.filter(({ severity }) => severity === 'error').map(({ code }) => code)

/** Answers that depend on a key, or on what the gate lets an image name: `inspect` asks for neither. */
const NOT_ASKED =
  /^ERR_QCOW2_(BACKING_\w+|DATA_FILE_(DENIED|NOT_REGULAR)|NAME_PROTOCOL|NOT_REGULAR|IO|CHAIN_\w+|LIMIT|SAME_FILE|ENCRYPTED|WRONG_KEY|LEGACY_ENCRYPTION|CIPHER_UNSUPPORTED|RAW_\w+|FORMAT_\w+|LOOP|TRUNCATED|UNSUPPORTED\w*)/

test('of no file of the catalogue it throws, and what opening refuses it refuses by the same code', async (t) => {
  t.timeout(120_000)
  const table = expectedAnswers()
  const parent = temporaryFolder()
  let refused = 0
  for (const { entry, name, write } of hostileCases()) {
    const folder = join(parent, 'case')
    mkdirSync(folder)
    write(folder)
    const found = await inspect(join(folder, IMAGE), { profile: 'glance' })
    const said = table.get(name)?.open ?? ''
    // Of 70 to 81, what an image names is what is wrong.
    const alone = entry < 70 || entry > 81
    if (alone && said.startsWith('ERR_') && !NOT_ASKED.test(said) && said !== 'ERR_QCOW2_NOT_QCOW2' && !found.formats.includes('qcow')) {
      t.true(codes(found).includes(said), `${name}: ${said}, not ${codes(found)}`)
      t.not(found.verdict, 'acceptable', name)
      refused++
    }
    // What a terminal could take for orders is for JSON alone.
    // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
    for (const { message } of found.findings) t.notRegex(message, /[\x00-\x08\x0b-\x1f\x7f]/, name)
    rmSync(folder, { recursive: true })
  }
  t.true(refused > 200, `only ${refused}`)
})

async function samples(): Promise<Record<string, string>> {
  const folder = temporaryFolder()
  const at = (name: string) => join(folder, name)
  const img = (...words: string[]) => must('qemu-img', words, { cwd: folder })
  writeFileSync(at('raw'), Buffer.concat([randomBytes(300_000), Buffer.alloc(1_748_576)]))
  await img('convert', '-f', 'raw', '-O', 'qcow2', 'raw', 'v3')
  await img('convert', '-f', 'raw', '-O', 'qcow2', '-o', 'compat=0.10', 'raw', 'v2')
  await img('convert', '-f', 'raw', '-c', '-O', 'qcow2', 'raw', 'zlib')
  await img('convert', '-f', 'raw', '-c', '-O', 'qcow2', '-o', 'compression_type=zstd', 'raw', 'zstd')
  await img('convert', '-f', 'raw', '-O', 'qcow2', '-o', 'extended_l2=on', 'raw', 'extended')
  await img('convert', '-f', 'raw', '-O', 'qcow2', '-o', 'cluster_size=4k,lazy_refcounts=on', 'raw', 'small')
  await img('create', '-q', '-f', 'qcow2', '-b', 'zlib', '-F', 'qcow2', 'overlay')
  await img('create', '-q', '-f', 'qcow2', '-o', 'data_file=data.raw', 'external', '2M')
  await img('create', '-q', '-f', 'qcow2', 'snapshots', '2M')
  await img('snapshot', '-c', 'one', 'snapshots')
  await img('bitmap', '--add', 'snapshots', 'b')
  for (const format of ['vdi', 'vmdk', 'vpc', 'vhdx', 'qed', 'qcow', 'parallels']) await img('create', '-q', '-f', format, format, '64M')
  await create(at('luks'), { format: 'luks', size: '1M', encryption: { secret: Buffer.from('x'), iterTime: 10 } })
  await create(at('sealed'), { size: '1M', encryption: { secret: Buffer.from('x'), iterTime: 10 } })
  const boot = readFileSync(at('raw'))
  boot[450] = 0x83
  boot[446] = 0
  boot[462] = 0
  boot[478] = 0
  boot[494] = 0
  boot[510] = 0x55
  boot[511] = 0xaa
  writeFileSync(at('mbr'), boot)
  const both = readFileSync(at('v3'))
  both.write('CD001', 32_769)
  writeFileSync(at('polyglot'), both)
  return Object.fromEntries(
    ['raw', 'v3', 'v2', 'zlib', 'zstd', 'extended', 'small', 'overlay', 'external', 'snapshots', 'luks', 'sealed', 'mbr', 'polyglot']
      .concat(['vdi', 'vmdk', 'vpc', 'vhdx', 'qed', 'qcow', 'parallels'])
      .map((name) => [name, at(name)]),
  )
}

let files: Record<string, string> = {}
test.before(async () => {
  files = await samples()
})
const file = (name: string): string => files[name] as string

test('it tells what a file is, and everything that it refers to, and opens none of that', async (t) => {
  const expected: Record<string, [string, string[]]> = {
    raw: ['raw', []],
    mbr: ['raw', ['mbr']],
    v3: ['qcow2', ['qcow2']],
    luks: ['luks', ['luks']],
    vdi: ['vdi', ['vdi']],
    vmdk: ['vmdk', ['vmdk']],
    vpc: ['vhd', ['vhd']],
    vhdx: ['vhdx', ['vhdx']],
    qed: ['qed', ['qed']],
    qcow: ['qcow', ['qcow']],
    parallels: ['parallels', ['parallels']],
    polyglot: ['qcow2', ['qcow2', 'iso']],
  }
  for (const [name, [format, formats]] of Object.entries(expected)) {
    const found = await inspect(file(name))
    t.deepEqual([found.format, found.formats], [format, formats], name)
    const known = name === 'raw' || name === 'mbr' || format === 'qcow2' || format === 'luks'
    t.is(found.verdict, name === 'polyglot' ? 'refused' : known ? 'acceptable' : 'unknown', name)
  }
  const overlay = await inspect(file('overlay'))
  t.is(overlay.facts.backingFile, 'zlib')
  t.is(overlay.facts.virtualSize, 2_048_576 + 512 - (2_048_576 % 512 || 512))
  t.deepEqual(codes(overlay), ['NAMES_BACKING_FILE'])
  const external = await inspect(file('external'))
  t.is(external.facts.dataFile, 'data.raw')
  t.deepEqual(
    external.facts.features.map(({ bit }) => bit),
    [2],
  )
  const { facts } = await inspect(file('snapshots'))
  t.deepEqual([facts.snapshots[0]?.name, facts.bitmaps], ['one', ['b']])
  const sealed = await inspect(file('sealed'))
  t.deepEqual([sealed.facts.encryption, sealed.facts.cipher], ['luks', 'aes-256-xts-plain64'])
  const small = await inspect(file('zlib'), { profile: 'dedup' })
  t.true(small.facts.compressed)
  const copy = join(temporaryFolder(), 'copy.qcow2')
  await convert(file('zlib'), copy)
  t.true(Number(small.facts.estimatedSize?.qcow2) >= statSync(copy).size)
})

/** What its three checks, and the rule of one format, say: facts about OpenStack's inspector. */
const GLANCE: Record<string, string[]> = {
  raw: [],
  mbr: [],
  v3: [],
  v2: [],
  zlib: [],
  zstd: [],
  small: [],
  snapshots: [],
  sealed: [],
  luks: [],
  vdi: [],
  vpc: [],
  vhdx: [],
  vmdk: [],
  overlay: ['GLANCE_BACKING_FILE'],
  external: ['GLANCE_DATA_FILE'],
  extended: ['GLANCE_UNKNOWN_FEATURES'],
  polyglot: ['GLANCE_SEVERAL_FORMATS'],
  qed: ['GLANCE_FORMAT'],
  parallels: [],
}

test('glance refuses what OpenStack’s inspector refuses, and nothing else', async (t) => {
  for (const [name, refused] of Object.entries(GLANCE)) {
    const found = await inspect(file(name), { profile: 'glance' })
    t.deepEqual(errors(found), refused, name)
    t.is(found.verdict, refused.length === 0 ? 'acceptable' : 'refused', name)
  }
  const changed = (change: (bytes: Buffer) => void) => {
    const bytes = readFileSync(file('v3'))
    change(bytes)
    return inspect(bytes, { profile: 'glance' })
  }
  t.true(errors(await changed((bytes) => bytes.writeUInt32BE(4, 4))).includes('GLANCE_VERSION'))
  for (const bit of [4, 5, 31, 63])
    t.true(errors(await changed((bytes) => bytes.writeBigUInt64BE(1n << BigInt(bit), 72))).includes('GLANCE_UNKNOWN_FEATURES'), `bit ${bit}`)
  for (const bit of [0, 1])
    t.false(errors(await changed((bytes) => bytes.writeBigUInt64BE(1n << BigInt(bit), 72))).includes('GLANCE_UNKNOWN_FEATURES'))
  t.true(errors(await inspect(readFileSync(file('v3')).subarray(0, 300), { profile: 'glance' })).includes('GLANCE_HEADER'))
})

test('every profile makes what it accepts, of whatever there is', async (t) => {
  t.timeout(120_000)
  const folder = temporaryFolder()
  for (const profile of Object.keys(profiles) as ProfileName[]) {
    for (const name of ['raw', 'v2', 'overlay', 'extended', 'zstd', 'snapshots', 'small']) {
      const target = join(folder, `${profile}-${name}`)
      const sourceFormat = name === 'raw' ? 'raw' : 'qcow2'
      await convert(file(name), target, { profile, sourceFormat })
      const found = await inspect(target, { profile })
      t.is(found.verdict, 'acceptable', `${profile} of ${name}: ${codes(found)}`)
      rmSync(target)
    }
  }
})

test('what a profile cannot be given is refused before anything is made', async (t) => {
  const folder = temporaryFolder()
  const target = join(folder, 'x')
  const refused = async (options: Parameters<typeof convert>[2], source = file('v3')) => (await failure(() => convert(source, target, options))).code
  t.is(await refused({ profile: 'glance', extendedL2: true }), 'ERR_QCOW2_INVALID_ARGUMENT')
  t.is(await refused({ profile: 'netbackup', compat: '0.10' }), 'ERR_QCOW2_INVALID_ARGUMENT')
  t.is(await refused({ profile: 'dedup', compression: 'zstd' }), 'ERR_QCOW2_INVALID_ARGUMENT')
  t.is(await refused({ profile: 'dedup', clusterSize: 4096 }), 'ERR_QCOW2_INVALID_ARGUMENT')
  t.is(await refused({ profile: 'firecracker', format: 'qcow2' }), 'ERR_QCOW2_INVALID_ARGUMENT')
  const huge = join(folder, 'huge.qcow2')
  await create(huge, { size: '200G' })
  t.is(await refused({ profile: 'digitalocean' }, huge), 'ERR_QCOW2_PROFILE')
  t.throws(() => statSync(target), { code: 'ENOENT' })
  // What the rules leave open is the caller's.
  await convert(file('v3'), target, { profile: 'glance', clusterSize: 4096, compression: true })
  const { facts } = await inspect(target, { profile: 'glance' })
  t.deepEqual([facts.clusterSize, facts.compressed], [4096, true])
})

test('for dedup the same input gives the same bytes, in order, and zeros take no room', async (t) => {
  const folder = temporaryFolder()
  const made = async (source: string, name: string, threads: number) => {
    await convert(source, join(folder, name), { profile: 'dedup', threads })
    return readFileSync(join(folder, name))
  }
  const one = await made(file('zlib'), 'a', 1)
  t.true(one.equals(await made(file('zlib'), 'b', 8)))
  t.true(one.equals(await made(file('v3'), 'c', 2)))
  const disk = await open(join(folder, 'a'))
  let last = 0
  for await (const run of disk.map()) {
    if (!run.data) continue
    // A hole inside of a cluster ends a run.
    t.is((Number(run.offset) - Number(run.start)) % 65536, 0)
    t.true(Number(run.offset) > last)
    last = Number(run.offset)
  }
  await disk.close()
})

test('the first bytes of a stream are enough, and it is let go', async (t) => {
  let given = 0
  let ended = false
  async function* endless(): AsyncGenerator<Uint8Array> {
    try {
      yield readFileSync(file('extended'))
      for (;;) {
        given += 65536
        yield new Uint8Array(65536)
      }
    } finally {
      ended = true
    }
  }
  const found = await inspect(endless(), { profile: 'glance', limits: { maxBytesRead: 1 << 20 } })
  t.deepEqual(errors(found), ['GLANCE_UNKNOWN_FEATURES'])
  t.false(found.facts.complete)
  t.true(given < 2 << 20)
  t.true(ended)
  const whole = await inspect(Readable.from([readFileSync(file('v3'))]), { profile: 'dedup' })
  t.deepEqual([whole.verdict, whole.facts.complete], ['acceptable', true])
  // What lies behind is not held against the image, nor for it.
  const cut = await inspect(Readable.from([readFileSync(file('zlib')).subarray(0, 70_000), new Uint8Array(1 << 20)]), {
    profile: 'dedup',
    limits: { maxBytesRead: 70_000 },
  })
  t.deepEqual([cut.verdict, errors(cut)], ['unknown', []])
  t.is((await failure(() => inspect(Readable.from(['text'])))).code, 'ERR_QCOW2_INVALID_ARGUMENT')
  t.is((await failure(() => inspect(join(temporaryFolder(), 'nothing')))).code, 'ERR_QCOW2_IO')
  t.is((await failure(() => inspect(file('v3'), { profile: 'x' as never }))).code, 'ERR_QCOW2_INVALID_ARGUMENT')
})

test('the command answers by exit code, names the rule and the mend, and reads what comes through a pipe', async (t) => {
  const cwd = temporaryFolder()
  const run = (words: string[], input?: Uint8Array) =>
    answer('qcow2', ['inspect', ...words], { cwd, ours: true, ...(input === undefined ? {} : { input }) })
  t.is((await run([file('v3')])).code, 0)
  const refused = await run(['--profile', 'glance', file('extended')])
  t.is(refused.code, 1)
  t.regex(refused.stdout, /GLANCE_UNKNOWN_FEATURES.*bit 4.*oslo\.utils/)
  t.regex(refused.stdout, /convert --profile glance .* TARGET/)
  t.is((await run([file('vmdk')])).code, 2)
  t.is((await run(['nothing'])).code, 2)
  t.is((await run(['-P', 'nothing', file('v3')])).code, 2)
  t.is((await run([])).code, 2)
  t.is((await run(['-P', 'glance', '-'], readFileSync(file('overlay')))).code, 1)
  t.is((await run(['-q', file('v3')])).stdout, '')
  const { findings, verdict } = JSON.parse((await run(['--output', 'json', '-P', 'glance', file('overlay')])).stdout)
  t.is(verdict, 'refused')
  t.true(findings.some(({ code }: { code: string }) => code === 'GLANCE_BACKING_FILE'))
  const made = await answer('qcow2', ['convert', '--profile', 'linode', file('overlay'), 'disk.raw.gz'], { cwd, ours: true })
  t.is(made.code, 0)
  t.is((await run(['-P', 'linode', 'disk.raw.gz'])).code, 0)
})

test('docs/inspect.md has every rule with its source, and no other', (t) => {
  const page = readFileSync(join(__dirname, '..', 'docs', 'inspect.md'), 'utf8')
  const listed = [...page.matchAll(/^\| `([A-Z0-9_]+)` \| ([^|]+) \|/gm)].map(([, code, severity]) => `${code} ${severity?.trim()}`)
  const rules = Object.values(profiles).flatMap((profile) => profile.rules.map(({ code, severity }) => `${code} ${severity}`))
  t.deepEqual(listed.sort(), rules.sort())
  for (const [name, { rules }] of Object.entries(profiles)) {
    t.true(page.includes(`### ${name}`), name)
    for (const { source } of rules) t.true(page.includes(source), source)
  }
})

test('names of an image are shown without what speaks to a terminal', (t) => {
  t.is(printable('a\u001b[2Jb\nc\u202ed\u2028e\u007f ä\u{1f4be}'), 'a\\u{1b}[2Jb\\u{a}c\\u{202e}d\\u{2028}e\\u{7f} ä\u{1f4be}')
})
