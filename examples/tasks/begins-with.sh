# Whether the first word of answer.txt begins with the letter that is given.
word=$(tr '\n' ' ' < answer.txt | sed 's/^ *//; s/ .*//')
case "$word" in
  "$1"*) exit 0 ;;
esac
echo "'$word' does not begin with $1"
exit 1
