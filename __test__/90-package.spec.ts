/** The package as a user gets it: packed, installed into an empty folder without a network, used from every kind of program. */
import { spawnSync } from 'node:child_process'
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'

const root = join(__dirname, '..')
const folder = mkdtempSync(join(tmpdir(), 'qcow2-package-'))
const app = join(folder, 'app')
const at = (name: string) => join(app, name)
const packages: { name: string; files: { path: string; size: number }[] }[] = []

interface Ran {
  code: number | null
  stdout: string
  stderr: string
}

function run(program: string, args: readonly string[], cwd: string = app): Ran {
  // npm hands its settings to what it runs; the npm of the empty folder is a user's, with settings of its own.
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(npm_|INIT_CWD|NODE_OPTIONS)/i.test(name)))
  const { status, stdout, stderr, error } = spawnSync(program, args, { cwd, env, encoding: 'utf8', maxBuffer: 1 << 26 })
  return { code: status, stdout, stderr: stderr + (error ? String(error) : '') }
}

function must(program: string, args: readonly string[], cwd?: string): string {
  const { code, stdout, stderr } = run(program, args, cwd)
  if (code !== 0) throw new Error(`${program} ${args.join(' ')}: exit code ${code}\n${stdout}\n${stderr}`)
  return stdout
}

/** Runs a program text under Node in the empty folder and gives its stdout, parsed. */
function program(name: string, text: string): unknown {
  writeFileSync(at(name), text)
  return JSON.parse(must(process.execPath, [name]))
}

test.before(() => {
  // Both the package and what the platform's package will be, as a release makes them.
  must(process.execPath, [join(root, 'scripts', 'pack-platforms.mjs'), '--profile', 'fast', '--out', join(folder, 'npm')], root)
  const tarballs: string[] = []
  for (const name of readdirSync(join(folder, 'npm'))) {
    const [packed] = JSON.parse(must('npm', ['pack', '--json', '--loglevel=silent', '--pack-destination', folder], join(folder, 'npm', name)))
    packages.push(packed)
    tarballs.push(join(folder, packed.filename))
  }
  mkdirSync(app)
  writeFileSync(at('package.json'), '{ "name": "app", "private": true }')
  must('npm', ['install', '--offline', '--no-audit', '--no-fund', ...tarballs])
})

test.after.always(() => rmSync(folder, { recursive: true, force: true }))

const USE = `
  await create('disk.qcow2', { size: 1048576, overwrite: true })
  const disk = await open('disk.qcow2')
  const { bytesRead, buffer } = await disk.read(new Uint8Array(16).fill(7), { position: 4096 })
  await disk.close()
  const { virtualSize } = await info('disk.qcow2')
  console.log(JSON.stringify({ virtualSize, bytesRead, zeros: buffer.every((byte) => byte === 0) }))
`
const USED = { virtualSize: 1048576, bytesRead: 16, zeros: true }

test('ESM creates, opens and reads', (t) => {
  t.deepEqual(program('use.mjs', `import { create, info, open } from 'qcow2'\n${USE}`), USED)
})

test('CommonJS creates, opens and reads', (t) => {
  t.deepEqual(program('use.cjs', `const { create, info, open } = require('qcow2')\n;(async () => {${USE}})()`), USED)
})

test('an error thrown to one kind of module is an instance of the class of the other', (t) => {
  const text = `
    import { createRequire } from 'node:module'
    import * as esm from 'qcow2'
    const cjs = createRequire(import.meta.url)('qcow2')
    const error = await esm.info('absent.qcow2').catch((error) => error)
    const other = await cjs.info('absent.qcow2').catch((error) => error)
    console.log(JSON.stringify([error instanceof cjs.Qcow2Error, other instanceof esm.Qcow2Error, esm.Qcow2Error === cjs.Qcow2Error, error.path]))`
  t.deepEqual(program('both.mjs', text), [true, true, true, 'absent.qcow2'])
})

test('ESM and CommonJS export the same names', (t) => {
  const text = `
    import { createRequire } from 'node:module'
    import * as esm from 'qcow2'
    const own = (names) => Object.keys(names).filter((name) => name !== 'default' && name !== '__esModule' && name !== 'module.exports').sort()
    console.log(JSON.stringify([own(esm), own(createRequire(import.meta.url)('qcow2'))]))`
  const [esm, cjs] = program('names.mjs', text) as [string[], string[]]
  t.deepEqual(esm, cjs)
  for (const name of ['open', 'create', 'info', 'convert', 'compare', 'check', 'measure', 'dd', 'Qcow2Error']) t.true(esm.includes(name), name)
})

const TYPED = `
  export async function use(signal: AbortSignal): Promise<number> {
    await create('a.qcow2', { size: '1M', clusterSize: 65536, signal })
    const facts: ImageInfo = await info('a.qcow2')
    const job: Job<ConvertResult> = convert('a.qcow2', 'b.qcow2', { compression: 'zstd', signal, onProgress: (p: Progress) => void p.done })
    for await (const { done, total } of job) void (done / total)
    const { compressedClusters }: ConvertResult = await job
    const disk: Disk = await open('b.qcow2', { backingFiles: (file) => file.kind === 'backing' })
    const { bytesRead }: { bytesRead: number } = await disk.read(new Uint8Array(512), { position: 0n })
    for await (const run of disk.map()) void (run.data && run.start)
    disk.createReadStream({ signal }).on('data', (chunk: Buffer) => chunk.length)
    await disk.close()
    try {
      await open('c.qcow2')
    } catch (error) {
      if (error instanceof Qcow2Error) return error.code.length
    }
    // @ts-expect-error: an unknown option is an error
    await open('c.qcow2', { writeable: true })
    // @ts-expect-error: text is no position
    await disk.read(new Uint8Array(512), { position: 'first' })
    // @ts-expect-error: a name is needed
    await info()
    return Number(compressedClusters) + bytesRead + (facts.clusterSize ?? 0)
  }
`
const VALUES = 'convert, create, Disk, info, open, Qcow2Error'
const TYPES = 'ConvertResult, ImageInfo, Job, Progress'

for (const [module, resolution, names] of [
  ['node16', 'node16', ['a.mts', 'a.cts']],
  ['nodenext', 'nodenext', ['a.mts', 'a.cts']],
  ['esnext', 'bundler', ['a.mts']],
] as const) {
  test(`strict TypeScript without DOM finds the types, module ${module}, resolution ${resolution}`, (t) => {
    const project = at(`types-${module}`)
    mkdirSync(project)
    // What TypeScript users of Node.js have; the package itself brings no types of Node.js.
    mkdirSync(at('node_modules/@types'), { recursive: true })
    for (const name of ['@types/node', 'undici-types']) {
      rmSync(at(`node_modules/${name}`), { force: true })
      symlinkSync(join(root, 'node_modules', name), at(`node_modules/${name}`))
    }
    for (const name of names)
      writeFileSync(join(project, name), `import { ${VALUES}, type ${TYPES.replaceAll(', ', ', type ')} } from 'qcow2'\n${TYPED}`)
    const compilerOptions = {
      ...{ module, moduleResolution: resolution, target: 'es2022', lib: ['es2022'], types: ['node'], noEmit: true },
      ...{ strict: true, exactOptionalPropertyTypes: true, noUncheckedIndexedAccess: true, verbatimModuleSyntax: false, skipLibCheck: false },
    }
    writeFileSync(join(project, 'tsconfig.json'), JSON.stringify({ compilerOptions, include: names }))
    const { code, stdout } = run(join(root, 'node_modules', '.bin', 'tsc'), ['-p', project])
    t.is(code, 0, stdout)
  })
}

test('the command runs as npm installs it', (t) => {
  const version = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')).version
  t.true(must(at('node_modules/.bin/qcow2'), ['--version']).includes(version))
  must(at('node_modules/.bin/qcow2'), ['create', '-f', 'qcow2', 'made.qcow2', '1M'])
  t.is(JSON.parse(must(at('node_modules/.bin/qcow2'), ['info', '--output=json', 'made.qcow2']))['virtual-size'], 1048576)
})

test('a link named qemu-img speaks under that name', (t) => {
  const link = at('qemu-img')
  symlinkSync(at('node_modules/.bin/qcow2'), link)
  const named = run(link, ['info', 'absent.qcow2'])
  t.is(named.code, 1)
  t.regex(named.stderr, /^qemu-img: /)
  t.regex(run(at('node_modules/.bin/qcow2'), ['info', 'absent.qcow2']).stderr, /^qcow2: /)
})

test('the package holds what is used and nothing else', (t) => {
  const main = packages.find(({ name }) => name === 'qcow2')
  const names = main?.files.map(({ path }) => path) ?? []
  t.true(names.includes('dist/index.mjs') && names.includes('dist/index.d.mts') && names.includes('dist/cli/main.js'))
  for (const name of names) {
    const fits =
      /^(dist\/[\w/.-]+\.(js|mjs|d\.ts|d\.mts)|man\/qcow2\.1|index\.(js|d\.ts)|package\.json|README\.md|CHANGELOG\.md|LICENSE-(MIT|APACHE))$/
    t.regex(name, fits)
  }
  t.deepEqual(packages.map(({ name }) => name).filter((name) => name !== 'qcow2').length, 1)
})

test('the manifest runs nothing at install, needs nothing at run time and names the platforms with its own version', (t) => {
  const manifest = JSON.parse(readFileSync(at('node_modules/qcow2/package.json'), 'utf8'))
  t.is(manifest.scripts, undefined)
  t.is(manifest.dependencies, undefined)
  t.deepEqual([...new Set(Object.values(manifest.optionalDependencies))], [manifest.version])
  t.is(readdirSync(at('node_modules')).filter((name) => !name.startsWith('.') && !/^(qcow2|@types|undici-types)/.test(name)).length, 0)
})

test.serial('importing loads no native code, and a missing binary is explained on first use', (t) => {
  const [platform] = readdirSync(at('node_modules')).filter((name) => name.startsWith('qcow2-'))
  const place = at(`node_modules/${platform}`)
  renameSync(place, `${folder}/moved`)
  try {
    writeFileSync(at('lazy.mjs'), `import { info } from 'qcow2'\nconsole.log('imported')\nawait info('disk.qcow2')`)
    const { code, stdout, stderr } = run(process.execPath, ['lazy.mjs'])
    t.is(code, 1)
    t.is(stdout, 'imported\n')
    t.true(stderr.includes(`${process.platform}-${process.arch}`))
    t.true(stderr.includes(platform as string))
    t.true(stderr.includes(at(`node_modules/qcow2/qcow2.${platform?.slice('qcow2-'.length)}.node`)))
    t.true(stderr.includes('npm install --include=optional qcow2'))
    // Words that need no native code still work; the others say it in words and not as a stack.
    t.is(run(at('node_modules/.bin/qcow2'), ['--version']).code, 0)
    const command = run(at('node_modules/.bin/qcow2'), ['info', 'disk.qcow2'])
    t.is(command.code, 1)
    t.true(command.stderr.includes('npm install --include=optional qcow2'))
    t.notRegex(command.stderr, /\n\s+at /)
  } finally {
    renameSync(`${folder}/moved`, place)
  }
})

test.serial('a binary that cannot be loaded is told apart from one that is missing', (t) => {
  const [platform] = readdirSync(at('node_modules')).filter((name) => name.startsWith('qcow2-'))
  const place = at(`node_modules/${platform}`)
  const [binary] = readdirSync(place).filter((name) => name.endsWith('.node'))
  const path = join(place, binary as string)
  renameSync(path, `${path}.good`)
  try {
    writeFileSync(path, 'not a library')
    chmodSync(path, 0o755)
    writeFileSync(at('broken.mjs'), `import { info } from 'qcow2'\nawait info('disk.qcow2')`)
    const { code, stderr } = run(process.execPath, ['broken.mjs'])
    t.is(code, 1)
    t.true(stderr.includes(path), stderr)
  } finally {
    rmSync(path)
    renameSync(`${path}.good`, path)
  }
})
