/** The texts of `--help`. */
import type { Grammar } from './getopt.js'
import type { Program } from './program.js'

/** What the help of a command is made of. `examples` are argument lists that work as they stand. */
export interface CommandHelp {
  summary: string
  usage: string
  options: readonly (readonly [string, string])[]
  examples: readonly [string, string]
}

/** The commands, and what each is for. */
export const COMMANDS: readonly (readonly [string, string])[] = [
  ['amend', 'change the format of an image in place'],
  ['bench', 'measure requests to an image'],
  ['bitmap', 'add, change, merge and remove persistent bitmaps'],
  ['check', 'count all references of an image and compare them with its refcounts'],
  ['commit', 'write what an overlay holds into its backing file'],
  ['compare', 'tell whether two images have the same contents'],
  ['convert', 'copy images to a new image, in another format if wished'],
  ['completion', 'print what makes a shell complete these commands'],
  ['create', 'make a new image'],
  ['dd', 'copy blocks of an image to a new image'],
  ['digest', 'print a hash of what an image holds, the same for every representation'],
  ['info', 'show facts about an image'],
  ['inspect', 'examine a file from a stranger, and tell whether a destination takes it'],
  ['map', 'show where the bytes of an image are'],
  ['measure', 'calculate the file size that a new image will need'],
  ['resize', 'give the disk of an image another size'],
  ['rebase', 'give an overlay another backing file'],
  ['snapshot', 'list, make, apply and delete internal snapshots'],
  ['verify', 'tell whether an image holds what a digest was made of, and where not'],
]

/** The help of the program. */
export function programHelp({ name }: Program): string {
  const width = Math.max(...COMMANDS.map(([command]) => command.length))
  const rows = COMMANDS.map(([command, text]) => `  ${command.padEnd(width)} ${text}\n`)
  return `Disk images in the qcow2, raw and luks formats. Usage:

  ${name} [--help | --version] COMMAND [--help | command options]

Commands:
${rows.join('')}
Examples:
  ${name} info disk.qcow2
  ${name} convert -p -c -O qcow2 disk.raw disk.qcow2
`
}

/** The help of one command. */
export function commandHelp({ name, command }: Program, { summary, usage, options, examples }: CommandHelp): string {
  const width = Math.max(...options.map(([option]) => option.length))
  const rows = options.map(([option, text]) => `  ${option.padEnd(width)}  ${text}\n`)
  return `${summary} Usage:

  ${name} ${command} ${usage}

Options:
${rows.join('')}  ${'-h, --help'.padEnd(width)}  print this help

Examples:
${examples.map((example) => `  ${name} ${example}\n`).join('')}`
}

/** Rows that several commands share. */
export const ROWS = {
  format: ['-f, --format FMT', 'format of the image: qcow2, raw or luks (default: as its first bytes say)'],
  share: ['-U, --force-share', 'read although another process may be writing; what is read may be torn'],
  output: ['--output human|json', 'form of the output'],
  quiet: ['-q, --quiet', 'print errors only'],
  progress: ['-p, --progress', 'print the progress; without it, SIGUSR1 prints it on stderr'],
  gate: ['--backing-files same-directory|deny', 'open fewer of the files that an image names (default: any regular file or block device)'],
} as const satisfies Record<string, readonly [string, string]>

/** What is the same in every command that takes it, and stands at the end of its options. */
const COMMON: readonly (readonly [string, string])[] = [
  ['--image-opts', 'a name is a list of options, such as driver=qcow2,file.filename=disk.qcow2'],
  ['--target-image-opts', 'the same for the target'],
  ['--object TYPE,KEY=VALUE,…', 'define an object, such as a secret'],
  ROWS.gate,
  ['--passphrase-file FILE', 'the file whose bytes open encrypted images; a line break at its end is not part of them'],
  ['--passphrase-fd FD', 'the same from an open file descriptor, such as that of a pipe'],
]

/** The help of a command with a row for each option that its grammar has. */
export function wholeHelp(grammar: Grammar, help: CommandHelp): CommandHelp {
  const there = new Set(help.options.flatMap(([row]) => namesOfRow(row).map(({ name }) => name)))
  const rows = COMMON.filter(([row]) =>
    namesOfRow(row).every(({ name }) => !there.has(name) && grammar.long.some((option) => name === `--${option.name}`)),
  )
  const end = help.options.findIndex(([row]) => !row.startsWith('-'))
  const at = end === -1 ? help.options.length : end
  return { ...help, options: [...help.options.slice(0, at), ...rows, ...help.options.slice(at)] }
}

/** The options that a row of the help is about: `-f, --format FMT` are two names of one. What is no option has none. */
export function namesOfRow(row: string): { name: string; value?: string }[] {
  if (!row.startsWith('-')) return []
  const parts = row.split(', ').map((part) => /^(\S+)(?: (.+))?$/.exec(part) as RegExpExecArray)
  const last = parts.at(-1)?.[2]
  return parts.map(([, name = '', own], index) => {
    // Of `-f, --format FMT` the value is that of both.
    const value = own ?? (index === parts.length - 2 ? last : undefined)
    return value === undefined ? { name } : { name, value }
  })
}
