"""Makes tests/data/tasks/hub/scores.json: what lm-evaluation-harness computes for the rows in that directory.

    python make_hub_task_fixtures.py data/tiny-llama tests/data/tasks/hub > tests/data/tasks/hub/scores.json

needs lm-eval 0.4.13, torch and transformers, on a CPU; no network. The rows are our own, in the form that the hub has. The
harness's own tasks run on them with every default, once with the model as it is and once with a copy whose tokenizer has the
post-processor of Llama's (a BOS in front), which is written beside the rows for the time of the run.
"""

import json
import os
import shutil
import sys
import tempfile

os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
import lm_eval
from lm_eval.models.huggingface import HFLM

TASKS = ["boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"]


def with_bos(model, to):
    shutil.copytree(model, to)
    path = os.path.join(to, "tokenizer.json")
    tokenizer = json.load(open(path, encoding="utf-8"))
    bos, a, b = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, \
        {"Sequence": {"id": "B", "type_id": 1}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing", "single": [bos, a], "pair": [bos, a, b],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }
    json.dump(tokenizer, open(path, "w", encoding="utf-8"))
    return to


def scores(model, rows):
    lm = HFLM(pretrained=model, device="cpu", dtype="float32", batch_size=1)
    out = {}
    for name in TASKS:
        path = os.path.abspath(os.path.join(rows, name + ".jsonl"))
        files = {split: path for split in ("train", "validation", "test")}
        task = {"task": name, "dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
        result = lm_eval.simple_evaluate(model=lm, tasks=[task], bootstrap_iters=0, log_samples=True)
        samples = sorted(result["samples"][name], key=lambda sample: sample["doc_id"])
        metrics = {key.split(",")[0]: value for key, value in result["results"][name].items()
                   if key in ("acc,none", "acc_norm,none")}
        out[name] = {
            **metrics,
            "log_likelihoods": [[float(answer[0]) for answer in sample["filtered_resps"]] for sample in samples],
            "requests": [[list(sample["arguments"][key].values()) if isinstance(sample["arguments"], dict) else list(key)
                          for key in sample["arguments"]] for sample in samples],
        }
    return out


if __name__ == "__main__":
    model, rows = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        json.dump({"plain": scores(model, rows), "bos": scores(with_bos(model, os.path.join(folder, "bos")), rows)},
                  sys.stdout, indent=1, ensure_ascii=False)
