/** The scripts that judge a change: what they count, what they forbid, and what a failed load tells. */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import test from 'ava'
import { loadFailureText, loadOrExplain, type Platform } from '../js/load.js'
import { isAllowed } from '../scripts/check-licenses.mjs'
import { judgeImport } from '../scripts/check-rooms.mjs'
import { failedBlocks, readCargoTest, readNextest, readTap } from '../scripts/lib/results.mjs'
import { digest } from '../scripts/lib/stamp.mjs'
import { temporaryFolder } from './support/qemu.js'

test('a change in a source folder called target is noticed, and what Cargo builds is not', (t) => {
  // Folders of that name were skipped, and crates/qcow2-engine/src/target was one: a change there did not build the addon anew.
  const folder = temporaryFolder()
  mkdirSync(join(folder, 'src', 'target'), { recursive: true })
  mkdirSync(join(folder, 'built'))
  const source = join(folder, 'src', 'target', 'mod.rs')
  const tag = join(folder, 'built', 'CACHEDIR.TAG')
  const object = join(folder, 'built', 'object.o')
  for (const path of [source, tag, object]) writeFileSync(path, 'one')
  const digests = [source, object].map((path) => {
    const before = digest(relative(process.cwd(), folder))
    writeFileSync(path, 'two')
    return before === digest(relative(process.cwd(), folder))
  })
  t.deepEqual(digests, [false, true])
})

test('counts of nextest are those of its summary', (t) => {
  const output = '     Summary [   0.412s] 314 tests run: 312 passed (1 slow), 2 failed, 3 skipped\n        FAIL [   0.010s] a b\n'
  t.like(readNextest({ code: 100, output }), { passed: 312, failed: 2, skipped: 3, problems: [] })
  const timedOut = 'Summary [  60.4s] 3 tests run: 1 passed, 1 failed, 1 timed out, 0 skipped\n'
  t.like(readNextest({ code: 100, output: timedOut }), { passed: 1, failed: 2 })
  const interrupted = 'Summary [  60.4s] 3/9 tests run: 3 passed, 0 skipped\n'
  t.like(readNextest({ code: 100, output: interrupted }), { passed: 3, failed: 1 })
})

test('a Rust runner that dies, or runs nothing, is a failure', (t) => {
  t.is(readNextest({ code: 101, output: 'error: could not compile `qcow2-engine`\n' }).failed, 1)
  t.is(readNextest({ code: 0, output: 'Summary [ 0.0s] 0 tests run: 0 passed, 0 skipped\n' }).failed, 1)
  t.is(readCargoTest({ code: 0, output: '' }).failed, 1)
  t.is(readCargoTest({ code: 0, output: '' }, { mayBeEmpty: true }).failed, 0)
  t.is(readCargoTest({ code: 101, output: '' }, { mayBeEmpty: true }).failed, 1)
})

test('counts of cargo test are summed over its binaries', (t) => {
  const line = (passed: number, failed: number) => `test result: ok. ${passed} passed; ${failed} failed; 1 ignored; 0 measured; 0 filtered out\n`
  t.like(readCargoTest({ code: 101, output: line(4, 0) + line(5, 2) }), { passed: 9, failed: 2, skipped: 2 })
})

test('counts of ava are its TAP lines, whatever tests print', (t) => {
  const output = [
    'TAP version 13',
    'ok 1 - a › reads',
    '    # not ok 7 - printed by a test',
    'not ok 2 - a › writes',
    '  ---',
    '    name: AssertionError\r',
    'a line at the margin',
    '  ...',
    'ok 3 - a › later # SKIP',
    'not ok 4 - known # TODO',
    '',
    '1..4',
  ].join('\n')
  t.like(readTap({ code: 1, output }), { passed: 2, failed: 1, skipped: 1, problems: [] })
  t.deepEqual(
    failedBlocks(output).map((block) => block.split('\n').filter((_, index, all) => index === 0 || index === all.length - 2)),
    [['not ok 2 - a › writes', '  ...']],
  )
})

test('a JavaScript runner that dies, or runs nothing, is a failure', (t) => {
  t.is(readTap({ code: 1, output: 'TAP version 13\nok 1 - a\n' }).failed, 1)
  t.is(readTap({ code: 0, output: 'TAP version 13\n1..0\n' }).failed, 1)
})

test('only js/native.ts may import the addon', (t) => {
  t.is(judgeImport('js/native.ts', '../index.js'), undefined)
  t.truthy(judgeImport('js/disk.ts', '../index.js'))
  t.truthy(judgeImport('js/cli/main.ts', '../../index.js'))
  t.truthy(judgeImport('js/disk.ts', '../qcow2.linux-x64-gnu.node'))
})

test('the command line sees the façade alone, and the façade does not see it', (t) => {
  t.is(judgeImport('js/cli/commands/info.ts', '../../index.js'), undefined)
  t.is(judgeImport('js/cli/commands/info.ts', '../text.js'), undefined)
  t.truthy(judgeImport('js/cli/commands/info.ts', '../../disk.js'))
  t.truthy(judgeImport('js/index.ts', './cli/main.js'))
  t.truthy(judgeImport('js/index.ts', '../__test__/support/model.js'))
})

test('a licence is allowed if each part of its expression has an allowed alternative', (t) => {
  for (const license of ['MIT', 'MIT/Apache-2.0', 'GPL-2.0 OR MIT', '(MIT OR Apache-2.0) AND Unicode-3.0', 'BSD-3-Clause AND BSD-2-Clause'])
    t.true(isAllowed(license), license)
  for (const license of ['', 'GPL-2.0', 'MIT AND GPL-2.0', '(MIT OR GPL-2.0) AND GPL-2.0', 'LGPL-2.1-or-later']) t.false(isAllowed(license), license)
})

/** A chain of causes as the generated loader throws it: newest outermost. */
function loaderError(): Error {
  const first = new Error("Cannot find module './qcow2.linux-x64-gnu.node'\nRequire stack:\n- /p/index.js")
  const second = new Error("Cannot find module 'qcow2-linux-x64-gnu'\nRequire stack:\n- /p/index.js", { cause: first })
  return new Error('Cannot find native binding.', { cause: second })
}

const machine: Platform = { platform: 'linux', arch: 'x64', libc: 'glibc 2.36', node: '20.20.2' }

test('a failed load names the platform, every path tried in order, and the repair', (t) => {
  const text = loadFailureText(loaderError(), '/p', machine)
  t.regex(text, /linux-x64, glibc 2\.36, Node\.js 20\.20\.2/)
  t.regex(text, /'\/p\/qcow2\.linux-x64-gnu\.node'[\s\S]*'qcow2-linux-x64-gnu'/)
  t.regex(text, /^ {2}npm install --include=optional qcow2$/m)
  t.regex(text, /--os=linux --cpu=x64 --libc=glibc/)
  t.notRegex(text, /Require stack/)
})

test('a failed load on musl, Windows and an unpublished platform names what fits there', (t) => {
  t.regex(loadFailureText(loaderError(), '/p', { ...machine, libc: 'musl' }), /qcow2-linux-x64-musl/)
  t.regex(loadFailureText(loaderError(), '/p', { platform: 'win32', arch: 'arm64', node: '22.0.0' }), /qcow2-win32-arm64-msvc/)
  const other = loadFailureText(loaderError(), '/p', { platform: 'freebsd', arch: 'x64', node: '22.0.0' })
  t.regex(other, /No binary is published for this platform[\s\S]*npm run build/)
  t.notRegex(other, /npm install/)
})

test('a failed load keeps the loader’s error as its cause, and a chain that loops does not hang', (t) => {
  const looping = new Error('a')
  looping.cause = looping
  const error = t.throws(() =>
    loadOrExplain(() => {
      throw looping
    }, '/nowhere'),
  )
  t.is(error?.cause, looping)
  t.is((error as Error & { code?: string }).code, 'ERR_QCOW2_LOAD')
  t.is(
    loadOrExplain(() => 7, '/nowhere'),
    7,
  )
})
