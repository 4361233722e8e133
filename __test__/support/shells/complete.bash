# What bash completes of the line in $2, with the script $1 and the function $3.
source "$1"
COMP_LINE=$2
COMP_POINT=${#COMP_LINE}
COMP_WORDBREAKS=$' \t\n"\'><=;|&(:'
"$3"
printf '%s\n' "${COMPREPLY[@]}"
