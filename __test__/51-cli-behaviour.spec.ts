/** What the command line does beside answering: pipes, signals, progress, help, and what it opens. */

import { execFile } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { copyFileSync, existsSync, linkSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { COMMANDS as ALL_COMMANDS } from '../js/cli/help.js'
import { humanSize, twoDigits } from '../js/cli/human.js'
import { formatJson, inHashOrder } from '../js/cli/json.js'
import { readSize } from '../js/cli/numbers.js'
import { answer, environment, start } from './support/cli.js'
import { must, qemu, temporaryFolder } from './support/qemu.js'

const folder = join(temporaryFolder(), 'behaviour')
mkdirSync(folder)
const run = (words: string[], input?: Uint8Array) => answer('qemu-img', words, { cwd: folder, ours: true, ...(input === undefined ? {} : { input }) })
const COMMANDS = ALL_COMMANDS.map(([name]) => name)
/** Does not compress, so that it takes its time. */
const NOISE = 64 << 20

test.before(async () => {
  await must('qemu-img', ['create', '-q', '-f', 'qcow2', 'base.q', '1M'], { cwd: folder })
  await must('qemu-io', ['-c', 'write -P 7 0 64k', 'base.q'], { cwd: folder })
  await must('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', 'base.q', '-F', 'qcow2', 'o.q'], { cwd: folder })
  await must('qemu-io', ['-c', 'write -P 8 512k 64k', 'o.q'], { cwd: folder })
  await must('qemu-img', ['convert', 'o.q', 'o.raw'], { cwd: folder })
  writeFileSync(join(folder, 'noise.raw'), randomBytes(NOISE))
})

test('every command explains itself with two examples, whose words it understands', async (t) => {
  for (const command of COMMANDS) {
    const { code, stdout, stderr } = await run([command, '--help'])
    t.is(code, 0)
    t.is(stderr, '')
    const examples = stdout.split('Examples:\n')[1]?.trim().split('\n') ?? []
    t.is(examples.length, 2, command)
    for (const example of examples) {
      const words = example.trim().split(' ').slice(1)
      const tried = await run([...words.map((word) => (/\.(qcow2|raw|img)$/.test(word) ? 'nothing-there/x' : word))])
      t.notRegex(tried.stderr, /Try '|not supported|Invalid/, example)
    }
  }
})

test('the version is told under both names', async (t) => {
  const { version } = JSON.parse(readFileSync(join(__dirname, '../package.json'), 'utf8')) as { version: string }
  t.regex((await run(['--version'])).stdout, new RegExp(`^qemu-img version 10\\.0\\.2 .*qcow2 ${version}`))
  const own = await answer('qcow2', ['-V'], { cwd: folder, ours: true })
  t.is(own.stdout, `qcow2 version ${version}\n`)
})

test('the whole path is told where the command was called by it', async (t) => {
  const path = join(environment().PATH?.split(':')[0] ?? '', 'qemu-img')
  const env = { ...process.env, LC_ALL: 'C' }
  const stderr = await new Promise<string>((done) => execFile(path, ['info', '--bar'], { cwd: folder, env }, (_, __, text) => done(text)))
  t.is(stderr, `${path} info: unrecognized option '--bar'\nTry '${path} info --help' for more info\n`)
})

test('errors stand before the output that was kept back, in one file', async (t) => {
  await must('qemu-img', ['convert', '-c', '-O', 'qcow2', 'o.raw', 'c.q'], { cwd: folder })
  const both = await answer('sh', ['-c', 'qemu-img map c.q > out.txt 2>&1; cat out.txt'], { cwd: folder, ours: true })
  t.is(both.stdout, 'qemu-img: File contains external, encrypted or compressed clusters.\nOffset          Length          Mapped to       File\n')
})

test('a reader that goes away ends the command quietly', async (t) => {
  await must('qemu-img', ['create', '-q', '-f', 'qcow2', '-o', 'cluster_size=512', 'many.q', '64M'], { cwd: folder })
  const writes = Array.from({ length: 4000 }, (_, i) => ['-c', `write -z ${i * 1024} 512`]).flat()
  await must('qemu-io', [...writes, 'many.q'], { cwd: folder })
  const gone = await answer('bash', ['-c', `qemu-img map --output=json many.q | head -c 1; echo " \${PIPESTATUS[0]}"`], { cwd: folder, ours: true })
  t.is(gone.stdout, '[ 0\n')
  t.is(gone.stderr, '')
})

test('a disk that is full for stdout is told, and not success', async (t) => {
  const full = await answer('bash', ['-c', 'qemu-img info o.q > /dev/full'], { cwd: folder, ours: true })
  t.is(full.code, 1)
  t.regex(full.stderr, /standard output/)
})

test('-p counts from 0 to 100 on one line', async (t) => {
  const { code, stdout } = await run(['convert', '-p', '-O', 'qcow2', '-c', 'noise.raw', 'progress.q'])
  t.is(code, 0)
  t.true(stdout.startsWith('    (0.00/100%)\r'))
  t.true(stdout.endsWith('    (100.00/100%)\r\n'))
  const steps = [...stdout.matchAll(/\((\d+\.\d\d)\/100%\)\r/g)].map((match) => Number(match[1]))
  t.true(steps.length > 2, stdout)
  t.deepEqual(
    steps,
    [...steps].sort((a, b) => a - b),
  )
  t.is(
    (await run(['compare', '-p', 'o.q', 'o.raw'])).stdout.replace(/\(\d\d?\.\d\d\/100%\)\r\s*/g, ''),
    '    (100.00/100%)\rImages are identical.\n\n',
  )
})

test('SIGUSR1 tells the progress on stderr, from the first moment on', async (t) => {
  const child = start(['convert', '-O', 'qcow2', '-c', '-m', '1', 'noise.raw', 'usr1.q'], folder)
  let stderr = ''
  child.stderr.on('data', (text) => {
    stderr += text
  })
  const timer = setInterval(() => child.kill('SIGUSR1'), 100)
  const [code] = await once(child, 'exit')
  clearInterval(timer)
  t.is(code, 0, stderr)
  t.regex(stderr, /^( {4}\(\d+\.\d\d\/100%\)\n)+$/)
})

for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  test(`${signal} ends a conversion by that signal and leaves nothing half-written`, async (t) => {
    const place = join(folder, signal)
    mkdirSync(place)
    copyFileSync(join(folder, 'noise.raw'), join(place, 'noise.raw'))
    writeFileSync(join(place, 'old.q'), 'an older target')
    const child = start(['convert', '-p', '-O', 'qcow2', '-c', '-m', '1', 'noise.raw', 'old.q'], place)
    // Once it reports, it writes.
    for await (const text of child.stdout) if (/\([1-9]/.test(String(text))) break
    child.kill(signal)
    const [code, by] = await once(child, 'exit')
    t.deepEqual([code, by], [null, signal])
    t.deepEqual(readdirSync(place).sort(), ['noise.raw', 'old.q'])
    t.is(readFileSync(join(place, 'old.q'), 'utf8'), 'an older target')
  })
}

test('- is standard output, raw as it reads and qcow2 whole', async (t) => {
  const raw = await answer('sh', ['-c', 'qemu-img convert o.q - | sha256sum'], { cwd: folder, ours: true })
  t.is(raw.stderr, '')
  t.is(
    raw.stdout.split(' ')[0],
    createHash('sha256')
      .update(readFileSync(join(folder, 'o.raw')))
      .digest('hex'),
  )
  const whole = await answer('sh', ['-c', 'qemu-img convert -O qcow2 -c o.q - > piped.q'], { cwd: folder, ours: true })
  t.is(whole.stderr, '')
  t.is((await qemu.tryImg('compare', join(folder, 'piped.q'), join(folder, 'o.raw'))).code, 0)
})

test('- is standard input, a pipe or a file, which may name no other file', async (t) => {
  const raw = readFileSync(join(folder, 'o.raw'))
  t.is((await run(['convert', '-O', 'qcow2', '-', 'in.q'], raw)).stderr, '')
  t.is((await qemu.tryImg('compare', join(folder, 'in.q'), join(folder, 'o.raw'))).code, 0)
  const file = await answer('sh', ['-c', 'qemu-img convert -O raw - in.raw < base.q'], { cwd: folder, ours: true })
  t.is(file.stderr, '')
  t.is((await qemu.tryImg('compare', join(folder, 'in.raw'), join(folder, 'base.q'))).code, 0)
  const overlay = await answer('sh', ['-c', 'cat o.q | qemu-img convert - stolen.raw'], { cwd: folder, ours: true })
  t.is(overlay.code, 1)
  t.false(existsSync(join(folder, 'stolen.raw')))
})

test('pipes and devices are refused at once, named by the user or by an image', async (t) => {
  await must('mkfifo', ['fifo'], { cwd: folder })
  const words = ['create', '-q', '-u', '-f', 'qcow2', '-F', 'raw']
  for (const name of ['fifo', '/dev/zero']) {
    const { code, stderr } = await run(['info', name])
    t.is(code, 1)
    t.is(stderr, `qemu-img: Could not open '${name}': 'file' driver requires '${name}' to be a regular file\n`)
    await must('qemu-img', [...words, '-b', name, 'names.q', '1M'], { cwd: folder })
    const named = await run(['convert', 'names.q', 'x'])
    t.is(named.code, 1)
    t.is(named.stderr, `qemu-img: Could not open 'names.q': Could not open backing file: 'file' driver requires '${name}' to be a regular file\n`)
  }
  for (const name of ['nbd://127.0.0.1:1/', 'json:{"driver":"null-co"}']) {
    await must('qemu-img', [...words, '-b', name, 'names.q', '1M'], { cwd: folder })
    t.is((await run(['convert', 'names.q', 'x'])).code, 1)
    t.is((await run(['info', 'names.q'])).code, 0)
  }
})

test('--backing-files narrows what an image may name', async (t) => {
  mkdirSync(join(folder, 'deep'))
  await must('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', '../base.q', '-F', 'qcow2', 'deep/o.q'], { cwd: folder })
  t.is((await run(['map', 'deep/o.q'])).code, 0)
  t.is((await run(['map', '--backing-files', 'same-directory', 'o.q'])).code, 0)
  t.is((await run(['info', '--backing-chain', '--backing-files', 'same-directory', 'o.q'])).code, 0)
  t.is((await run(['info', '--backing-files', 'deny', 'o.q'])).code, 0)
  for (const words of [
    ['info', '--backing-chain', '--backing-files=same-directory', 'deep/o.q'],
    ['info', '--backing-chain', '--backing-files=deny', 'o.q'],
    ['map', '--backing-files=same-directory', 'deep/o.q'],
    ['map', '--backing-files=deny', 'o.q'],
  ]) {
    const { code, stderr } = await run(words)
    t.is(code, 1)
    t.regex(stderr, /not opened/)
  }
  t.regex((await run(['map', '--backing-files=foo', 'o.q'])).stderr, /expects 'same-directory' or 'deny'/)
})

// `create -b o.q base.q` wrote a new image over base.q, which o.q is read with; so did `-o data_file=base.q`. Both were lost.
test('create replaces no file that its backing file needs', async (t) => {
  symlinkSync('base.q', join(folder, 'link.q'))
  linkSync(join(folder, 'base.q'), join(folder, 'hard.q'))
  const before = readFileSync(join(folder, 'base.q'))
  const overlay = ['create', '-q', '-f', 'qcow2', '-F', 'qcow2']
  const cases = [
    ['-b', 'o.q', 'base.q'],
    ['-b', 'base.q', 'link.q'],
    ['-b', 'o.q', 'link.q'],
    ['-b', 'o.q', 'hard.q'],
    ['-b', 'base.q', '-o', 'data_file=base.q', 'over.q'],
    ['-b', 'o.q', '-o', 'data_file=link.q', 'over.q', '1M'],
  ]
  for (const words of cases) {
    const { code, stderr } = await run([...overlay, ...words])
    t.is(code, 1, words.join(' '))
    t.regex(stderr, /Failed to get "write" lock/, words.join(' '))
    t.true(before.equals(readFileSync(join(folder, 'base.q'))), words.join(' '))
  }
  t.false(existsSync(join(folder, 'over.q')))
  const fine = await run([...overlay, '-b', 'o.q', 'over.q'])
  t.is(fine.code, 0, fine.stderr)
})

test('sources of different formats are each read in their own', async (t) => {
  t.is((await run(['convert', 'o.raw', 'o.q', 'base.q', 'joined.raw'])).stderr, '')
  await must('qemu-img', ['convert', 'o.raw', 'o.q', 'base.q', 'theirs.raw'], { cwd: folder })
  t.true(readFileSync(join(folder, 'joined.raw')).equals(readFileSync(join(folder, 'theirs.raw'))))
})

test('JSON has the key order of the hash table, empty lists on two lines, and ASCII only', (t) => {
  t.deepEqual(
    inHashOrder({ filename: 'a', format: 'b', 'virtual-size': 1, children: [], 'dirty-flag': false }).map(([key]) => key),
    ['children', 'virtual-size', 'filename', 'format', 'dirty-flag'],
  )
  t.is(formatJson({ a: [] }), '{\n    "a": [\n    ]\n}')
  t.is(formatJson('é"\\\u0007\n😀'), '"\\u00E9\\"\\\\\\u0007\\n\\uD83D\\uDE00"')
  t.is(formatJson(2n ** 63n), '9223372036854775808')
})

test('sizes are read and printed as C does', (t) => {
  t.deepEqual(['1.5k', '.5k', '1.M', '0x10', '0x10k', '1e3', '1.5', '-1', '-0', '16E', ' 5', '1.7G'].map(readSize), [
    1536n,
    512n,
    1048576n,
    16n,
    'invalid',
    'invalid',
    'invalid',
    'range',
    'range',
    'range',
    5n,
    1825361101n,
  ])
  t.deepEqual(
    [0, 999, 1000, 2176, 197120, 1023488, 1047552, 2n ** 63n].map((size) => humanSize(size)),
    ['0 B', '999 B', '0.977 KiB', '2.12 KiB', '192 KiB', '1e+03 KiB', '0.999 MiB', '8 EiB'],
  )
  t.deepEqual([3.125, 9.375, 50, 33.333, 0.625].map(twoDigits), ['3.12', '9.38', '50.00', '33.33', '0.62'])
})

test('compare answers as JSON too, with the same exit codes', async (t) => {
  const json = async (...words: string[]) => {
    const { code, stdout, stderr } = await run(['compare', '--output=json', ...words])
    t.is(stderr, '')
    return { code, answer: JSON.parse(stdout) as object }
  }
  t.deepEqual(await json('o.q', 'o.raw'), { code: 0, answer: { identical: true, 'sizes-differ': false } })
  t.deepEqual(await json('base.q', 'o.q'), { code: 1, answer: { identical: false, offset: 524288, reason: 'content', 'sizes-differ': false } })
  t.is((await run(['compare', '--output=xml', 'o.q', 'o.raw'])).stderr.split('\n')[0], "qemu-img: --output expects 'human' or 'json' not 'xml'")
})
