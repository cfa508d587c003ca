#!/usr/bin/env bash
# Makes in DIRECTORY what `cargo build --features cuda` and scripts/check-ptx.sh need of CUDA, on a machine without a GPU, a driver,
# a toolkit and root's rights: NVIDIA's compiler, headers and static runtime library, from PyPI (105 MB to fetch).
# Prints the path of a file to source, which sets CUDA_HOME, NVCC and PATH. Does nothing when the directory is complete.
#   scripts/cuda-toolkit.sh [DIRECTORY]
set -euo pipefail

# One release of CUDA: programs made with 13.0 run on drivers from 580 on.
packages=(
    nvidia-cuda-nvcc==13.0.88
    nvidia-nvvm==13.0.88
    nvidia-cuda-crt==13.0.88
    nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85
)

fail() {
    echo "error: $*" >&2
    exit 1
}

dir=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/lacuna/cuda}
mkdir -p "$dir" && dir=$(cd "$dir" && pwd) || fail "$dir: cannot be made"
env=$dir/env
# Written last, it says what the directory was made of; it stands in a directory that was moved or half made for nothing.
complete=$dir/complete
wanted=$(printf '%s\n' "$dir" "${packages[@]}")

if [ "$(cat "$complete" 2>/dev/null)" != "$wanted" ]; then
    command -v python3 >/dev/null || fail 'python3 is missing; it fetches the compiler (Debian: apt install python3 python3-pip)'
    python3 -m pip --version >/dev/null 2>&1 || fail 'pip is missing; it fetches the compiler (Debian: apt install python3-pip)'
    command -v g++ >/dev/null || fail 'g++ is missing; nvcc compiles with it (Debian: apt install g++)'
    rm -rf "$complete" "$env" "$dir/wheels"
    PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --target "$dir/wheels" \
        "${packages[@]}" >&2 || fail "pip could not install ${packages[*]} into $dir; is there a network, and 300 MB of disk?"
    home=$dir/wheels/nvidia/cu13
    chmod +x "$home"/bin/* "$home"/nvvm/bin/*
    # nvcc looks for libraries where a toolkit has them.
    ln -sfn lib "$home/lib64"
    # Does it run here (another libc, a file system that forbids it)?
    "$home/bin/nvcc" --version >/dev/null || fail "$home/bin/nvcc does not run on this machine"
    cat >"$env" <<END
export CUDA_HOME='$home' CUDA_PATH='$home' NVCC='$home/bin/nvcc'
case ":\$PATH:" in *":\$CUDA_HOME/bin:"*) ;; *) export PATH="\$CUDA_HOME/bin:\$PATH" ;; esac
END
    echo "$wanted" >"$complete"
fi
echo "$env"
