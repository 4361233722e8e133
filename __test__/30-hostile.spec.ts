/**
 * Every damaged file of the catalogue gets the action that is written there, by its code and place, through every call that reads.
 */
import { existsSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { check, convert, info, measure, open, type Qcow2Error } from '../js/index.js'
import type { Expected } from './support/hostile.js'
import { hostileFiles } from './support/hostile-all.js'
import { describeDifference, firstDifference } from './support/model.js'
import { type Answer, answer, readRange, withDisk } from './support/ours.js'
import { temporaryFolder } from './support/qemu.js'
import { bytesOf, naiveDisk } from './support/reader.js'

const folder = temporaryFolder()
const path = join(folder, 'hostile.qcow2')
const target = join(folder, 'out.raw')

function same(t: ExecutionContext, actual: Uint8Array, expected: Uint8Array, what: string): void {
  if (firstDifference(actual, expected) !== -1) t.fail(`${what}: ${describeDifference(actual, expected)}`)
  else t.pass()
}

function failed(t: ExecutionContext, what: string, got: Answer<unknown>, code: string): Qcow2Error | undefined {
  if ('value' in got) {
    t.fail(`${what} succeeded, ${code} is expected`)
    return undefined
  }
  const { error } = got
  const codes = code.split('|')
  t.true(
    codes.some((one) => (one.endsWith('_') ? error.code.startsWith(one) : error.code === one)),
    `${what}: ${code} is expected, it is ${error.code}: ${error.message}`,
  )
  return error
}

/** A conversion fails as the read does and leaves nothing. */
async function convertFails(t: ExecutionContext, code: string): Promise<void> {
  failed(t, 'convert', await answer('convert', convert(path, target, { sourceFormat: 'qcow2', format: 'raw' })), code)
  t.deepEqual(readdirSync(folder), ['hostile.qcow2'], 'a failed conversion leaves nothing')
}

async function refused(t: ExecutionContext, bytes: Buffer, expected: Extract<Expected, { action: 'refuse' }>): Promise<void> {
  const { code } = expected
  const error = failed(t, 'open', await answer('open', open(path)), code)
  failed(t, 'open of memory', await answer('open', open(new Uint8Array(bytes))), code)
  if (error !== undefined) {
    if (expected.offset !== undefined) t.is(Number(error.offset), expected.offset, error.message)
    if (expected.table !== undefined) t.is(error.table, expected.table, error.message)
    if (expected.message !== undefined) t.regex(error.message, expected.message)
  }
  await convertFails(t, code)
  const told = await answer('info', info(path))
  const judged = await answer('check', check(path))
  // What is encrypted, or lives in another file, still has facts to tell.
  if (/ENCRYPTED$|DATA_FILE/.test(code)) return
  failed(t, 'info', told, code)
  if ('value' in judged) t.true(judged.value.corruptions + judged.value.checkErrors > 0, 'check finds something')
  else failed(t, 'check', judged, code)
  failed(t, 'measure', await answer('measure', measure(path, { sourceFormat: 'qcow2' })), code)
}

async function reported(t: ExecutionContext, bytes: Buffer, good: Uint8Array, expected: Extract<Expected, { action: 'report' }>): Promise<void> {
  const wanted = expected.otherBytes === true ? naiveDisk(bytesOf(bytes)).read(0n, good.length) : good
  await withDisk(path, { backingFiles: 'deny' }, async (disk) => {
    same(t, await readRange(disk, 0, good.length), wanted, 'read')
    const codes = disk.notices.map((notice) => notice.code)
    if (expected.notice !== undefined) t.true(codes.includes(expected.notice), `notices: ${codes.join()}`)
  })
  await withDisk(new Uint8Array(bytes), {}, async (disk) => same(t, await readRange(disk, 0, good.length), wanted, 'read from memory'))
  await info(path)
  const result = await answer('check', check(path))
  if ('error' in result) {
    t.false(expected.clean, `check failed: ${result.error.message}`)
    return
  }
  const { corruptions, leaks, checkErrors, findings } = result.value
  const told = `check: ${corruptions} corruptions, ${leaks} leaks, ${checkErrors} errors: ${findings.map((one) => `${one.code} in ${one.table}`).join()}`
  if (expected.clean === true) t.is(corruptions + checkErrors, 0, told)
  if (expected.finding !== undefined) t.true(corruptions + leaks + checkErrors > 0, told)
  if (expected.table !== undefined)
    t.true(
      findings.some(({ table }) => table === expected.table),
      told,
    )
}

async function unreadable(t: ExecutionContext, bytes: Buffer, good: Uint8Array, expected: Extract<Expected, { action: 'range' }>): Promise<void> {
  const { code, start, length } = expected
  for (const source of [path, new Uint8Array(bytes)])
    await withDisk(source, {}, async (disk) => {
      const error = failed(t, 'read', await answer('read', readRange(disk, start, length)), code)
      if (expected.offset !== undefined) t.is(Number(error?.offset), expected.offset, error?.message)
      if (expected.table !== undefined) t.is(error?.table, expected.table, error?.message)
      failed(t, 'a read of one byte there', await answer('read', readRange(disk, start + length - 1, 1)), code)
      if (start > 0) same(t, await readRange(disk, 0, start), good.slice(0, start), 'before the damage')
      const end = start + length
      if (end < good.length) same(t, await readRange(disk, end, good.length - end), good.slice(end), 'after the damage')
    })
  await convertFails(t, code)
  await info(path)
  const result = await answer('check', check(path))
  if (expected.finding === true && 'value' in result) t.true(result.value.corruptions + result.value.checkErrors > 0, 'check finds it')
}

async function snapshotFails(t: ExecutionContext, good: Uint8Array, expected: Extract<Expected, { action: 'snapshot' }>): Promise<void> {
  await withDisk(path, {}, async (disk) => same(t, await readRange(disk, 0, good.length), good, 'the active disk'))
  const got = await answer(
    'snapshot',
    withDisk(path, { snapshot: expected.id, bigint: true }, async (disk) => readRange(disk, 0, 512)),
  )
  failed(t, 'the snapshot', got, expected.code)
  await info(path, { bigint: true })
  await answer('check', check(path))
}

for (const { name, good, make } of hostileFiles())
  test.serial(name, async (t) => {
    const { bytes, expected } = make()
    writeFileSync(path, bytes)
    if (expected.action === 'refuse') await refused(t, bytes, expected)
    else if (expected.action === 'report') await reported(t, bytes, good, expected)
    else if (expected.action === 'range') await unreadable(t, bytes, good, expected)
    else await snapshotFails(t, good, expected)
    t.false(existsSync(target))
  })

test.serial('none of it needed much memory', (t) => {
  const peak = process.resourceUsage().maxRSS / 1024
  t.true(peak < 768, `peak ${peak} MiB`)
})
