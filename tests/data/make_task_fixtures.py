"""Makes tests/data/tasks/loglikelihoods.json, what lm-evaluation-harness computes for tests/data/tasks/choices.jsonl.

    python make_task_fixtures.py MODEL choices.jsonl > loglikelihoods.json

needs lm-eval 0.4.13, torch and transformers, on a CPU; no network. MODEL is data/tiny-llama. Contexts and choices go
through `HFLM.loglikelihood` with the target delimiter " ", as the harness's multiple-choice tasks send them, in float32, one
sequence at a time. Per line: the log-likelihoods, and which choice `acc` and `acc_norm` take (argmax as it is, and
divided by `len(choice)`, as `ConfigurableTask.process_results` does).
"""

import json
import sys

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM


def main(model, path):
    torch.manual_seed(0)
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
