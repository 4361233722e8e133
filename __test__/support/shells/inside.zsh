# Runs inside of a terminal: completes $LINE on Ctrl-X and writes to $OUT what was offered.
PROMPT=
autoload -Uz compinit
compinit -u -D
source $SCRIPT
compadd() {
  if [[ " ${(j: :)@[1,(i)(-|--)]} " == *\ -(O|A|D)\ * ]]; then
    builtin compadd "$@"
    return
  fi
  local -a hits
  builtin compadd -A hits "$@"
  (( $#hits )) && print -l -- $hits >> $OUT
  builtin compadd "$@"
}
capture() {
  BUFFER=$LINE
  CURSOR=$#BUFFER
  zle list-choices
  : > $OUT.done
}
zle -N capture
bindkey '^X' capture
: > $OUT.ready
