"""Makes tests/data/tasks/hub/scores.json: what lm-evaluation-harness computes for the rows in that directory.

    python make_hub_task_fixtures.py data/tiny-llama tests/data/tasks/hub > tests/data/tasks/hub/scores.json

needs lm-eval 0.4.13, torch and transformers, on a CPU; no network. The rows are our own, in the form that the hub has. The
harness's own tasks run on them with every default, once with the model as it is and once with a copy whose tokenizer puts a
BOS in front. The rows are written as parquet, too, under the names that the hub gives them: tests/data/tasks/hub-parquet.
"""

import json
import os
import sys
import tempfile

os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
import lm_eval
import pyarrow.json
import pyarrow.parquet
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from make_task_fixtures import with_bos

MANAGER = TaskManager()
TASKS = ["boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"]


# The part of each that the harness scores.
FILES = {
    "boolq": "boolq/validation", "rte": "glue/rte/validation", "hellaswag": "hellaswag/validation",
    "winogrande": "winogrande/validation", "arc_easy": "ai2_arc/ARC-Easy/test", "arc_challenge": "ai2_arc/ARC-Challenge/test",
    "openbookqa": "openbookqa/test",
}


def as_parquet(rows, to):
    for name, path in FILES.items():
        file = os.path.join(to, path + "-00000-of-00001.parquet")
        os.makedirs(os.path.dirname(file), exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.json.read_json(os.path.join(rows, name + ".jsonl")), file)


def scores(model, rows):
    lm = HFLM(pretrained=model, device="cpu", dtype="float32", batch_size=1)
    out = {}
    for name in TASKS:
        path = os.path.abspath(os.path.join(rows, name + ".jsonl"))
        files = {split: path for split in ("train", "validation", "test")}
        # The harness's own task, but for where its rows are.
        config = load_yaml(MANAGER.task_index[name].yaml_path, resolve_func=True)
        config.update(dataset_path="json", dataset_name=None, dataset_kwargs={"data_files": files})
        config.pop("tag", None)
        result = lm_eval.simple_evaluate(
            model=lm, tasks=[config], task_manager=MANAGER, bootstrap_iters=0, log_samples=True)
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
    as_parquet(rows, rows.rstrip("/") + "-parquet")
    with tempfile.TemporaryDirectory() as folder:
        json.dump({"plain": scores(model, rows), "bos": scores(with_bos(model, os.path.join(folder, "bos")), rows)},
                  sys.stdout, indent=1, ensure_ascii=False)
