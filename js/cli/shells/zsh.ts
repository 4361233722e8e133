/** Completion for zsh, with what the help says of each option. */
import { functionName, type ShellCommand, type ShellKey, type Values } from './shapes.js'

/** The script that makes zsh complete `program`: for a folder of `fpath`, or to be sourced. */
export function zshScript(program: string, commands: readonly ShellCommand[], keys: readonly ShellKey[]): string {
  const fn = functionName(program)
  const list = commands.map(({ name, summary }) => `    ${quote(`${name}:${summary.replace(/:/g, '\\:')}`)}\n`)
  const cases = commands.map((command) => `    ${command.name})\n      _arguments -s -S : \\\n${specs(fn, command)} && ret=0\n      ;;\n`)
  return `#compdef ${program}
# zsh completion for ${program}, made by: ${program} completion zsh
# Put it into a folder of $fpath as ${fn}, or load it with: source <(${program} completion zsh)

${fn}_commands() {
  local -a commands
  commands=(
${list.join('')}  )
  _describe -t commands command commands
}

${fn}_keys() {
  _values -s , option \\
${keys.map((key) => `    ${quote(keySpec(key))}`).join(' \\\n')}
}

${fn}() {
  local curcontext=$curcontext state line ret=1
  typeset -A opt_args
  _arguments -C : \\
    '(- *)'{-h,--help}'[print the help]' \\
    '(- *)'{-V,--version}'[print the version]' \\
    '1:command:${fn}_commands' \\
    '*::argument:->argument' && ret=0
  [[ $state == argument ]] || return ret
  case $words[1] in
${cases.join('')}    *) _files && ret=0 ;;
  esac
  return ret
}

if [[ $funcstack[1] == ${fn} ]]; then ${fn} "$@"; else compdef ${fn} ${program}; fi
`
}

function specs(fn: string, { options, words }: ShellCommand): string {
  const rows = options.flatMap(({ names, text, value, values }) =>
    names.map((name) => {
      // Any of its names once; what may be given several times does no harm when it is offered once.
      const others = names.length > 1 ? `(${names.join(' ')})` : ''
      const mark = value === undefined ? '' : name.startsWith('--') ? '=' : '+'
      const action = value === undefined ? '' : `:${/^[A-Z]+$/.test(value) ? value.toLowerCase() : 'value'}:${actionOf(fn, values)}`
      return quote(`${others}${name}${mark}[${bracketed(text)}]${action}`)
    }),
  )
  const operand = words.length > 0 ? `*:operand:(${words.join(' ')})` : '*:file:_files'
  return [...rows, quote(operand)].map((row) => `        ${row}`).join(' \\\n')
}

function actionOf(fn: string, values: Values | undefined): string {
  if (values === 'file') return '_files'
  if (values === 'keys') return `${fn}_keys`
  return values === 'any' || values === undefined ? ' ' : `(${values.join(' ')})`
}

function keySpec({ name, text, values }: ShellKey): string {
  return `${name}[${bracketed(text)}]:${name}:${actionOf('', values)}`
}

function bracketed(text: string): string {
  return text.replace(/[\\[\]:]/g, '\\$&')
}

function quote(text: string): string {
  return `'${text.replace(/'/g, `'\\''`)}'`
}
