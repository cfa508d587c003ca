"""Makes tests/data/tasks/loglikelihoods.json, what lm-evaluation-harness computes for tests/data/tasks/choices.jsonl.

    python make_task_fixtures.py MODEL choices.jsonl > loglikelihoods.json
    python make_task_fixtures.py MODEL choices.jsonl bos > loglikelihoods_bos.json

needs lm-eval 0.4.13, torch and transformers, on a CPU; no network. MODEL is data/tiny-llama; with `bos`, a copy of it whose
tokenizer has the post-processor of Llama's, which puts a BOS in front of every text. Contexts and choices go
through `HFLM.loglikelihood` with the target delimiter " ", as the harness's multiple-choice tasks send them, in float32, one
sequence at a time. Per line: the log-likelihoods, and which choice `acc` and `acc_norm` take (argmax as it is, and
divided by `len(choice)`, as `ConfigurableTask.process_results` does).
"""

import json
import os
import shutil
import sys
import tempfile

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM


def with_bos(model, to):
    """Copies `model` to the folder `to` with a tokenizer that adds a BOS."""
    shutil.copytree(model, to)
    path = os.path.join(to, "tokenizer.json")
    with open(path, encoding="utf-8") as file:
        tokenizer = json.load(file)
    bos = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    a, b = ({"Sequence": {"id": name, "type_id": k}} for k, name in enumerate("AB"))
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing", "single": [bos, a], "pair": [bos, a, b],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }
    with open(path, "w", encoding="utf-8") as file:
        json.dump(tokenizer, file)
    return to


def main(model, path, bos=None):
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        scores(with_bos(model, os.path.join(folder, "model")) if bos else model, path)


def scores(model, path):
    lm = HFLM(pretrained=model, device="cpu", dtype="float32", batch_size=1)
    out = []
    for line in open(path, encoding="utf-8"):
        example = json.loads(line)
        context, choices = example["context"], example["choices"]
        requests = [
            Instance(request_type="loglikelihood", doc=example, arguments=(context, f" {choice}"), idx=i)
            for i, choice in enumerate(choices)
        ]
        scores = np.array([score for score, _ in lm.loglikelihood(requests, disable_tqdm=True)])
        lengths = np.array([float(len(choice)) for choice in choices])
        out.append({
            "log_likelihoods": scores.tolist(),
            "predicted": int(np.argmax(scores)),
            "predicted_norm": int(np.argmax(scores / lengths)),
        })
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
