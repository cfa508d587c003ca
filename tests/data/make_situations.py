"""Makes tests/data/situations.json, the table that tests/situations.rs compares with.

    python make_situations.py OUT.json

needs torch, numpy, safetensors and transformers 5.x on a CPU; no network. Each row is a checkpoint of some 24 thousand
parameters in a situation that was met in public: an output head that config.json denies, experts in one tensor, keys that are
left out. No checkpoint is committed: its weights follow from the names of its tensors (`values`), so that the test can write
the same files. `nll` is the mean loss in nats of each predicted token that transformers computes for the file as it lies there
(`from_pretrained`), float32; rows without one are those that must be refused, since transformers only runs them with weights
that it makes up.
"""

import json
import struct
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

BASE = dict(
    vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    hidden_act="silu", max_position_embeddings=256, rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=False,
    head_dim=8, bos_token_id=None, eos_token_id=None, pad_token_id=None,
)
MOE = dict(num_experts_per_tok=2, intermediate_size=24)
FAMILIES = {
    "llama": {},
    "mistral": dict(sliding_window=None),
    "qwen2": {},
    "qwen3": {},
    "mixtral": dict(**MOE, num_local_experts=4, sliding_window=None),
    "qwen2_moe": dict(
        num_experts_per_tok=2, num_experts=4, moe_intermediate_size=24, shared_expert_intermediate_size=16, decoder_sparse_step=1,
        norm_topk_prob=False,
    ),
    "qwen3_moe": dict(
        num_experts_per_tok=2, num_experts=4, moe_intermediate_size=24, norm_topk_prob=True, decoder_sparse_step=1,
        mlp_only_layers=[],
    ),
    "olmoe": dict(**MOE, num_experts=4, norm_topk_prob=False),
    "gpt_oss": dict(
        num_experts_per_tok=2, num_local_experts=4, intermediate_size=24, sliding_window=8, head_dim=8, attention_bias=True,
        rope_scaling=dict(rope_type="yarn", factor=4.0, beta_fast=32.0, beta_slow=1.0, original_max_position_embeddings=64,
                          truncate=False),
    ),
}
MIXTURES = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe"]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
MASK = (1 << 64) - 1


def uniform(name, count):
    """`count` numbers of [-1, 1) that follow from `name`: FNV-1a of its bytes, then splitmix64; 24 bits each, exact in f32."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 & MASK
    with np.errstate(over="ignore"):
        x = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return ((x >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23)) - np.float32(1)


def values(name, shape):
    u = uniform(name, int(np.prod(shape))).reshape(shape)
    if name.endswith("norm.weight"):
        return np.float32(1) + u / np.float32(4)
    if name.endswith("bias") or name.endswith("sinks"):
        return u / np.float32(4)
    if name in (EMBEDDING, HEAD):
        return u
    return u / np.float32(2)


def windows(count, length, vocab):
    ids = uniform("tokens", count * length)
    return ((ids + 1) / 2 * vocab).astype(np.int64).reshape(count, length)


def write(directory, config, tensors):
    directory.mkdir(parents=True)
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        header[name] = dict(dtype="F32", shape=list(tensor.shape), data_offsets=[at, at + tensor.nbytes])
        at += tensor.nbytes
    text = json.dumps(header).encode()
    blobs = b"".join(np.ascontiguousarray(tensor).tobytes() for tensor in tensors.values())
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + blobs)
    (directory / "config.json").write_text(json.dumps(config))


def shapes(config, fused):
    """The tensors that transformers writes for such a model, with an output head of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "config"
        path.mkdir()
        (path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(path))
        model.save_pretrained(Path(scratch) / "model", save_original_format=not fused)
        return {name: tensor.shape for name, tensor in load_file(Path(scratch) / "model" / "model.safetensors").items()}


def separate_names(config, name):
    """The names of gate, up and down projection of each expert of the mixture that the tensor `name` holds."""
    mixtral = config["model_type"] == "mixtral"
    module = name.split(".experts.")[0]
    module = module.replace(".mlp", ".block_sparse_moe") if mixtral else module
    gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    linears = [gate, up] if name.endswith("gate_up_proj") else [down]
    return lambda expert: [f"{module}.experts.{expert}.{linear}.weight" for linear in linears]


def tensors_of(config, fused):
    """The same values in either layout."""
    tensors = {}
    for name, shape in sorted(shapes(config, fused).items()):
        gpt_oss = config["model_type"] == "gpt_oss"  # It keeps its experts in one tensor in any case.
        if fused and not gpt_oss and name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            of = separate_names(config, name)
            rows = shape[1] // len(of(0))
            tensors[name] = np.stack(
                [np.concatenate([values(part, (rows, shape[2])) for part in of(expert)]) for expert in range(shape[0])]
            )
        else:
            own = name
            if fused and config["model_type"] == "mixtral":
                own = name.replace(".mlp.gate.", ".block_sparse_moe.gate.")
            tensors[name] = values(own, shape)
    return tensors


def with_head(tensors, head):
    """`own`: another matrix than the embedding. `equal`: a copy of it. `none`: not there. `only`: there is no embedding, and the
    head has its values."""
    tensors = dict(tensors)
    if head == "equal":
        tensors[HEAD] = tensors[EMBEDDING]
    elif head == "none":
        del tensors[HEAD]
    elif head == "only":
        tensors[HEAD] = tensors.pop(EMBEDDING)
    return tensors


def prune(config, tensors, sparsity):
    """Magnitude pruning of every linear of every block, in layers; of experts in one tensor each expert's by itself."""
    floor = lambda count: int(count * sparsity)

    def zeroed(matrix):
        flat = matrix.reshape(-1).copy()
        flat[np.argsort(np.abs(flat), kind="stable")[: floor(flat.size)]] = 0
        return flat.reshape(matrix.shape)

    pruned = {}
    for name, tensor in tensors.items():
        linear = name.endswith(("_proj.weight", ".w1.weight", ".w2.weight", ".w3.weight"))
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            one = lambda expert: zeroed(expert)
            if config["model_type"] != "gpt_oss" and name.endswith("gate_up_proj"):
                one = lambda expert: np.concatenate([zeroed(half) for half in np.split(expert, 2)])
            tensor = np.stack([one(expert) for expert in tensor])
        elif linear:
            tensor = zeroed(tensor)
        pruned[name] = tensor
    return pruned


def keep(config, tensors, kept):
    """Only the experts `kept` of each mixture."""
    left = {}
    router = ".mlp.router." if config["model_type"] == "gpt_oss" else ".gate."
    for name, tensor in tensors.items():
        if ".experts." in name:
            before, after = name.split(".experts.")
            expert = after.split(".")[0]
            if expert.isdigit():
                if int(expert) in kept:
                    number = kept.index(int(expert))
                    left[f"{before}.experts.{number}.{after.split('.', 1)[1]}"] = tensor
            else:
                left[name] = tensor[kept]
        elif router in name and "gate_proj" not in name:
            left[name] = tensor[kept]
        else:
            left[name] = tensor
    config = dict(config)
    for key in ("num_experts", "num_local_experts"):
        if key in config:
            config[key] = len(kept)
    return config, left


def nll(config, tensors, ids):
    """The loss of the checkpoint as it lies there, and what transformers misses in it."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model"
        write(path, config, tensors)
        model, info = transformers.AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, dtype=torch.float32)
        model.eval()
        missing = sorted(info["missing_keys"])
        ids = torch.from_numpy(ids)
        with torch.no_grad():
            # One window at a time, as much longer ones would not fit otherwise.
            logits = torch.cat([model(row[None], use_cache=False).logits for row in ids]).double()
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
        return float(loss), missing


def rows():
    for family, changes in FAMILIES.items():
        config = {**BASE, "model_type": family, **changes}
        tied = {**config, "tie_word_embeddings": True}
        for head in ["own", "equal", "none", "only"]:
            yield dict(name=f"{family}: tied, head {head}", config=tied, head=head)
        yield dict(name=f"{family}: not tied, head own", config=config, head="own")
        yield dict(name=f"{family}: not tied, head none", config=config, head="none", refused=True)
        yield dict(name=f"{family}: not tied, head only", config=config, head="only", refused=True)
    for family in [*MIXTURES, "gpt_oss"]:
        config = {**BASE, "model_type": family, **FAMILIES[family]}
        for experts in ["separate", "fused"]:
            if family == "gpt_oss" and experts == "separate":
                continue
            yield dict(name=f"{family}: experts {experts}", config=config, experts=experts)
            yield dict(name=f"{family}: experts {experts}, pruned", config=config, experts=experts, prune=0.5)
            yield dict(name=f"{family}: experts {experts}, two stay", config=config, experts=experts, keep=[1, 3])
    # Keys that are left out. Only a model of more than 28 blocks tells what `max_window_layers` is then, and only windows of
    # more than 4096 tokens what `sliding_window` is.
    deep = dict(num_hidden_layers=30, hidden_size=16, intermediate_size=8, num_attention_heads=2, num_key_value_heads=1)
    qwen = dict(use_sliding_window=True, sliding_window=8)
    small = dict(num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8, shared_expert_intermediate_size=8)
    for family in ["qwen2", "qwen3", "qwen2_moe", "qwen3_moe"]:
        config = {**BASE, "model_type": family, **FAMILIES[family]}
        extra = small if family.endswith("moe") else {}
        yield dict(name=f"{family}: 30 blocks, no max_window_layers", config={**config, **deep, **extra, **qwen})
        yield dict(name=f"{family}: max_window_layers 1", config={**config, **qwen, "max_window_layers": 1})
        if family != "qwen2_moe":  # Of which transformers makes a mask of no width, and fails.
            changes = {**qwen, "sliding_window": None, "max_window_layers": 0}
            yield dict(name=f"{family}: sliding_window null", config={**config, **changes})
    short = dict(num_hidden_layers=1, hidden_size=16, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=8192)
    for family in ["mistral", "qwen2", "qwen2_moe", "mixtral", "gpt_oss"]:
        config = {**BASE, "model_type": family, **FAMILIES[family], **short}
        if "qwen" in family:
            config.update(use_sliding_window=True, max_window_layers=1 if family.endswith("moe") else 0)
        config.pop("sliding_window", None)
        length = 160 if family == "gpt_oss" else 4160
        yield dict(name=f"{family}: no sliding_window", config=config, windows=[1, length])


def main():
    table = []
    for row in rows():
        row = {"head": "own", "experts": "separate", "windows": [2, 48], **row}
        config = row["config"]
        fused = row["experts"] == "fused"
        tensors = with_head(tensors_of(config, fused), row["head"])
        if "prune" in row:
            tensors = prune(config, tensors, row["prune"])
        measured = config
        if "keep" in row:
            measured, tensors = keep(config, tensors, row["keep"])
        try:
            loss, missing = nll(measured, tensors, windows(*row["windows"], config["vocab_size"]))
        except Exception as error:  # A row that transformers refuses too.
            loss, missing = None, [str(error).splitlines()[0]]
        if not row.pop("refused", False):
            row["nll"] = loss
        print(row["name"], loss, missing, file=sys.stderr)
        table.append(row)
    lines = ",\n".join(json.dumps(row) for row in table)
    about = dict(transformers=transformers.__version__, torch=torch.__version__)
    Path(sys.argv[1]).write_text(f'{{"made_with": {json.dumps(about)},\n"rows": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
