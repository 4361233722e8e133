/** `npm start -- <words>`: the command line from a clone, with nothing but its own output. */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'

const root = join(__dirname, '..')
const folder = mkdtempSync(join(tmpdir(), 'qcow2-start-'))
test.after.always(() => rmSync(folder, { recursive: true, force: true }))

/** As npm does it: in the package's folder, with the caller's folder in INIT_CWD. */
function start(...words: string[]) {
  const env = { ...process.env, INIT_CWD: folder }
  return spawnSync(process.execPath, [join(root, 'scripts', 'start.mjs'), ...words], { cwd: root, env, encoding: 'utf8' })
}

test('words run the command in the caller’s folder, and set-up leaves stdout and stderr alone when there is nothing to do', (t) => {
  writeFileSync(join(folder, 'disk.raw'), Buffer.alloc(65536, 1))
  const made = start('convert', '-f', 'raw', '-O', 'qcow2', 'disk.raw', 'disk.qcow2')
  t.is(made.status, 0, made.stderr)
  t.is(made.stdout + made.stderr, '')
  const { stdout, stderr, status } = start('info', '--output=json', 'disk.qcow2')
  t.is(status, 0)
  t.is(stderr, '')
  t.is(JSON.parse(stdout)['virtual-size'], 65536)
})

test('the exit code of the command is that of npm start', (t) => {
  writeFileSync(join(folder, 'a.raw'), Buffer.alloc(512, 1))
  writeFileSync(join(folder, 'b.raw'), Buffer.alloc(512, 2))
  t.is(start('compare', '-f', 'raw', '-F', 'raw', 'a.raw', 'b.raw').status, 1)
  t.is(start('info', 'absent.qcow2').status, 1)
})
