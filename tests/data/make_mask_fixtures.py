"""masks/: a model's masks as PyTorch's own pruning saves them, in both layouts of `torch.save`, and a dict of boolean masks in
the one from before 1.6. tests/masks.rs has the formula of the masks, too.

pip install torch safetensors numpy, then: python make_mask_fixtures.py
"""
import os
import torch
from safetensors.torch import save_file
from torch.nn.utils import prune

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "masks")
LINEARS = {"q_proj": (8, 6), "k_proj": (4, 6)}


def stays(rows, cols):
    r, c = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
    return (r * 7 + c * 3) % 5 != 0


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = torch.nn.Module()
        layer = torch.nn.Module()
        self.model.layers = torch.nn.ModuleList([layer])
        layer.self_attn = torch.nn.Module()
        for name, (out, inp) in LINEARS.items():
            linear = torch.nn.Linear(inp, out, bias=name == "q_proj", dtype=torch.bfloat16 if name == "k_proj" else torch.float32)
            prune.custom_from_mask(linear, "weight", stays(out, inp))
            setattr(layer.self_attn, name, linear)


torch.manual_seed(0)
os.makedirs(HERE, exist_ok=True)
state = torch.nn.DataParallel(Model()).state_dict()  # names begin with `module.`
torch.save(state, f"{HERE}/prune.pt")
torch.save(state, f"{HERE}/prune-legacy.pt", _use_new_zipfile_serialization=False)
save_file({k: v.contiguous() for k, v in state.items()}, f"{HERE}/prune.safetensors")
pruned = {f"model.layers.0.self_attn.{name}.weight": ~stays(*shape) for name, shape in LINEARS.items()}
torch.save(pruned, f"{HERE}/legacy.pt", _use_new_zipfile_serialization=False)
print({k: (tuple(v.shape), v.dtype) for k, v in state.items()})
