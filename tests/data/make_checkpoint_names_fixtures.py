"""Losses of tests/checkpoint_names.rs by transformers, for the layouts of one model that it loads.

pip install torch transformers safetensors numpy, then: python make_checkpoint_names_fixtures.py
writes checkpoint_names.json: mean NLL in nats per predicted token, f64 arithmetic, and the versions.
"""
import json, os, shutil, tempfile
import numpy as np
import torch, transformers
from safetensors.numpy import save_file

CONFIG = dict(architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=128, hidden_size=32, intermediate_size=48,
              num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_act="silu",
              max_position_embeddings=256, rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=False,
              bos_token_id=1, eos_token_id=2)


def values(shape, seed):
    """Every test makes the same numbers: multiples of 1e-5 around zero, exact in f64, rounded once to f32."""
    i = np.arange(int(np.prod(shape)), dtype=np.int64)
    return ((((i * 7919 + seed * 104729) % 100003) - 50001) / 200000.0).astype(np.float32).reshape(shape)


def tensors(seed):
    t = {"model.embed_tokens.weight": 4 * values((128, 32), seed)}
    for l in range(2):
        p = f"model.layers.{l}."
        t[p + "input_layernorm.weight"] = np.ones(32, np.float32)
        for n, (name, out, inp) in enumerate((("self_attn.q_proj", 32, 32), ("self_attn.k_proj", 16, 32),
                                              ("self_attn.v_proj", 16, 32), ("self_attn.o_proj", 32, 32),
                                              ("mlp.gate_proj", 48, 32), ("mlp.up_proj", 48, 32), ("mlp.down_proj", 32, 48))):
            t[p + name + ".weight"] = values((out, inp), seed + 10 * l + n + 1)
        t[p + "post_attention_layernorm.weight"] = np.ones(32, np.float32)
    t["model.norm.weight"] = np.ones(32, np.float32)
    t["lm_head.weight"] = values((128, 32), seed + 50)
    return t


def windows():
    return ((np.arange(4 * 64) * 37 + np.arange(4 * 64) ** 2 % 101) % 128).reshape(4, 64)


def nll(directory):
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64).eval()
    ids = torch.tensor(windows())
    with torch.no_grad():
        logits = model(ids).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.reshape(-1, 128), ids[:, 1:].reshape(-1)).item()


def sharded(directory, weights, change=lambda m: m, place=lambda f: f):
    names, index = list(weights), {}
    for n, part in enumerate((names[:10], names[10:])):
        file = place(f"model-{n + 1:05}-of-00002.safetensors")
        os.makedirs(os.path.dirname(os.path.join(directory, file)), exist_ok=True)
        save_file({k: weights[k] for k in part}, os.path.join(directory, file), metadata={"format": "pt"})
        index.update({k: file for k in part})
    json.dump({"metadata": {}, "weight_map": change(index)}, open(f"{directory}/model.safetensors.index.json", "w"))


def single(directory, weights):
    save_file(weights, f"{directory}/model.safetensors", metadata={"format": "pt"})


SECOND = "model-00002-of-00002.safetensors"
BUFFER = "model.layers.0.self_attn.rotary_emb.inv_freq"
w, w9 = tensors(0), tensors(900)
LAYOUTS = {
    "plain": lambda d: single(d, w),
    "other": lambda d: single(d, w9),
    "no prefix": lambda d: single(d, {k.removeprefix("model."): v for k, v in w.items()}),
    "lists more": lambda d: sharded(d, w, lambda m: {**m, "mtp.fc.weight": SECOND}),
    "lists less": lambda d: sharded(d, {**w, BUFFER: np.ones(4, np.float32)}, lambda m: {k: v for k, v in m.items() if k != BUFFER}),
    "both": lambda d: (sharded(d, w), single(d, w9)),
}
result = {"transformers": transformers.__version__, "torch": torch.__version__, "nll": {}}
for name, write in LAYOUTS.items():
    directory = tempfile.mkdtemp()
    json.dump(CONFIG, open(f"{directory}/config.json", "w"))
    write(directory)
    result["nll"][name] = nll(directory)
    shutil.rmtree(directory)
    print(name, result["nll"][name])
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "checkpoint_names.json"), "w") as out:
    json.dump(result, out, indent=1)
    out.write("\n")
