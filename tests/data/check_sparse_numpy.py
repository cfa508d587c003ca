"""Checks a compressed checkpoint against its dense one with numpy alone: check_sparse_numpy.py DENSE_DIR SPARSE_DIR"""

import json
import pathlib
import sys

import numpy as np

BYTES = {"F64": 8, "I64": 8, "F32": 4, "BF16": 2, "F16": 2}


def load(folder):
    """name -> (dtype, array of unsigned integers with the elements' bits)"""
    tensors = {}
    for path in sorted(pathlib.Path(folder).glob("*.safetensors")):
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            raw = np.frombuffer(data[start + begin : start + end], f"<u{BYTES.get(entry['dtype'], 1)}")
            tensors[name] = entry["dtype"], raw.reshape(entry["shape"])
    return tensors


def expand(parts):
    dense = {}
    for name, (dtype, array) in parts.items():
        if name.endswith(".compressed"):
            base = name.removesuffix(".compressed")
            rows, cols = parts[f"{base}.shape"][1].reshape(-1)
            mask = np.unpackbits(parts[f"{base}.bitmask"][1], axis=-1, count=int(cols), bitorder="little").astype(bool)
            kept = mask.sum(axis=-1)
            assert (parts[f"{base}.row_offsets"][1] == np.cumsum(kept) - kept).all(), base
            full = np.zeros((rows, cols), array.dtype)
            full[mask] = array.reshape(-1)
            dense[f"{base}.weight"] = dtype, full
        elif name.endswith(".values"):
            base = name.removesuffix(".values")
            rows, half = array.shape
            indices = parts[f"{base}.indices"][1]
            # Two bits for each kept element, the first of them lowest.
            places = np.stack([indices >> shift & 3 for shift in (0, 2, 4, 6)], axis=-1).reshape(rows, -1)[:, :half]
            groups = places.reshape(-1, 2)
            assert (groups[:, 0] < groups[:, 1]).all(), base
            full = np.zeros((rows * half // 2, 4), array.dtype)
            np.put_along_axis(full, groups, array.reshape(-1, 2), axis=1)
            dense[base] = dtype, full.reshape(rows, 2 * half)
        elif not name.endswith((".bitmask", ".indices", ".row_offsets", ".shape")):
            dense[name] = dtype, array
    return dense


dense, parts = load(sys.argv[1]), load(sys.argv[2])
expanded = expand(parts)
assert dense.keys() == expanded.keys(), dense.keys() ^ expanded.keys()
for name, (dtype, array) in dense.items():
    assert expanded[name][0] == dtype and np.array_equal(expanded[name][1], array), name
sparse = sum(name.endswith((".compressed", ".values")) for name in parts)
assert sparse, "no tensor is stored sparse"
print(f"{len(dense)} tensors are equal, {sparse} of them stored sparse")
