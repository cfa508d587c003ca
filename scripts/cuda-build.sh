#!/usr/bin/env bash
# Builds `lacuna` with CUDA and without what draws and runs notebooks: one stripped executable that starts on any machine of this
# processor, also without a GPU, and looks for CUDA's libraries when it is told to use one. No GPU, no driver and no CUDA are needed here.
#   scripts/cuda-build.sh [--toolkit DIR] [--target-dir DIR] [--out DIR] [--sm N] [-- COMMAND [ARGUMENT]..]
# --toolkit     directory of scripts/cuda-toolkit.sh, which fills it [default: the toolkit of CUDA_HOME or of nvcc on the path,
#               else that script's own directory]
# --target-dir  cargo's directory [default: CARGO_TARGET_DIR, else target/cuda in the repository]
# --out         where the executable goes [default: slim in the target directory]
# --sm          lowest compute capability [default: 80]. candle's kernels for 80 are compiled by the driver, once, for every later
#               card; with 90 they run on Hopper only. lacuna's own kernels have code for both in any case.
# -- COMMAND    a cargo command with the same settings, in place of the build: -- clippy
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

. "$root/scripts/cuda-env.sh"

toolkit='' target=${CARGO_TARGET_DIR:-$root/target/cuda} out='' sm=80
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    [ $# -ge 2 ] || fail "$1 needs a value"
    case $1 in
        --toolkit) toolkit=$2 ;;
        --target-dir) target=$2 ;;
        --out) out=$2 ;;
        --sm) sm=$2 ;;
        *) fail "unknown option $1; see the head of $0" ;;
    esac
    shift 2
done
[ $# -eq 0 ] || shift
mkdir -p "$target" && target=$(cd "$target" && pwd) || fail "$target: cannot be made"
out=${out:-$target/slim}

use_toolkit "$toolkit"
version=$("$NVCC" --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')

# What stands in for the toolkit's libraries. candle asks for shared libraries, without which the executable would not even start.
# Empty archives leave their functions open, which the dynamic linker binds when they are first called: by then
# src/device/libraries.rs has loaded the libraries, or has said what is missing.
stand=$target/cuda-link
mkdir -p "$stand"
for library in cuda cudart cublas cublasLt curand nvrtc; do
    printf '!<arch>\n' >"$stand/lib$library.a"
done

# The compiler, but candle's kernels for GGUF-quantised weights on a GPU become stubs. lacuna never calls them (what it imports from GGUF
# is no longer quantised), and they are most of the time of the build, and the only need of libcudart.
nvcc=$stand/nvcc
cat >"$nvcc.new" <<END
#!/usr/bin/env bash
set -euo pipefail
for source; do :; done
case \$source in
    src/mmq_gguf/*.cu | src/mmvq_gguf.cu | src/moe/*.cu) ;;
    *) exec '$NVCC' "\$@" ;;
esac
while [ "\$1" != -o ]; do shift; done
{
    printf '#include <stdio.h>\n#include <stdlib.h>\n'
    printf 'static void left_out(void) { fputs("error: built without kernels for GGUF-quantised weights\\\\n", stderr); abort(); }\n'
    [ "\$source" != src/mmvq_gguf.cu ] || sed -n 's/^ *pub fn \([A-Za-z0-9_]*\).*/void \1(void) { left_out(); }/p' src/ffi.rs
} | gcc -x c -w -O1 -fPIC -c -o "\$2" -
END
chmod +x "$nvcc.new"
# A new time stamp would compile everything again.
cmp -s "$nvcc.new" "$nvcc" && rm "$nvcc.new" || mv "$nvcc.new" "$nvcc"
export NVCC=$nvcc

flags=(
    -L "native=$stand"
    -Clink-arg=-Wl,--unresolved-symbols=ignore-all
    -Clink-arg=-Wl,-z,lazy
    # Calls go by the procedure linkage table, which can be bound lazily.
    -Crelro-level=partial
)
# Replaces -Cprefer-dynamic of .cargo/config.toml, so that the executable stands alone.
CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f' && echo "${flags[*]}")
export CARGO_ENCODED_RUSTFLAGS CARGO_TARGET_DIR=$target CUDA_COMPUTE_CAP=$sm

cd "$root"
if [ $# -gt 0 ]; then
    command=$1
    shift
    exec cargo "$command" --no-default-features --features cuda "$@"
fi
cargo build --no-default-features --features cuda --bin lacuna

mkdir -p "$out"
built=$target/debug/lacuna
# What is left open must be CUDA's, and be bound lazily: anything else would fail only when it is called, or at once.
cuda='(cu|cublas|cublasLt|curand|nvrtc)[A-Z][A-Za-z0-9_]*'
open=$(nm -D --undefined-only "$built" | awk '$1 == "U" { print $2 }' | grep -v @ || true)
others=$(grep -vxE "$cuda" <<<"$open" || true)
[ -z "$others" ] || fail "the linker did not find" $others
eager=$(readelf -rW "$built" | grep -E "GLOB_DAT|_64 " | grep -oE " $cuda( |\$)" || true)
[ -z "$eager" ] || fail "would be looked up before CUDA's libraries are loaded:" $eager
strip -o "$out/lacuna" "$built"

major=${version%%.*}
echo "$out/lacuna: $(stat -c %s "$out/lacuna") bytes, for CUDA $version"
echo "needs: $(readelf -dW "$out/lacuna" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | paste -sd ' ')" \
    "(glibc $(nm -D --undefined-only "$out/lacuna" | grep -o 'GLIBC_[0-9.]*' | cut -d_ -f2 | sort -Vu | tail -n 1) or later)"
echo "looks for, when told --device cuda: libcuda.so.1 libcublas.so.$major libcurand.so.10, with"
echo "    LD_LIBRARY_PATH=/usr/local/cuda/lib64, or the folder of PyTorch's:"
echo "    LD_LIBRARY_PATH=\$(python3 -c 'import nvidia.cu$major as cuda; print(cuda.__path__[0])')/lib"
