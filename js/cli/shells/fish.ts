/** Completion for fish, with what the help says of each option. */
import { functionName, type ShellCommand, type ShellKey, type ShellOption } from './shapes.js'

/** The script that makes fish complete `program`. */
export function fishScript(program: string, commands: readonly ShellCommand[], keys: readonly ShellKey[]): string {
  const fn = `_${functionName(program)}`
  const first = commands.map(({ name, summary }) => `complete -c ${program} -n __fish_use_subcommand -f -a ${name} -d ${quote(summary)}\n`)
  return `# fish completion for ${program}, made by: ${program} completion fish
# Load it with: ${program} completion fish | source

function ${fn}_keys --description 'Keys of an option list, behind those that are there'
    set -l done (string replace -r '[^,]*$' '' -- (string replace -r '^--[^=]*=' '' -- (commandline -ct)))
    set -l item (string replace -r '^.*,' '' -- (string replace -r '^--[^=]*=' '' -- (commandline -ct)))
    switch $item
${keys.map(keyCase).join('')}        case '*'
            printf '%s\\n' $done{${keys.map(({ name }) => `${name}=`).join(',')}}
    end
end

${first.join('')}complete -c ${program} -n __fish_use_subcommand -f -s h -l help -d 'print the help'
complete -c ${program} -n __fish_use_subcommand -f -s V -l version -d 'print the version'
${commands.map((command) => commandLines(program, fn, command)).join('')}`
}

function keyCase({ name, values }: ShellKey): string {
  if (typeof values === 'string') return ''
  return `        case '${name}=*'\n            printf '%s\\n' {$done}${name}={${values.join(',')}}\n`
}

function commandLines(program: string, fn: string, { name, options, words }: ShellCommand): string {
  const begin = `complete -c ${program} -n '__fish_seen_subcommand_from ${name}'`
  const rows = options.map((option) => `${begin} ${optionWords(fn, option)}\n`)
  if (words.length > 0) rows.push(`${begin} -f -a '${words.join(' ')}'\n`)
  return rows.join('')
}

function optionWords(fn: string, { names, text, values }: ShellOption): string {
  const spelled = names.map((name) => (name.startsWith('--') ? `-l ${name.slice(2)}` : `-s ${name.slice(1)}`)).join(' ')
  return `${spelled}${valueWords(fn, values)}${text === '' ? '' : ` -d ${quote(text)}`}`
}

function valueWords(fn: string, values: ShellOption['values']): string {
  if (values === undefined) return ''
  if (values === 'file') return ' -r -F'
  if (values === 'keys') return ` -x -a '(${fn}_keys)'`
  return values === 'any' ? ' -x' : ` -x -a '${values.join(' ')}'`
}

function quote(text: string): string {
  return `'${text.replace(/[\\']/g, '\\$&')}'`
}
