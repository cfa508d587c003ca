#!/usr/bin/env bash
# Compiles every kernel of src/cuda/kernels to PTX and to machine code of sm_80 and sm_90, with warnings as errors, and prints what each
# entry point takes of the card. Fails on any error, and where a thread's values do not fit into registers: stack frames and spills.
# Needs no GPU.
#   scripts/check-ptx.sh [--toolkit DIR]    DIR: as of scripts/cuda-build.sh
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/cuda-env.sh"

toolkit=''
if [ $# -gt 0 ]; then
    [ $# -eq 2 ] && [ "$1" = --toolkit ] || fail "usage: $0 [--toolkit DIR]"
    toolkit=$2
fi
use_toolkit "$toolkit"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$root"
shopt -s nullglob
kernels=(src/cuda/kernels/*.cu)
[ ${#kernels[@]} -gt 0 ] || fail 'src/cuda/kernels holds no kernels'

# One job for each file and architecture, as many at a time as there are processors.
compile() {
    local source=$1 arch=$2 stem
    stem=$work/$(basename "$source" .cu).$arch
    local flags=(--options-file src/cuda/kernels/nvcc.options --Werror all-warnings)
    {
        "$NVCC" "${flags[@]}" -arch "compute_$arch" --ptx "$source" -o "$stem.ptx" &&
            "$NVCC" "${flags[@]}" -arch "sm_$arch" -Xptxas -v --cubin "$source" -o "$stem.cubin"
    } >"$stem.log" 2>&1 || touch "$stem.failed"
}
for source in "${kernels[@]}"; do
    for arch in 80 90; do
        while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do wait -n; done
        compile "$source" "$arch" &
    done
done
wait

for failed in "$work"/*.failed; do
    log=${failed%.failed}.log
    printf '%s:\n' "$(basename "$log" .log)" >&2
    cat "$log" >&2
done
# ptxas says of each function: its name and architecture, then its stack and spills, then registers and shared memory.
for log in "$work"/*.log; do
    sed "s|^|$(basename "$log" .log | sed 's/\.[0-9]*$//') |" "$log"
done | awk '
    BEGIN { printf "%-24s %-36s %-6s %9s %13s %11s %12s\n", "file", "kernel", "arch", "registers", "shared memory", "stack frame", "spills" }
    / Compiling entry function / { split($0, part, "\047"); kernel = part[2]; arch = part[4]; stack = spills = 0; counts = 1 }
    / bytes stack frame, / {
        for (i = 2; i <= NF; i++) {
            if ($(i + 1) == "bytes" && $(i + 2) == "stack") stack += $i
            if ($(i + 1) == "bytes" && $(i + 2) == "spill") spills += $i
        }
    }
    / Used [0-9]+ registers/ {
        shared = 0
        for (i = 2; i <= NF; i++) {
            if ($(i + 1) ~ /^registers/) registers = $i
            if ($(i + 1) == "bytes" && $(i + 2) ~ /^smem/) shared = $i
        }
        printf "%-24s %-36s %-6s %9d %13d %11d %12d\n", $1, kernel, arch, registers, shared, stack, spills
        if (stack > 0 || spills > 0) bad++
        entries++
    }
    END {
        printf "%d entry points\n", entries
        if (bad) { printf "error: %d keep values of a thread in memory (stack frame or spills)\n", bad > "/dev/stderr"; exit 1 }
        if (!entries) { print "error: no entry point was compiled" > "/dev/stderr"; exit 1 }
    }'
failed=("$work"/*.failed)
[ ${#failed[@]} -eq 0 ] || fail "${#failed[@]} compilations failed"
