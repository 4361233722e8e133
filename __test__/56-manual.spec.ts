/** The manual page is what the commands say of themselves, and renders cleanly. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { describeAll, optionsOf } from '../js/cli/catalog.js'
import { COMMANDS } from '../js/cli/help.js'
import { manualPage } from '../scripts/lib/man.mjs'
import { must } from './support/qemu.js'

const root = join(__dirname, '..')
const path = join(root, 'man/qcow2.1')

test('the page that is published is made of the help as it is now', async (t) => {
  const { version, man, files } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { version: string; man: string; files: string[] }
  t.is(join(root, man), path)
  t.true(files.includes('man'))
  t.is(readFileSync(path, 'utf8'), manualPage({ descriptions: await describeAll(), summaries: COMMANDS, version }))
})

test('groff shows every command, option and example, and warns of nothing', async (t) => {
  const { stdout, stderr } = await must('groff', ['-man', '-Tascii', '-ww', '-rLL=400n', '-P-cbou', path])
  t.is(stderr, '')
  const text = stdout.toString()
  for (const command of await describeAll()) {
    const section = text.split(`\n${command.name.toUpperCase()}\n`)[1] ?? ''
    t.not(section, '', command.name)
    for (const example of command.help.examples) t.true(section.includes(`qcow2 ${example.replace(/…/g, '...')}\n`), example)
    for (const [row] of command.help.options) t.true(section.includes(row.replace(/…/g, '...')), `${command.name} ${row}`)
    t.true(optionsOf(command).length > 0)
  }
})
