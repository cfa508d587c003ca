"""Prunes SmolLM2-135M with PyTorch as the reference implementations do; tests/oracles.rs compares with what comes out.

    python make_pruning_fixtures.py MODEL smollm2 OUT [--methods wanda_70,ria_50] [--runs masks,base,1,2]

needs torch, numpy, safetensors and transformers 5.23, on a CPU with two cores; no network. MODEL is the directory of the
f32 Hugging Face checkpoint (`lacuna import-gguf` of the file that `scripts/smollm2.sh` fetches), `smollm2` the directory
beside this file with `calib.json`, `eval.json` and `wanda50_scaler_row.npz`. OUT gets or extends

    reference.json      for each method the loss of each run, the range of them, sparsity, zeros of each linear of block 0
    mask_<method>.npz   the first 96 rows of each mask of block 0 by `numpy.packbits`, 1 where a weight is zero
    sparsegpt_2of4_weights.npz   the first 4 rows of each weight of block 0 after SparseGPT 2:4
    dsnot_60_statistics.npz      what DSnoT read in block 0 besides the norms: `<linear>.sum` and `<linear>.variance`

Pruning is sequential: a block sees what the pruned blocks before it make of the 16 calibration windows, one window a
forward pass, and its seven linears are pruned from one dense pass through it. That is chaotic in floating point, so each
method runs several times: `masks` (block 0 alone, writes the files), `base`, and runs named by the seed of a
perturbation that scales each input column by 1 + 1e-6 * normal. `bits_block0` and `iou_block15` compare the masks of
these with those of `base`, if it ran in the same call. Two windows or linears are worked on at a time, each by one
thread, so that nothing depends on how a product is split over threads.

In block 0 all methods see the same inputs, so the masks in the files are selected from the norms in
`wanda50_scaler_row.npz`, and DSnoT's from `dsnot_60_statistics.npz` besides: an implementation can be asked for the same
bits. `bits_from_given_norms` is how many differ in a selection from norms computed here. SparseGPT's are those of the run.
Ties within N:M groups go to the lower column; `torch.topk`, which the references call, leaves them open, and differs in
`bits_topk_block0`.

References: locuslab/wanda (Wanda, `use_variant`); biomedical-cybernetics/Relative-importance-and-activation-pruning (RIA
with a = 0.5: `ria_50_matrix` by one threshold a matrix, its default, `ria_50` by its `--per_outneuron`, both N:M without
reallocation); IST-DASLab/sparsegpt (blocks of 128, damping 0.01); luuyin/OWL (M = 5, lambda = 0.08); zyxxmu/DSnoT (50
cycles, threshold 0.1, variance to the power 1, signs not compared; `dsnot_60` leaves MLPs to Wanda, its default,
`dsnot_60_all` is its `--skip_layer no_skip`).
"""

import argparse
import copy
import functools
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # before torch reads them

import numpy as np
import torch
import transformers

LINEARS = {  # linear -> the linear whose input it shares
    "self_attn.q_proj": "self_attn.q_proj",
    "self_attn.k_proj": "self_attn.q_proj",
    "self_attn.v_proj": "self_attn.q_proj",
    "self_attn.o_proj": "self_attn.o_proj",
    "mlp.gate_proj": "mlp.gate_proj",
    "mlp.up_proj": "mlp.gate_proj",
    "mlp.down_proj": "mlp.down_proj",
}
MASK_ROWS, WEIGHT_ROWS, PERTURBATION = 96, 4, 1e-6


class Statistics:
    """Column statistics of one input over windows: means over windows of their sums, so `square` is (1/n) sum ||X_j||^2."""

    def __init__(self, wanted=()):
        self.wanted, self.windows = wanted, {}

    def add(self, i, x):
        """`x` is window `i`, (tokens, columns)."""
        self.windows[i] = dict(
            square=x.norm(dim=0) ** 2,
            sum=x.sum(0) if "sum" in self.wanted else None,
            variance=x.var(0, unbiased=False) if "sum" in self.wanted else None,
            gram=2 * (x.T @ x) if "gram" in self.wanted else None,
        )

    def finish(self):
        """Running means in the order of the windows, as the references keep them."""
        for name in ("square", *(("sum", "variance") if "sum" in self.wanted else ()), *self.wanted & {"gram"}):
            mean = 0.0
            for i in range(len(self.windows)):
                mean = mean * (i / (i + 1)) + self.windows[i][name] / (i + 1)
            setattr(self, name, mean)
        self.windows = {}

    def perturb(self, generator):
        scale = 1 + PERTURBATION * torch.randn(self.square.shape, generator=generator)
        self.square = self.square * scale**2
        if "sum" in self.wanted:
            self.sum, self.variance = self.sum * scale, self.variance * scale**2
        if "gram" in self.wanted:
            self.gram = self.gram * scale[:, None] * scale


# Scores and selections. A mask is true where the weight goes.


def wanda(weight, statistics):
    return weight.abs() * statistics.square.sqrt()


def ria(weight, statistics):
    size = weight.abs()
    return (size / size.sum(0) + size / size.sum(1, keepdim=True)) * statistics.square.sqrt() ** 0.5


def lowest_of_rows(scores, sparsity):
    """Ties go to the lower column, as a stable sort has them."""
    count = int(scores.shape[1] * sparsity)
    limit = torch.from_numpy(np.partition(scores.numpy(), count - 1, axis=1)[:, count - 1 : count])
    mask = scores <= limit
    for row in (mask.sum(1) != count).nonzero().flatten():
        mask[row] = False
        mask[row, scores[row].sort(stable=True).indices[:count]] = True
    return mask


def below_threshold(scores, sparsity):
    """One threshold over the matrix, itself included."""
    return scores <= scores.flatten().sort().values[int(scores.numel() * sparsity)]


def n_of_m(scores, n, m):
    """Drops `n` of each `m` neighbours in a row, ties by column."""
    groups = scores.unflatten(1, (-1, m)).unbind(2)
    masks = []
    for i, score in enumerate(groups):
        rank = torch.zeros_like(score, dtype=torch.int8)
        for j, other in enumerate(groups):
            if j != i:
                rank += other <= score if j < i else other < score
        masks.append(rank < n)
    return torch.stack(masks, 2).flatten(1)


def n_of_m_topk(scores, n, m):
    groups = scores.unflatten(1, (-1, m))
    lowest = groups.topk(n, dim=2, largest=False).indices
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(2, lowest, True).flatten(1)


def alpha_variant(scores, sparsity):
    """Each row drops the scores whose running sum stays within alpha of its sum; alpha is bisected. (mask, alpha)"""
    ordered = scores.sort(dim=1, stable=True).values
    running, total = ordered.cumsum(1), scores.sum(1, keepdim=True)
    alpha, low, high = 0.4, 0.0, 0.8
    while True:
        count = (running <= total * alpha).sum(1, keepdim=True)
        mask = scores <= ordered.gather(1, count - 1)
        reached = mask.sum() / mask.numel()
        if (reached - sparsity).abs() <= 0.001 or high - low < 0.001:
            return mask, alpha
        if reached > sparsity:
            alpha, high = (alpha + low) / 2, alpha
        else:
            alpha, low = (alpha + high) / 2, alpha


def dsnot(weight, statistics, sparsity, cycles=50, threshold=0.1):
    """Wanda per row, then each row swaps weights while the expected error of its output is above `threshold`."""
    order = wanda(weight, statistics).sort(dim=1, stable=True).indices
    count = int(weight.shape[1] * sparsity)
    kept = order[:, count:]
    mask = torch.zeros_like(weight, dtype=torch.bool).scatter_(1, order[:, :count], True)
    change = weight * statistics.sum
    missing = change.masked_fill(~mask, 0.0)
    error = missing.sum(1, keepdim=True)
    # Candidates from both ends: to return, by change over variance; to go, negative ones by Wanda's score from the front,
    # positive ones from the back.
    back = (missing / statistics.variance).sort(dim=1, stable=True).indices
    signs, place = change.gather(1, kept).sign(), torch.arange(kept.shape[1])
    from_back = torch.where(signs > 0, 3 * len(place) - place, len(place))
    away = kept.gather(1, torch.where(signs < 0, place, from_back).sort(dim=1).indices)
    rows = len(weight)
    front_back, end_back = torch.zeros(rows, 1, dtype=torch.long), torch.full((rows, 1), back.shape[1] - 1)
    front_away, end_away = torch.zeros(rows, 1, dtype=torch.long), torch.full((rows, 1), away.shape[1] - 1)
    active = torch.ones(rows, 1, dtype=torch.bool)
    for _ in range(cycles):
        if not active.any():
            break
        positive, negative = error > 0, error < 0
        returns = back.gather(1, torch.where(positive, end_back, front_back))
        goes = away.gather(1, torch.where(negative, end_away, front_away))
        end_back, front_back = end_back - positive.long(), front_back + (~positive).long()
        end_away, front_away = end_away - negative.long(), front_away + (~negative).long()
        active = active & (error.abs() > threshold)
        mask.scatter_(1, goes, active).scatter_(1, returns, ~active)
        error = error + change.gather(1, goes).where(active, torch.zeros(()))
        error = error - change.gather(1, returns).where(active, torch.zeros(()))
    return mask


def sparsegpt(weight, statistics, sparsity=None, pattern=None, block=128, damping=0.01):
    """(mask, weights that make up for it)"""
    weight, gram = weight.clone(), statistics.gram.clone()
    diagonal = gram.diagonal()
    dead = diagonal == 0
    diagonal[dead] = 1.0
    weight[:, dead] = 0.0
    diagonal += damping * diagonal.mean()
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(gram)), upper=True)
    masks = []
    for start in range(0, weight.shape[1], block):
        stop = min(start + block, weight.shape[1])
        # Columns of the weight as rows, so that each is contiguous.
        here, factor = weight[:, start:stop].T.contiguous(), inverse[start:stop, start:stop]
        scale = factor.diagonal()[:, None] ** 2
        mask, errors = torch.zeros_like(here, dtype=torch.bool), torch.zeros_like(here)
        if pattern is None:
            mask = below_threshold(here**2 / scale, sparsity)
        for i in range(stop - start):
            if pattern is not None and i % pattern[1] == 0:
                n, m = pattern
                mask[i : i + m] = n_of_m((here[i : i + m] ** 2 / scale[i : i + m]).T, n, m).T
            kept = here[i].masked_fill(mask[i], 0.0)
            errors[i] = (here[i] - kept) / factor[i, i]
            here[i + 1 :].addr_(factor[i, i + 1 :], errors[i], alpha=-1)
            here[i] = kept
        weight[:, start:stop] = here.T
        weight[:, stop:] -= errors.T @ inverse[start:stop, stop:]
        masks.append(mask.T)
    return torch.cat(masks, 1), weight


# Methods: (block, linear, weight, statistics, notes) -> mask, or mask and weights. `notes` go to reference.json.


def rows_of(score, sparsity):
    return lambda block, name, weight, statistics, notes: lowest_of_rows(score(weight, statistics), sparsity)


def groups_of(score, n, m):
    def method(block, name, weight, statistics, notes):
        scores = score(weight, statistics)
        mask = n_of_m(scores, n, m)
        if block == 0:
            notes.setdefault("bits_topk_block0", {})[name] = int((n_of_m_topk(scores, n, m) != mask).sum())
        return mask

    return method


def ria_matrix(block, name, weight, statistics, notes):
    return below_threshold(ria(weight, statistics), 0.5)


def wanda_alpha(block, name, weight, statistics, notes):
    mask, alpha = alpha_variant(wanda(weight, statistics), 0.5)
    if block == 0:
        notes.setdefault("alpha_block0", {})[name] = alpha
    return mask


def owl(block, name, weight, statistics, notes):
    sparsity = notes["sparsity_per_block"][block]
    return lowest_of_rows(wanda(weight, statistics), sparsity if sparsity > 0 else 0.01)


def dsnot_of(linears):
    def method(block, name, weight, statistics, notes):
        if name.startswith(linears):
            return dsnot(weight, statistics, 0.6)
        return lowest_of_rows(wanda(weight, statistics), 0.6)

    return method


METHODS = {
    "wanda_50": rows_of(wanda, 0.5),
    "wanda_60": rows_of(wanda, 0.6),
    "wanda_70": rows_of(wanda, 0.7),
    "wanda_4of8": groups_of(wanda, 4, 8),
    "wanda_alpha_50": wanda_alpha,
    "ria_50": rows_of(ria, 0.5),
    "ria_50_matrix": ria_matrix,
    "ria_2of4": groups_of(ria, 2, 4),
    "owl_70": owl,
    "dsnot_60": dsnot_of("self_attn"),
    "dsnot_60_all": dsnot_of(""),
    "sparsegpt_2of4": lambda block, name, weight, statistics, notes: sparsegpt(weight, statistics, pattern=(2, 4)),
    "sparsegpt_70": lambda block, name, weight, statistics, notes: sparsegpt(weight, statistics, sparsity=0.7),
    "sparsegpt_50": lambda block, name, weight, statistics, notes: sparsegpt(weight, statistics, sparsity=0.5),
}
WANTED = {"dsnot": ("sum",), "sparsegpt": ("gram",)}  # besides column norms
IN_ORACLES = ("wanda_50", "sparsegpt_50")  # run to check this script with; their masks are elsewhere


class Seen(Exception):
    """A window's statistics are complete."""


class Smol:
    def __init__(self, path, calibration, evaluation):
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        self.model = model.eval().requires_grad_(False)
        self.model.config.use_cache = False
        self.blocks, self.calibration, self.evaluation = self.model.model.layers, calibration, evaluation
        self.pool, self.at = ThreadPoolExecutor(2), threading.local()
        tokens = torch.arange(calibration.shape[1])[None]
        self.position = self.model.model.rotary_emb(self.model.model.embed_tokens(calibration[:1]), tokens)
        self.dense = [[self.linear(block, name).weight.clone() for name in LINEARS] for block in self.blocks]

    @staticmethod
    def linear(block, name):
        return block.get_submodule(name)

    def restore(self):
        for block, weights in zip(self.blocks, self.dense):
            for name, weight in zip(LINEARS, weights):
                self.linear(block, name).weight.data.copy_(weight)

    def forward(self, block, hidden):
        def one(i):
            self.at.window = i
            try:
                return block(hidden[i], attention_mask=None, position_embeddings=self.position)
            except Seen:
                return None

        return list(self.pool.map(one, range(len(hidden))))

    def walk(self, visit, wanted=(), seed=None, dense=False, stop=None):
        """Calls `visit(i, block, statistics by linear)` for each block; unless `dense`, the next sees what that changed."""
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        hidden = [self.model.model.embed_tokens(window[None]) for window in self.calibration]
        for i, block in enumerate(self.blocks[:stop]):
            statistics = {name: Statistics(set(wanted)) for name in dict.fromkeys(LINEARS.values())}

            def see(_, inputs, name):
                statistics[name].add(self.at.window, inputs[0][0])
                if name == "mlp.down_proj" and not dense:
                    raise Seen  # what the dense block would give is not needed

            hooks = [
                self.linear(block, name).register_forward_pre_hook(functools.partial(see, name=name)) for name in statistics
            ]
            outputs = self.forward(block, hidden)
            for hook in hooks:
                hook.remove()
            for entry in statistics.values():
                entry.finish()
                if generator:
                    entry.perturb(generator)
            visit(i, block, {name: statistics[source] for name, source in LINEARS.items()})
            if i + 1 < len(self.blocks[:stop]):
                hidden = outputs if dense else self.forward(block, hidden)

    def prune(self, method, notes, **options):
        """Masks of blocks 0 and 15, statistics and weights of block 0."""
        masks, first = {}, {}

        def visit(i, block, statistics):
            def one(name):
                weight = self.linear(block, name).weight.data
                result = method(i, name, weight, statistics[name], notes)
                return result if isinstance(result, tuple) else (result, weight.masked_fill(result, 0.0))

            for name, (mask, new) in zip(LINEARS, self.pool.map(one, LINEARS)):
                self.linear(block, name).weight.data.copy_(new)
                if i in (0, 15):
                    masks[i, name] = mask
                if i == 0:
                    first[name] = (statistics[name], new)

        self.walk(visit, **options)
        return masks, first

    def outlier_shares(self, seed=None):
        """OWL: percent of a block's Wanda scores above five times their mean, dense."""
        shares = []

        def visit(i, block, statistics):
            scores = [wanda(self.linear(block, name).weight, statistics[name]).flatten() for name in LINEARS]
            scores = torch.cat(scores)
            shares.append(float((scores > scores.mean() * 5).sum()) / scores.numel() * 100)

        self.walk(visit, seed=seed, dense=True)
        return np.array(shares)

    def loss(self):
        def one(window):
            logits = self.model(window[None]).logits[0, :-1].double()
            return torch.nn.functional.cross_entropy(logits, window[1:]).item()

        return sum(self.pool.map(one, self.evaluation)) / len(self.evaluation)

    def sparsity(self):
        weights = [self.linear(block, name).weight for block in self.blocks for name in LINEARS]
        return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def given_statistics(data, base):
    """Those of the base run in block 0 with the column norms of the fixture."""
    norms = np.load(data / "wanda50_scaler_row.npz")
    given = {}
    for name, (statistics, _) in base.items():
        given[name] = copy.copy(statistics)
        given[name].square = torch.from_numpy(norms[f"block0.{name}"])
    return given


def save_rows(path, arrays):
    np.savez(path, **{f"block0.{name}": array for name, array in arrays.items()})


def prepare(smol, tag, notes, seed=None):
    """What to walk with; OWL's allocation goes to `notes`."""
    if tag == "owl_70":
        shares = smol.outlier_shares(seed)
        keep = (shares - shares.min()) / (shares.max() - shares.min()) * 2 * 0.08
        notes["outlier_percent_per_block"] = shares.tolist()
        notes["sparsity_per_block"] = (1 - (keep - keep.mean() + (1 - 0.7))).tolist()
    return dict(wanted=WANTED.get(tag.split("_")[0], ()), seed=seed)


def masks_of_block_0(smol, tag, data, out):
    """Writes the fixtures of a method; what reference.json tells about them."""
    notes, method = {}, METHODS[tag]
    masks, first = smol.prune(method, notes, **prepare(smol, tag, notes), stop=1)
    fixture = {name: masks[0, name] for name in LINEARS}
    if not tag.startswith("sparsegpt"):
        given = given_statistics(data, first)
        fixture = {name: method(0, name, weight, given[name], notes) for name, weight in zip(LINEARS, smol.dense[0])}
        notes["bits_from_given_norms"] = sum(int((fixture[name] != masks[0, name]).sum()) for name in LINEARS)
    notes["zeros_block0"] = {name: int(mask.sum()) for name, mask in fixture.items()}
    if tag not in IN_ORACLES:
        packed = {name: np.packbits(mask[:MASK_ROWS].numpy(), axis=1) for name, mask in fixture.items()}
        save_rows(out / f"mask_{tag}.npz", packed)
    if tag == "sparsegpt_2of4":
        save_rows(out / f"{tag}_weights.npz", {name: weight[:WEIGHT_ROWS].numpy() for name, (_, weight) in first.items()})
    if tag == "dsnot_60":
        arrays = {f"{name}.sum": statistics.sum.numpy() for name, statistics in given.items()}
        arrays |= {f"{name}.variance": statistics.variance.numpy() for name, statistics in given.items()}
        save_rows(out / f"{tag}_statistics.npz", arrays)
    return notes


def chain(smol, tag, bases, seed):
    """A run through all blocks."""
    notes = {}
    masks, _ = smol.prune(METHODS[tag], notes, **prepare(smol, tag, notes, seed))
    result = {"nll_nats": smol.loss(), "sparsity": smol.sparsity()}
    if seed is None:
        bases[tag] = masks
    elif tag in bases:
        base = bases[tag]
        result["bits_block0"] = sum(int((base[0, name] != masks[0, name]).sum()) for name in LINEARS)
        both = sum(int((base[15, name] & masks[15, name]).sum()) for name in LINEARS)
        result["iou_block15"] = both / sum(int((base[15, name] | masks[15, name]).sum()) for name in LINEARS)
    return result


def main(args):
    data, out = Path(args.data), Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    ids = [torch.tensor(json.loads((data / name).read_text())["input_ids"]) for name in ("calib.json", "eval.json")]
    smol = Smol(args.model, *ids)
    path = out / "reference.json"
    reference = json.loads(path.read_text()) if path.exists() else {"methods": {}}
    reference |= {"torch": torch.__version__, "transformers": transformers.__version__}
    bases = {}
    for run in args.runs.split(","):
        for tag in args.methods.split(","):
            started = time.time()
            smol.restore()
            entry = reference["methods"].setdefault(tag, {"runs": {}})
            if run == "masks":
                entry |= masks_of_block_0(smol, tag, data, out)
                result = {}
            else:
                result = entry["runs"][run] = chain(smol, tag, bases, None if run == "base" else int(run))
                losses = [result["nll_nats"] for result in entry["runs"].values()]
                entry["nll_range"] = [min(losses), max(losses)]
            path.write_text(json.dumps(reference, indent=1) + "\n")
            print(f"{run} {tag}: {result} {time.time() - started:.0f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("out")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--runs", default="masks,base,1,2")
    main(parser.parse_args())
