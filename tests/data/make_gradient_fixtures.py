"""Prunes SmolLM2-135M by its gradient with PyTorch, in double and in single precision; tests/oracles_pruning.rs compares.

    python make_gradient_fixtures.py MODEL smollm2

needs torch, numpy and transformers 5.23, and 6 GB of memory for the double precision. MODEL and `smollm2` are as for
`make_pruning_fixtures.py`. Adds to `smollm2/gradients.json`

    pruned_50_nll_nats    loss on `eval.json` after the half of each linear with the smallest |dL/dW| has gone, where L is
                          the sum over windows of the mean cross-entropy: `f64`, `f32`, and `f32_reversed` with the windows
                          added from the last to the first

The model is evaluated in single precision always; only the gradient's differs.
"""

import json
import sys
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM


def load(path, dtype):
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval().requires_grad_(False)
    model.config.use_cache = False
    linears = [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and ".layers." in n]
    return model, dict(linears)


def gradients(path, dtype, windows):
    model, linears = load(path, dtype)
    for linear in linears.values():
        linear.weight.requires_grad_(True)
    for window in windows:
        cross_entropy(model(window[None]).logits[0, :-1], window[1:]).backward()
    return {name: linear.weight.grad.abs() for name, linear in linears.items()}


@torch.inference_mode()
def loss(path, scores, windows):
    model, linears = load(path, torch.float32)
    for name, score in scores.items():
        lowest = torch.sort(score.flatten(), stable=True).indices[: score.numel() // 2]
        linears[name].weight.data.view(-1)[lowest] = 0
    losses = [cross_entropy(model(w[None]).logits[0, :-1].double(), w[1:], reduction="sum") for w in windows]
    return float(sum(losses)) / sum(len(window) - 1 for window in windows)


def main(path, data):
    calibration, evaluation = (
        torch.tensor(json.loads((data / name).read_text())["input_ids"]) for name in ("calib.json", "eval.json")
    )
    runs = {
        "f64": (torch.float64, calibration),
        "f32": (torch.float32, calibration),
        "f32_reversed": (torch.float32, calibration.flip(0)),
    }
    nll = {name: loss(path, gradients(path, *run), evaluation) for name, run in runs.items()}
    file = data / "gradients.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pruned_50_nll_nats": nll}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
