# What zsh completes of the line in $2, with the script $1. The line editor needs a terminal: zpty gives one.
zmodload zsh/zpty
out=$(mktemp)
export SCRIPT=$1 LINE=$2 OUT=$out
zpty line zsh -f -i
zpty -w line 'source '${0:A:h}/inside.zsh
repeat 500; do
  [[ -e $out.ready ]] && break
  sleep 0.02
done
zpty -w -n line $'\C-x'
repeat 500; do
  [[ -e $out.done ]] && break
  sleep 0.02
done
zpty -d line
sort -u $out
rm -f $out $out.ready $out.done
