/** Passwords that take their time, or never come: whoever waits for one can stop, and nothing else waits with him. */
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { amend, convert, create, open, readSecret, type Secret } from '../js/index.js'
import { failure } from './support/fixtures.js'
import { must, temporaryFolder } from './support/qemu.js'

const PASSWORD = Buffer.from('pass')
const COMMAND = join(__dirname, '..', 'dist', 'cli', 'main.js')

async function image() {
  const folder = temporaryFolder()
  const at = (name: string) => join(folder, name)
  await create(at('disk.qcow2'), { size: '1M', encryption: { secret: PASSWORD, iterTime: 10 } })
  await must('mkfifo', [at('pipe')])
  return { folder, at }
}

/** Timers of signals do not keep a process alive. */
function soon(): AbortSignal {
  const controller = new AbortController()
  setTimeout(() => controller.abort(), 100)
  return controller.signal
}

test('a signal is heard while a password is waited for, and the image is let go of', async (t) => {
  const { at } = await image()
  const disk = at('disk.qcow2')
  const never = () => new Promise<Uint8Array>(() => {})
  const encryption = (secret: Secret) => ({ encryption: { secret, iterTime: 10 } })
  // They waited for ever, with the image locked.
  const calls: ((signal: AbortSignal) => PromiseLike<unknown>)[] = [
    (signal) => open(disk, { writable: true, secret: never, signal }),
    (signal) => open(disk, { writable: true, secret: { file: at('pipe') }, signal }),
    (signal) => create(at('new.qcow2'), { size: 512, ...encryption(never), signal }),
    (signal) => create(at('new.qcow2'), { size: 512, ...encryption({ file: at('pipe') }), signal }),
    (signal) => convert(disk, at('new.qcow2'), { source: { secret: PASSWORD }, ...encryption(never), signal }),
    (signal) => convert(disk, at('new.qcow2'), { source: { secret: never }, signal }),
    (signal) => amend(disk, { secret: PASSWORD, keySlot: { newSecret: never }, signal }),
    (signal) => amend(disk, { secret: never, keySlot: { newSecret: PASSWORD }, signal }),
    (signal) => readSecret(at('pipe'), { signal }),
  ]
  for (const call of calls) {
    const error = await failure(async () => {
      await call(soon())
    })
    t.is(error.code, 'ERR_QCOW2_CANCELLED', `${call}`)
    const again = await open(disk, { writable: true, secret: PASSWORD })
    await again.close()
  }
  t.false(existsSync(at('new.qcow2')))
})

test('a pipe is read until its writer is done, however slowly he writes', async (t) => {
  const { folder, at } = await image()
  const write = (script: string) => once(spawn('sh', ['-c', script], { cwd: folder }), 'exit')
  for (const script of ['printf pass > pipe', 'sleep 0.1; (printf pa; sleep 0.2; printf ss) > pipe', 'printf pa$(sleep 0.1)ss > pipe']) {
    const [bytes] = await Promise.all([readSecret(at('pipe')), write(script)])
    t.deepEqual(Buffer.from(bytes), PASSWORD, script)
  }
  const [disk] = await Promise.all([open(at('disk.qcow2'), { secret: { file: at('pipe') } }), write('sleep 0.1; printf pass > pipe')])
  await disk.close()
  writeFileSync(at('large'), Buffer.alloc((1 << 20) + 1))
  for (const name of [at('large'), '/dev/zero']) t.is((await failure(() => readSecret(name))).code, 'ERR_QCOW2_LIMIT', name)
  t.is((await failure(() => readSecret(folder))).details.errno, 'EISDIR')
  t.is((await failure(() => readSecret(-1))).code, 'ERR_QCOW2_INVALID_ARGUMENT')
})

test('who waits for a pipe keeps no process from ending', async (t) => {
  const { folder } = await image()
  const script = `const { open } = require(process.argv[1])
    open('disk.qcow2', { secret: { file: 'pipe' } }).catch(() => {})
    setTimeout(() => process.exit(7), 200)`
  const ended = spawnSync(process.execPath, ['-e', script, join(__dirname, '..')], { cwd: folder, timeout: 20_000 })
  t.is(ended.status, 7)
})

test('the command reads a password from whatever there is, hears Ctrl-C meanwhile, and shows nothing of it', async (t) => {
  const { folder } = await image()
  const begin = 'node=$0 command=$1; qcow2() { "$node" "$command" "$@"; };'
  const sh = (script: string) =>
    spawnSync('bash', ['-c', `${begin} ${script}`, process.execPath, COMMAND], { cwd: folder, timeout: 20_000, encoding: 'utf8' })
  const good = [
    'printf pass | qcow2 map --passphrase-fd 0 disk.qcow2',
    'printf "pass\\n" | qcow2 map --passphrase-file /dev/stdin disk.qcow2',
    'qcow2 map --passphrase-fd 3 disk.qcow2 3<<<pass',
    '(read -r line; qcow2 map --passphrase-fd 0 disk.qcow2) < <(echo no; sleep 0.3; echo pass)',
    'printf "no\\npass\\n" > two; (read -r line; qcow2 map --passphrase-fd 0 disk.qcow2) < two',
    'qcow2 map --passphrase-file <(sleep 0.2; echo pass) disk.qcow2',
    'qcow2 map --object secret,id=s,file=<(printf pass) --image-opts driver=qcow2,encrypt.key-secret=s,file.filename=disk.qcow2',
  ]
  for (const script of good) t.like(sh(script), { stderr: '', status: 0 }, script)
  const bad: [script: string, stderr: RegExp][] = [
    [': | qcow2 map --passphrase-fd 0 disk.qcow2', /Invalid password/],
    // It was read for ever.
    ['qcow2 map --passphrase-file /dev/zero disk.qcow2', /^qcow2: Unable to read \/dev\/zero: the secret is longer than 1048576 bytes\n$/],
    ['qcow2 map --passphrase-file . disk.qcow2', /^qcow2: Unable to read \.: Is a directory\n$/],
    // It was shown.
    ['qcow2 map --passphrase-fd=pass disk.qcow2', /^qcow2: --passphrase-fd expects the number of an open file\n$/],
    ['qcow2 map --passphrase-fd -1 disk.qcow2', /^qcow2: --passphrase-fd expects the number of an open file\n$/],
  ]
  for (const [script, stderr] of bad) {
    const ended = sh(script)
    t.is(ended.status, 1, script)
    t.regex(ended.stderr, stderr, script)
  }
  for (const words of [
    ['map', '--passphrase-file', 'pipe', 'disk.qcow2'],
    ['create', '-q', '--passphrase-file', 'pipe', '-f', 'qcow2', '-o', 'encrypt.format=luks', 'new.qcow2', '1M'],
    ['create', '-q', '--object', 'secret,id=s,file=pipe', '-f', 'qcow2', '-o', 'encrypt.format=luks,encrypt.key-secret=s', 'new.qcow2', '1M'],
  ]) {
    const waiting = spawn(process.execPath, [COMMAND, ...words], { cwd: folder, stdio: 'ignore' })
    const ended = once(waiting, 'exit')
    setTimeout(() => waiting.kill('SIGINT'), 1500)
    t.deepEqual(await ended, [null, 'SIGINT'], words.join(' '))
  }
  t.false(existsSync(join(folder, 'new.qcow2')))
})
