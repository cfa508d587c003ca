"""Makes dsnot.json: what the reference implementation of DSnoT does to random layers.

    git clone https://github.com/zyxxmu/DSnoT
    python make_dsnot_fixtures.py DSnoT/lib/prune.py

The part of its `prune_DSnoT` that refines the mask of one linear is taken out of the file and run as it is, with the
statistics that its `WrappedGPT` gathers. Needs torch. A case in which the reference runs out of candidates (the number of
pruned weights of a row changes then) is refused: that is where ours differs on purpose.
"""
import ast, json, re, sys, textwrap
from pathlib import Path
from types import SimpleNamespace
import torch

source = Path(sys.argv[1]).read_text()
body = source[source.index("def prune_DSnoT(") :]
first = body.index("            weight_mask = torch.zeros_like(initial_metric) == 1")
last = body.index("            subset[name].weight.data[weight_mask] = 0", first)
refine = compile(textwrap.dedent(body[first:last]), sys.argv[1], "exec")
helper = next(f for f in ast.parse(source).body if isinstance(f, ast.FunctionDef) and f.name == "return_reorder_indice")
names = {"torch": torch}
exec(compile(ast.Module([helper], []), sys.argv[1], "exec"), names)

ROWS, COLS, WINDOWS, TOKENS = 6, 256, 4, 64
torch.manual_seed(0)
weight = (torch.randn(ROWS, COLS) * 0.02).bfloat16().float()
scale = torch.exp(torch.randn(COLS) * 0.5)
inputs = (torch.randn(WINDOWS * TOKENS, COLS) + 0.3 * torch.randn(COLS)) * scale
squares = (inputs.square().sum(0) / WINDOWS)
sums = (inputs.sum(0) / WINDOWS)
variances = inputs.var(0, unbiased=False)


def case(sparsity, prune_n, prune_m, without_same_sign, cycles, threshold):
    initial_metric = weight.abs() * squares.sqrt()
    args = SimpleNamespace(skip_layer="no_skip", skip_sub_layer="no_skip", without_DSnoT=False, sparsity_ratio=sparsity,
                           pow_of_var_regrowing=1.0, max_cycle_time=cycles, update_threshold=threshold,
                           without_same_sign=without_same_sign)
    layer = SimpleNamespace(weight=SimpleNamespace(data=weight.clone()))
    statistics = SimpleNamespace(scaler_row=squares, var=variances, sum_metric_row=sums)
    if prune_n:
        groups = initial_metric.reshape(ROWS, -1, prune_m).argsort(2)[:, :, :prune_n]
        before = torch.zeros(ROWS, COLS // prune_m, prune_m, dtype=torch.bool).scatter_(2, groups, True).reshape(ROWS, COLS)
    else:
        lowest = initial_metric.argsort(dim=1, stable=True)[:, : int(COLS * sparsity)]
        before = torch.zeros(ROWS, COLS, dtype=torch.bool).scatter_(1, lowest, True)
    scope = dict(names, args=args, name="self_attn.q_proj", prune_n=prune_n, prune_m=prune_m, initial_metric=initial_metric,
                 DSnoT_metric=weight * sums.reshape(1, -1), subset={"self_attn.q_proj": layer},
                 wrapped_layers={"self_attn.q_proj": statistics})
    exec(refine, scope)
    after = scope["weight_mask"]
    width = prune_m if prune_n else COLS
    count = lambda mask: mask.reshape(ROWS, -1, width).sum(2)
    assert torch.equal(count(before), count(after)), "the reference ran out of candidates"
    swaps = int((before & ~after).sum())
    print(sparsity, prune_n, prune_m, without_same_sign, cycles, threshold, "->", swaps, "swaps")
    bits = lambda mask: ["".join("01"[int(bit)] for bit in row) for row in mask]
    return {"pattern": f"{prune_m - prune_n}:{prune_m}" if prune_n else "unstructured", "keep_sign": not without_same_sign,
            "max_cycles": cycles, "threshold": threshold, "swaps": swaps, "before": bits(before), "after": bits(after)}


cases = [case(0.5, 0, 0, True, 50, 0.1), case(0.6, 0, 0, False, 50, 0.1), case(0.7, 0, 0, True, 5, 0.1),
         case(0.5, 0, 0, True, 50, 0.5), case(0.5, 2, 4, True, 50, 0.1), case(0.5, 4, 8, True, 50, 0.1)]
numbers = {"weights": weight.flatten(), "norms": squares.sqrt(), "sums": sums, "variances": variances}
fixture = {"shape": [ROWS, COLS]} | {name: values.tolist() for name, values in numbers.items()} | {"cases": cases}
# Shortest decimals that give the same f32.
text = re.sub(r"-?\d+\.\d+(e-?\d+)?", lambda number: str(torch.tensor(float(number[0])).numpy()), json.dumps(fixture))
(Path(__file__).parent / "dsnot.json").write_text(text + "\n")
