# For scripts to source: where CUDA's compiler is.

fail() {
    echo "error: $*" >&2
    exit 1
}

# Sets CUDA_HOME, CUDA_PATH, NVCC and PATH to the toolkit in the directory $1 of scripts/cuda-toolkit.sh, which fills it; where that is
# empty, to that of NVCC, CUDA_HOME, the path or /usr/local/cuda; and where there is none, to that script's own directory.
use_toolkit() {
    local dir=$1 env
    if [ -z "$dir" ]; then
        NVCC=${NVCC:-$(PATH=${CUDA_HOME:+$CUDA_HOME/bin:}$PATH:/usr/local/cuda/bin command -v nvcc || true)}
    fi
    if [ -n "$dir" ] || [ -z "$NVCC" ]; then
        env=$("$(dirname "${BASH_SOURCE[0]}")/cuda-toolkit.sh" ${dir:+"$dir"})
        . "$env"
    else
        CUDA_HOME=$(dirname "$(dirname "$(readlink -f "$NVCC")")")
        export NVCC CUDA_HOME CUDA_PATH=$CUDA_HOME PATH=$(dirname "$NVCC"):$PATH
    fi
    command -v g++ >/dev/null || fail 'g++ is missing; nvcc compiles with it (Debian: apt install g++)'
}
