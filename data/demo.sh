#!/usr/bin/env bash
# The demo: index data/sample, search it across languages, ask it a question.
# Usage: bash data/demo.sh [PATH/TO/rwkv-embed]      (`make demo` calls it; run it as often as you like)
set -euo pipefail

program=${1:-rwkv-embed}
if ! command -v "$program" >/dev/null; then
    echo "demo: no program '$program'; run 'make demo', or give the path of rwkv-embed" >&2
    exit 1
fi
case $program in
*/*) program=$(cd "$(dirname "$program")" && pwd)/$(basename "$program") ;; # we change directory below
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bold='' plain=''
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$'\033[1m' plain=$'\033[0m'; fi
say() { printf '\n%s%s%s\n\n' "$bold" "$*" "$plain"; }

run() { # show the command as a person would type it, then run it
    printf '$ rwkv-embed'
    for word in "$@"; do
        case $word in
        *[[:space:]]*) printf " '%s'" "$word" ;;
        *) printf ' %s' "$word" ;;
        esac
    done
    printf '\n'
    "$program" "$@"
}

search() { run search --store .demo --group-by document --top-k 3 "$@"; }

say "1. Index the sample: 74 languages, seven file formats. The second time, unchanged files cost nothing."
run index --store .demo data/sample

say "2. Search in other languages than the question's. The filter keeps out what is in the language of the question."
search --where "lang != en" "How was it discovered that mosquitoes spread malaria?"
printf '# Why does the monsoon bring rain in summer and dry air in winter?\n'
search --where "lang != zh" "季风为什么夏天带来雨水、冬天干燥？"
printf '# How does water travel from the sea to the clouds and back again?\n'
search --where "lang != ar" "كيف ينتقل الماء من البحر إلى السحاب ثم يعود إليه؟"
printf '# The same\n'
search --where "lang != hi" "समुद्र का पानी बादलों तक कैसे पहुँचता है और फिर कैसे लौटता है?"
printf '# How did Gutenberg change the way books were made?\n'
search --where "lang != sw" "Gutenberg alibadilishaje jinsi vitabu vinavyotengenezwa?"

say "3. Another filter: only German and French documents."
search --where "lang in (de, fr)" "How did Gutenberg change the way books were made?"

say "4. Ask. The answer is quoted from the documents, with its sources."
run ask --store .demo "How many copies of Gutenberg's Bible survive?"

say "5. What is in the store."
run stats --store .demo

say "Next: start the server and open http://127.0.0.1:8000"
case $program in "$PWD"/*) program=./${program#"$PWD"/} ;; esac
printf '$ %q serve --store .demo\n' "$program"
