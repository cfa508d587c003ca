#!/usr/bin/env bash
# Builds the fuzz targets of fuzz/, and runs each for SECONDS (10 if not given) from its committed corpus, with a fixed seed:
#     scripts/fuzz.sh [--target-dir DIR] [SECONDS] [TARGET]...
# An input that fails is left in DIR/artifacts; `scripts/fuzz.sh 0 TARGET` runs the corpus of TARGET and nothing else.
# It needs a C++ compiler, for libFuzzer, and the stable toolchain.
set -euo pipefail
cd "$(dirname "$0")/.."

target_dir=fuzz/target
if [ "${1-}" = --target-dir ]; then
    target_dir=$2
    shift 2
fi
seconds=${1:-10}
[ $# = 0 ] || shift
all=$(sed -n 's/^path = "targets\/\(.*\)\.rs"$/\1/p' fuzz/Cargo.toml)
targets=${*:-$all}

host=$(rustc -vV | sed -n 's/^host: //p')
mkdir -p "$target_dir/artifacts" "$target_dir/found"
target_dir=$(cd "$target_dir" && pwd)

# Counters of edges and comparisons, for libFuzzer. With --target they are not in build scripts and macros, which run without it.
coverage='-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares'
# Not --locked: lacuna's dependencies may change without the lock file of fuzz/.
RUSTFLAGS="--cfg fuzzing $(tr -s '\n ' ' ' <<<"$coverage")" \
    cargo build --manifest-path fuzz/Cargo.toml --bins --target "$host" --target-dir "$target_dir"

# Parsers of files read them where writing is cheap.
scratch=$(mktemp -d -p "$([ -w /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")" lacuna-fuzz.XXXXXX)
trap 'rm -rf "$scratch"' EXIT
for target in $targets; do
    printf -- '-- fuzz %s, %s s\n' "$target" "$seconds"
    # New inputs go to the first folder, which is not committed.
    mkdir -p "$target_dir/found/$target"
    limit=(-max_total_time="$seconds")
    [ "$seconds" != 0 ] || limit=(-runs=0)
    TMPDIR=$scratch "$target_dir/$host/debug/$target" "${limit[@]}" -seed=1 -max_len=4096 -timeout=10 -rss_limit_mb=1024 \
        -print_final_stats=1 -artifact_prefix="$target_dir/artifacts/$target-" \
        "$target_dir/found/$target" "fuzz/corpus/$target"
done
