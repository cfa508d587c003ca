#!/usr/bin/env bash
# Everything that is to be measured on a GPU, in one command: every kernel beside a reference in f64, then beside a copy; then Wanda of a model
# of Llama 2 7B's shape with random weights, selection alone and the whole run, beside the reference implementation in PyTorch on the same card.
# Writes reports/gpu.md, unless a check fails.
#   scripts/gpu-report.sh LACUNA PYTHON SCRATCH [HIDDEN,INTERMEDIATE,LAYERS [WINDOWS [SEQLEN [DEVICE]]]]
# LACUNA is an executable with CUDA (scripts/cuda-build.sh), PYTHON has torch, SCRATCH room for two models (30 GB). DEVICE may be cpu, to try the
# script itself.
set -euo pipefail
[ $# -ge 3 ] || { sed -n 's/^# \{0,1\}//p' "$0" | sed 1d >&2; exit 2; }
lacuna=$1 python=$2 scratch=$3 shape=${4:-4096,11008,32} windows=${5:-128} seqlen=${6:-2048} device=${7:-cuda}
cd "$(dirname "$0")/.."
mkdir -p "$scratch"
model=$scratch/model-$shape-$windows-$seqlen pruned=$scratch/pruned
rm -rf "$pruned"

# cuSPARSELt, for products of 2:4 matrices, lies where that Python's PyTorch has it.
sparselt=$("$python" -c 'import nvidia.cusparselt as library; print(library.__path__[0])' 2>/dev/null || true)
[ -z "$sparselt" ] || export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$sparselt/lib
passed=true # what does not is shown, and all else is measured
"$lacuna" bench gpu --device "$device" --shape "$shape" | tee "$scratch/bench.txt" || passed=false
"$lacuna" bench gpu --device "$device" --shape "$shape" --json >"$scratch/bench.json" || passed=false
"$python" -m json.tool "$scratch/bench.json" >/dev/null || { echo "error: bench gpu ended early; run it alone" >&2; exit 1; }
torch=(benches/wanda_torch.py --device "$device" --shape "$shape" --windows "$windows" --seqlen "$seqlen")
"$python" "${torch[@]}" | tee "$scratch/torch.json"
[ -e "$model/calib.json" ] || "$python" "${torch[@]}" --write "$model"

# The driver's own count, so that nothing is left out; what others hold is subtracted.
used() { nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits 2>/dev/null | head -1 || echo 0; }
before=$(used) peak=$scratch/peak
(while sleep 0.1; do used; done >"$peak") &
watch=$!
trap 'kill $watch 2>/dev/null || true' EXIT
cat "$model"/* >/dev/null # both find the weights in memory
budget=$(($(stat -c %s "$model/model.safetensors") / 8))
run=("$lacuna" prune "$model" --method wanda --sparsity 0.5 --calib "$model/calib.json" --windows "$windows" --seqlen "$seqlen"
    --dtype bf16 --device "$device" --device-memory "$budget" --out "$pruned")
begin=$(date +%s.%N)
"${run[@]}"
end=$(date +%s.%N)
kill $watch

"$python" - "$scratch" "$begin" "$end" "${before:-0}" "$model/model.safetensors" "$shape" "$windows" "$seqlen" <<'END' >"$scratch/gpu.md"
import json, os, sys
scratch, begin, end, before, weights, shape, windows, seqlen = sys.argv[1:]
bench, torch = (json.load(open(f"{scratch}/{name}.json")) for name in ("bench", "torch"))
record = json.load(open(f"{scratch}/pruned/lacuna.json"))
seconds = float(end) - float(begin)
select = next((t for t in bench["timings"] if t["case"].startswith("Wanda 50%")), None)
apart = max((int(line) for line in open(f"{scratch}/peak") if line.strip().isdigit()), default=0) - int(before or 0)
print(f"# {bench['device']}\n")
print(f"Random weights of shape {shape} (hidden, intermediate, layers) in bf16, {windows} windows of {seqlen} tokens. Command:\n")
print(f"    scripts/gpu-report.sh LACUNA PYTHON SCRATCH {shape} {windows} {seqlen}\n")
print(f"| | lacuna | PyTorch {torch['torch']} | ratio |\n|---|---:|---:|---:|")
if select:
    print(f"| score, select and mask of all linears, s | {select['seconds']:.4f} | {torch['select_seconds']:.4f} | {torch['select_seconds'] / select['seconds']:.1f} |")
print(f"| whole run, s | {seconds:.1f} | {torch['whole_seconds']:.1f} | {torch['whole_seconds'] / seconds:.2f} |")
if torch["peak_device_bytes"]:
    size = os.path.getsize(weights)
    print(f"| peak device memory over the model's size | {apart * 2**20 / size:.2f} | {torch['peak_device_bytes'] / size:.2f} | |")
print("\nThe whole run of lacuna reads the checkpoint and writes the pruned one; that of PyTorch begins and ends with the weights on the card.\n")
print("```text\n" + open(f"{scratch}/bench.txt").read() + "```")
END
cat "$scratch/gpu.md"
$passed || { echo "error: a check failed, as $scratch/bench.txt says; reports/gpu.md is as it was" >&2; exit 1; }
if [ "$device" != cpu ]; then cp "$scratch/gpu.md" reports/gpu.md; fi
