# Whether the first word of answer.txt begins with the letter that is given.
read -r word rest < answer.txt || [ -n "$word" ] || exit 1
case "$word" in
  "$1"*) exit 0 ;;
esac
echo "'$word' does not begin with $1"
exit 1
