"""Writes cutlass_24.json: 2:4 matrices as PyTorch's conversion for CUTLASS's sparse kernels has them. tests/cuda_kernels.rs makes the same matrices.

Needs torch 2.15 (CPU).
"""

import json
import pathlib

import torch
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

PAIRS = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]


def weights(rows, cols):
    """Bits of 16-bit floats; groups keep a pair, or less."""
    bits = [0] * (rows * cols)
    for group in range(rows * cols // 4):
        state = (group * 2654435761 % 2**32) >> 13
        first, second = PAIRS[state % 6]
        if state % 7 != 0:
            bits[4 * group + first] = 0x3F80 + (4 * group + first) % 97
        if state % 11 != 0:
            bits[4 * group + second] = 0x3F80 + (4 * group + second) % 97
    return bits


def main():
    cases = []
    for rows, cols in [(32, 32), (32, 96), (64, 64)]:
        bits = torch.tensor(weights(rows, cols), dtype=torch.int16).view(torch.bfloat16).view(rows, cols)
        values, meta = sparse_semi_structured_from_dense_cutlass(bits)
        cases.append(
            {
                "rows": rows,
                "cols": cols,
                "values": values.view(torch.int16).flatten().tolist(),
                "meta": [x & 0xFFFF for x in meta.flatten().tolist()],
            }
        )
    path = pathlib.Path(__file__).parent / "cutlass_24.json"
    path.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


main()
