/** What shells complete, asked of the shells themselves. */
import { spawnSync } from 'node:child_process'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { describeAll, optionsOf } from '../js/cli/catalog.js'
import { answer } from './support/cli.js'
import { must, temporaryFolder } from './support/qemu.js'

const folder = join(temporaryFolder(), 'shells')
const support = join(__dirname, 'support/shells')
const SHELLS = ['bash', 'zsh', 'fish'] as const
type Shell = (typeof SHELLS)[number]
const PROGRAMS = { qcow2: '_qcow2', 'qemu-img': '_qemu_img' } as const

test.before(async () => {
  mkdirSync(folder)
  mkdirSync(join(folder, 'files'))
  for (const name of ['disk.qcow2', 'disk.raw']) writeFileSync(join(folder, 'files', name), '')
  for (const program of ['qcow2', 'qemu-img'] as const) {
    for (const shell of SHELLS) {
      const { stdout } = await answer(program, ['completion', shell], { cwd: folder, ours: true })
      writeFileSync(join(folder, `${program}.${shell}`), stdout)
    }
  }
})

/** What a shell offers for a line, sorted. */
async function offered(shell: Shell, line: string): Promise<string[]> {
  const program = line.split(' ')[0] as keyof typeof PROGRAMS
  const script = join(folder, `${program}.${shell}`)
  const words = {
    bash: ['--norc', join(support, 'complete.bash'), script, line, PROGRAMS[program]],
    zsh: ['-f', join(support, 'complete.zsh'), script, line],
    fish: ['--no-config', '-c', `source ${script}; complete -C '${line}'`],
  }[shell]
  const { stdout } = await must(shell, words, { cwd: join(folder, 'files') })
  const lines = stdout.toString().split('\n')
  return [...new Set(lines.map((text) => text.split('\t')[0] ?? '').filter((text) => text !== ''))].sort()
}

const there = (shell: Shell): boolean => spawnSync(shell, ['-c', ':']).error === undefined

for (const shell of SHELLS) {
  const ask = there(shell) ? test : test.skip
  ask(`${shell} completes commands, options and values`, async (t) => {
    t.deepEqual(await offered(shell, 'qcow2 conv'), ['convert'])
    t.deepEqual(await offered(shell, 'qemu-img conv'), ['convert'])
    t.deepEqual(await offered(shell, 'qcow2 convert --target-is'), ['--target-is-zero'])
    t.deepEqual(await offered(shell, 'qcow2 check -f '), ['luks', 'qcow2', 'raw'])
    t.deepEqual(await offered(shell, 'qcow2 convert -p --output-format r'), ['raw'])
    t.deepEqual(await offered(shell, 'qcow2 bench -t writeb'), ['writeback'])
    // fish takes the option and its value for one word.
    t.deepEqual(await offered(shell, 'qcow2 check --output=j'), [shell === 'fish' ? '--output=json' : 'json'])
    t.deepEqual(await offered(shell, 'qcow2 dd if=disk.raw o'), ['of='])
    t.deepEqual(await offered(shell, 'qcow2 completion '), [...SHELLS].sort())
    const all = (await describeAll()).map(({ name }) => name)
    t.deepEqual(
      (await offered(shell, 'qcow2 ')).filter((word) => !word.startsWith('-')),
      all.sort(),
    )
  })

  ask(`${shell} completes the keys of -o, and their values`, async (t) => {
    const key = (await offered(shell, 'qcow2 create -f qcow2 -o clus')).map((word) => word.replace(/=$/, ''))
    t.deepEqual(key, ['cluster_size'])
    const values = await offered(shell, 'qcow2 create -o cluster_size=64k,compression_type=')
    t.deepEqual(
      values.map((value) => value.replace(/.*=/, '')),
      ['lz4', 'zlib', 'zstd'],
    )
  })
}

test('bash leaves files to itself, and what has no words to nobody', async (t) => {
  for (const line of ['qcow2 info ', 'qcow2 info disk', 'qcow2 convert -B ', 'qcow2 dd if=', 'qcow2 info -- -'])
    t.deepEqual(await offered('bash', line), [], line)
  t.deepEqual(await offered('bash', 'qcow2 bench -c '), [])
  t.deepEqual(await offered('bash', 'qcow2 nothing -'), [])
})

test('bash offers each option that a command takes, and no other', async (t) => {
  for (const command of await describeAll()) {
    const names = optionsOf(command).flatMap(({ names }) => names)
    t.deepEqual(await offered('bash', `qcow2 ${command.name} -`), names.sort(), command.name)
  }
})

test('a shell that is not known is refused', async (t) => {
  for (const words of [[], ['tcsh'], ['bash', 'zsh']]) {
    const { code, stderr } = await answer('qcow2', ['completion', ...words], { cwd: folder, ours: true })
    t.is(code, 1)
    t.is(stderr, "qcow2: Expecting the name of a shell: bash, zsh or fish\nTry 'qcow2 completion --help' for more info\n")
  }
})
