/** docs/qemu-img.md has every option of every command, of qemu-img and of ours, and says of each how we stand to it. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { describeAll, optionsOf } from '../js/cli/catalog.js'
import { namesOfRow } from '../js/cli/help.js'
import { run } from './support/qemu.js'

interface Row {
  names: string[]
  state: string
  why: string
}

const page = readFileSync(join(__dirname, '../docs/qemu-img.md'), 'utf8')

/** The tables, by command. */
function tables(): Map<string, Row[]> {
  const sections = page.split(/^## /m).slice(1)
  return new Map(
    sections.map((section) => {
      const [name = '', ...lines] = section.split('\n')
      const rows = lines.filter((line) => line.startsWith('| `-'))
      return [
        name,
        rows.map((row) => {
          const [names = '', state = '', why = ''] = row.slice(1).split(' |')
          return { names: [...names.matchAll(/`([^`]+)`/g)].map((match) => match[1] ?? ''), state: state.trim(), why: why.trim() }
        }),
      ]
    }),
  )
}

/** What `qemu-img COMMAND --help` lists. */
async function optionsOfQemu(command: string): Promise<string[]> {
  const { stdout } = await run('qemu-img', [command, '--help'])
  const list = stdout.toString().split('\nArguments:\n')[1] ?? ''
  const lines = [...list.matchAll(/^ +(-{1,2}[A-Za-z-]+(?:, -{1,2}[A-Za-z-]+)*)/gm)]
  return lines.flatMap((match) => (match[1] ?? '').split(', '))
}

async function commandsOfQemu(): Promise<string[]> {
  const { stdout } = await run('qemu-img', ['--help'])
  const list = stdout.toString().split('command-specific help):\n\n')[1]?.split('\n\n')[0] ?? ''
  return [...list.matchAll(/^ +([a-z]+) - /gm)].map((match) => match[1] ?? '')
}

test('the page has a table for each command of qemu-img', async (t) => {
  const commands = await commandsOfQemu()
  t.true(commands.length >= 15, `${commands}`)
  t.deepEqual([...tables().keys()].filter((name) => commands.includes(name)).sort(), commands.sort())
})

test('each table has the options of both programs, once, and says how we stand to each', async (t) => {
  const ours = new Map((await describeAll()).map((command) => [command.name, optionsOf(command)]))
  for (const [command, rows] of tables()) {
    const listed = rows.flatMap(({ names }) => names)
    t.is(new Set(listed).size, listed.length, `${command}: an option stands there twice`)
    const wanted = new Set([...(await optionsOfQemu(command)), ...(ours.get(command) ?? []).flatMap(({ names }) => names)])
    t.deepEqual(
      listed.filter((name) => !wanted.has(name)),
      [],
      `${command}: nobody has these`,
    )
    t.deepEqual(
      [...wanted].filter((name) => !listed.includes(name)),
      [],
      `${command}: these are missing`,
    )
    for (const { names, state, why } of rows) {
      t.true(['same', 'better', 'not yet'].includes(state), `${command} ${names}: ${state}`)
      t.false(state === 'better' && why === '', `${command} ${names}: better, and why?`)
      if (!ours.has(command) && !names.includes('--help')) t.is(state, 'not yet', `${command} ${names}: there is no such command`)
    }
  }
})

test('names of one option stand in one row', async (t) => {
  const rows = tables()
  for (const command of await describeAll()) {
    for (const { names } of optionsOf(command)) {
      const own = rows.get(command.name)
      if (own === undefined) continue
      t.truthy(
        own.find((row) => names.every((name) => row.names.includes(name))),
        `${command.name} ${names}`,
      )
    }
  }
})

test('a command whose options all work is told so', async (t) => {
  const later = [...tables()]
    .filter(([, rows]) => rows.every(({ state, names }) => state === 'not yet' || names.includes('--help')))
    .map(([name]) => name)
  const ours = (await describeAll()).map(({ name }) => name)
  t.deepEqual(
    later.filter((name) => ours.includes(name)),
    [],
    'commands that are there, and the page does not know it',
  )
})

test('--help has a row for each option that a command takes, and for no other', async (t) => {
  for (const command of await describeAll()) {
    const later = (tables().get(command.name) ?? []).filter(({ state }) => state === 'not yet').flatMap(({ names }) => names)
    for (const { names, text } of optionsOf(command)) t.true(text !== '' || later.includes(names[0] ?? ''), `${command.name} ${names}`)
    const taken = optionsOf(command).flatMap(({ names }) => names)
    const shown = command.help.options.flatMap(([row]) => namesOfRow(row).map(({ name }) => name))
    t.deepEqual(
      shown.filter((name) => !taken.includes(name)),
      [],
      command.name,
    )
  }
})
