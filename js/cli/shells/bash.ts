/** Completion for bash 3.2 and later, which is what macOS has. It needs no package of completions. */
import { functionName, type ShellCommand, type ShellKey, type Values } from './shapes.js'

/** The script that makes bash complete `program`. */
export function bashScript(program: string, commands: readonly ShellCommand[], keys: readonly ShellKey[]): string {
  const fn = functionName(program)
  const names = commands.map(({ name }) => name).join(' ')
  const options = commands.map(({ name, options }) => `    ${name}) echo '${options.flatMap(({ names }) => names).join(' ')}' ;;\n`)
  const operands = commands.filter(({ words }) => words.length > 0).map(({ name, words }) => `    ${name}) echo '${words.join(' ')}' ;;\n`)
  const values = commands.flatMap(({ name, options }) =>
    options
      .filter(({ values }) => values !== undefined)
      .map(({ names, values }) => `    ${names.map((option) => `${name}:${option}`).join('|')}) echo '${words(values)}' ;;\n`),
  )
  const keyValues = keys.map(({ name, values }) => `    ${name}) echo '${words(values)}' ;;\n`)
  return `# bash completion for ${program}, made by: ${program} completion bash
# Load it with: source <(${program} completion bash)

${fn}_options() {
  case $1 in
${options.join('')}  esac
}

${fn}_operands() {
  case $1 in
${operands.join('')}  esac
}

# What the value of an option may be: words, @file, @keys or @any. Nothing for an option without a value.
${fn}_values() {
  case $1:$2 in
${values.join('')}  esac
}

${fn}_key_values() {
  case $1 in
${keyValues.join('')}  esac
}

${fn}() {
  local line=\${COMP_LINE:0:COMP_POINT} full word command= last= kind= before= value= list= strip= ended=
  full=\${line##*[[:space:]]}
  local -a words
  read -ra words <<<"\${line%"$full"}"
  for word in "\${words[@]:1}"; do
    if [[ -z $command && $word != -* ]]; then command=$word; fi
    if [[ $word == -- ]]; then ended=1; fi
    last=$word
  done
  COMPREPLY=()
  if [[ -z $command ]]; then
    list='${names} --help --version'
    value=$full
  elif [[ -z $ended && $full == --*=* ]]; then
    before=\${full%%=*}=
    kind=$(${fn}_values "$command" "\${full%%=*}")
    value=\${full#*=}
  elif [[ -z $ended && $last == -* ]] && kind=$(${fn}_values "$command" "$last") && [[ -n $kind ]]; then
    value=$full
  elif [[ -z $ended && $full == -* ]]; then
    list=$(${fn}_options "$command")
    value=$full
  else
    list=$(${fn}_operands "$command")
    value=$full
    # No words: files, which bash itself knows best.
    if [[ -z $list || $full == *=* ]]; then return; fi
  fi
  if [[ $kind == @keys ]]; then
    before+=\${value%"\${value##*,}"}
    value=\${value##*,}
    if [[ $value == *=* ]]; then
      kind=$(${fn}_key_values "\${value%%=*}")
      before+=\${value%%=*}=
      value=\${value#*=}
    else
      list='${keys.map(({ name }) => `${name}=`).join(' ')}'
    fi
  fi
  case $kind in
    @file) return ;;
    @any) compopt +o default 2>/dev/null; return ;;
    '' | @keys) ;;
    *) list=$kind ;;
  esac
  # To bash, what follows = or : is a word of its own.
  full=$before$value
  if [[ $COMP_WORDBREAKS == *=* && $full == *[=:]* ]]; then strip=\${full%"\${full##*[=:]}"}; fi
  for word in $(compgen -W "$list" -- "$value"); do
    word=$before$word
    COMPREPLY+=("\${word#"$strip"}")
  done
  if [[ \${#COMPREPLY[@]} -eq 1 && \${COMPREPLY[0]} == *= ]]; then compopt -o nospace 2>/dev/null; fi
}

complete -o default -F ${fn} ${program}
`
}

function words(values: Values | undefined): string {
  if (values === undefined) return ''
  return typeof values === 'string' ? `@${values}` : values.join(' ')
}
