"""Makes the tiny mixtures of experts that tests/saliency.rs and tests/experts_oracles.rs compare with.

    python make_moe_fixtures.py OUT

needs torch, numpy, safetensors and transformers 5.23, on a CPU; no network. For each family below it writes a directory
to OUT: a checkpoint with seeded random weights, `tokens.json` (3 windows of 40 tokens), `logits.npz` (what transformers
computes for them), and `saliency.json`, for each block with a mixture:

    frequency       how many tokens were routed to the expert
    ean             sum over those tokens of ||f(x)||, f(x) the expert's output before the gate
    reap            mean over those tokens of gate * ||f(x)||, the gate that the forward pass multiplies by
    reap_softmax    the same with the probability among all experts for the gate
    max_activation  largest |element| of f(x)

All but the logits are accumulated in float64 from what the routers and mixtures received in the float32 forward pass.
`saliency.json` also lists for each block the four experts that have the highest score, ties by position, and `logits_reap4.npz`
is what transformers computes when each block has only those of the highest REAP: rows of routers and slices of experts are
taken out of the modules.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

COMMON = dict(
    vocab_size=128, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, num_experts_per_tok=2,
    max_position_embeddings=256, use_cache=False, pad_token_id=None, bos_token_id=None, eos_token_id=None,
)
FAMILIES = {
    # Block 1 has an MLP, as `mlp_only_layers` says; heads are wider than hidden_size / heads.
    "tiny-qwen3-moe": transformers.Qwen3MoeConfig(
        **COMMON, num_hidden_layers=3, head_dim=16, intermediate_size=48, moe_intermediate_size=24, num_experts=8,
        norm_topk_prob=True, mlp_only_layers=[1],
    ),
    # Blocks 1 and 3 have mixtures, as `decoder_sparse_step` says; blocks 0 and 2 attend to 7 tokens.
    "tiny-qwen2-moe": transformers.Qwen2MoeConfig(
        **COMMON, num_hidden_layers=4, intermediate_size=48, moe_intermediate_size=24, num_experts=8,
        shared_expert_intermediate_size=40, norm_topk_prob=False, decoder_sparse_step=2,
        use_sliding_window=True, sliding_window=7, max_window_layers=3,
    ),
    "tiny-olmoe": transformers.OlmoeConfig(
        **COMMON, num_hidden_layers=2, intermediate_size=24, num_experts=8, norm_topk_prob=False, clip_qkv=1.2,
    ),
    # Saved twice: packed in MXFP4, and what that unpacks to.
    "tiny-gpt-oss-f32": transformers.GptOssConfig(
        **{**COMMON, "max_position_embeddings": 131072}, num_hidden_layers=2, head_dim=16, intermediate_size=32,
        num_local_experts=8, sliding_window=8, swiglu_limit=2.0,
    ),
}
KEEP = 4
LUT = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def randomise(model, generator):
    """Activations of order one, nothing trivial, routers that have favourites."""
    for name, parameter in model.named_parameters():
        normal = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            value = 1 + 0.3 * normal
        elif "bias" in name or "sinks" in name:
            value = 0.5 * normal
        elif "embed" in name or "lm_head" in name:
            value = normal if "embed" in name else 0.2 * normal
        else:
            value = 0.25 * normal
        parameter.data.copy_(value)


def unpack(blocks, scales):
    """MXFP4 to float32, weight by weight: (experts, out, in / 32, 16) and (experts, out, in / 32) to (experts, in, out)."""
    experts, out, groups, _ = blocks.shape
    weights = np.zeros((experts, out, groups, 32), np.float32)
    for at in np.ndindex(*blocks.shape):
        for nibble, code in enumerate((int(blocks[at]) & 15, int(blocks[at]) >> 4)):
            value = LUT[code & 7] * (-1 if code & 8 else 1) * 2.0 ** (int(scales[at[:3]]) - 127)
            weights[at[:3]][2 * at[3] + nibble] = value
    return torch.from_numpy(weights.reshape(experts, out, groups * 32).transpose(0, 2, 1).copy())


def pack(model, generator):
    """Random MXFP4 experts; the model gets what they unpack to. Returns the packed tensors by name."""
    packed = {}
    for name, parameter in model.named_parameters():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, inputs, out = parameter.shape
            shape = (experts, out, inputs // 32)
            blocks = torch.randint(0, 256, (*shape, 16), generator=generator).to(torch.uint8)
            scales = torch.randint(122, 126, shape, generator=generator).to(torch.uint8)
            value = unpack(blocks.numpy(), scales.numpy())
            assert torch.equal(value, convert_moe_packed_tensors(blocks, scales, dtype=torch.float32))
            parameter.data.copy_(value)
            packed[f"{name}_blocks"], packed[f"{name}_scales"] = blocks, scales
    return packed


def expert(module, j, x):
    """f_j(x) in float64, `module` being the mixture's experts."""
    gate_up, down = module.gate_up_proj[j].double(), module.down_proj[j].double()
    if hasattr(module, "gate_up_proj_bias"):
        y = x @ gate_up + module.gate_up_proj_bias[j].double()
        gate, up = y[:, ::2].clamp(max=module.limit), y[:, 1::2].clamp(-module.limit, module.limit)
        inner = (up + 1) * gate * torch.sigmoid(module.alpha * gate)
        return inner @ down + module.down_proj_bias[j].double()
    gate, up = (x @ gate_up.T).chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up) @ down.T


def saliency(model, tokens):
    """Runs the model; logits and a dict per block with a mixture."""
    seen, hooks = [], []
    for layer, block in enumerate(model.model.layers):
        experts = getattr(block.mlp, "experts", None)
        if experts is None:
            continue
        router = block.mlp.router if hasattr(block.mlp, "router") else block.mlp.gate
        entry = dict(layer=layer, experts=experts)
        seen.append(entry)

        def routed(_, inputs, outputs, entry=entry):
            entry["x"] = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
            entry["logits"], entry["gates"], entry["chosen"] = outputs

        def mixed(_, __, output, entry=entry):
            entry["output"] = output.reshape(entry["x"].shape).double()

        hooks += [router.register_forward_hook(routed), experts.register_forward_hook(mixed)]
    with torch.no_grad():
        logits = model(tokens).logits
    for hook in hooks:
        hook.remove()

    layers = []
    for entry in seen:
        count = entry["logits"].shape[-1]
        probs = entry["logits"].double().softmax(-1)
        mixture = torch.zeros_like(entry["x"])
        result = dict(
            layer=entry["layer"], tokens=len(entry["x"]), frequency=[], ean=[], reap=[], reap_softmax=[], max_activation=[]
        )
        for j in range(count):
            token, slot = torch.where(entry["chosen"] == j)
            y = expert(entry["experts"], j, entry["x"][token])
            gate, norm = entry["gates"][token, slot].double(), y.norm(dim=-1)
            mixture.index_add_(0, token, y * gate[:, None])
            n = len(token)
            result["frequency"].append(n)
            result["ean"].append(norm.sum().item())
            result["reap"].append((gate * norm).sum().item() / max(n, 1))
            result["reap_softmax"].append((probs[token, j] * norm).sum().item() / max(n, 1))
            result["max_activation"].append(y.abs().max().item() if n else 0.0)
        assert (mixture - entry["output"]).abs().max() < 1e-4, "these gates and experts make the mixture's output"
        best = entry["logits"].sort(-1, descending=True).values
        assert (best[:, 1] - best[:, 2]).min() > 1e-4, "no token whose choice hangs on rounding; take another seed"
        layers.append(result)
    return logits, layers


def best(layers, score):
    """The experts of each layer that stay, ascending."""
    return [sorted(np.argsort([-value for value in layer[score]], kind="stable")[:KEEP].tolist()) for layer in layers]


def prune(model, layers, kept):
    """Leaves each block with a mixture its `kept` experts."""
    for layer, kept in zip(layers, kept):
        mixture = model.model.layers[layer["layer"]].mlp
        router = mixture.router if hasattr(mixture, "router") else mixture.gate
        for module in (mixture.experts, router):
            for parameter in module.parameters():
                parameter.data = parameter.data[kept].clone()
            module.num_experts = len(kept)


def write(out, model, tokens, logits, layers):
    model.save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    (out / "tokens.json").write_text(json.dumps({"shape": list(tokens.shape), "input_ids": tokens.tolist()}) + "\n")
    np.savez(out / "logits.npz", logits=logits.numpy())
    lists = {f"kept_by_{score}": best(layers, score) for score in ("reap", "reap_softmax", "frequency")}
    (out / "saliency.json").write_text(json.dumps({"layers": layers, **lists}, indent=1) + "\n")


def main(out):
    for seed, (name, config) in enumerate(FAMILIES.items()):
        generator = torch.Generator().manual_seed(seed)
        config._attn_implementation = "eager"
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        randomise(model, generator)
        packed = pack(model, generator) if config.model_type == "gpt_oss" else {}
        tokens = torch.randint(0, config.vocab_size, (3, 40), generator=generator)
        logits, layers = saliency(model, tokens)
        print(f"{name}: logits of {logits.std():.2f}, frequencies {[layer['frequency'] for layer in layers]}")
        write(out / name, model, tokens, logits, layers)
        prune(model, layers, best(layers, "reap"))
        pruned, _ = saliency(model, tokens)
        print(f"  logits after pruning differ by {(pruned - logits).std():.2f}")
        np.savez(out / name / "logits_reap4.npz", logits=pruned.numpy())
        if packed:
            twin = out / name.replace("f32", "mxfp4")
            twin.mkdir(parents=True, exist_ok=True)
            tensors = load_file(out / name / "model.safetensors")
            kept = {key: value for key, value in tensors.items() if f"{key}_blocks" not in packed}
            save_file({**kept, **packed}, twin / "model.safetensors", metadata={"format": "pt"})
            settings = json.loads((out / name / "config.json").read_text())
            settings["quantization_config"] = {"quant_method": "mxfp4"}
            (twin / "config.json").write_text(json.dumps(settings, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
