#!/usr/bin/env python
"""Seconds that PyTorch takes to select half of each row of block 0's linears as Wanda's reference code does: scores, a stable
sort of the rows, and a mask by scatter. Median of 30 runs on two threads."""

import statistics
import sys
import time

import torch
from transformers import AutoModelForCausalLM

torch.set_num_threads(2)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
layer = model.model.layers[0]
linears = [m.weight.detach().clone() for m in layer.modules() if isinstance(m, torch.nn.Linear)]
norms = [torch.rand(1, w.shape[1]) + 0.5 for w in linears]
times = []
with torch.inference_mode():
    for _ in range(30):
        started = time.perf_counter()
        for weight, norm in zip(linears, norms):
            metric = weight.abs() * norm
            mask = torch.zeros_like(metric, dtype=torch.bool)
            order = torch.sort(metric, dim=-1, stable=True)[1]
            mask.scatter_(1, order[:, : int(metric.shape[1] * 0.5)], True)
        times.append(time.perf_counter() - started)
print(statistics.median(times))
