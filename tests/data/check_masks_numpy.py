"""Reads masks that lacuna wrote with numpy alone, compares the formats, and writes some for lacuna to read.

    python3 check_masks_numpy.py PACKED.safetensors U8.safetensors MASKS.npz OUT.npz

docs/masks.md describes what is read here.
"""
import hashlib
import json
import struct
import sys

import numpy as np


def safetensors(path):
    data = open(path, "rb").read()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        assert entry["dtype"] == "U8", entry
        tensors[name] = np.frombuffer(data[8 + length + start : 8 + length + end], np.uint8).reshape(entry["shape"])
    return metadata, tensors


def checksum(metadata, masks):
    """SHA-256 as docs/masks.md defines it."""
    results = {key: value for key, value in metadata.items() if key not in ("sha256", "environment")}
    text = json.dumps(results, separators=(",", ":"), ensure_ascii=False).encode()
    digest = hashlib.sha256()

    def update(part):
        digest.update(struct.pack("<Q", len(part)) + part)

    update(text)
    for name in sorted(masks, key=str.encode):
        mask = masks[name]
        update(name.encode())
        update(struct.pack("<QQ", *mask.shape))
        update(np.packbits(mask, axis=1, bitorder="little").tobytes())
    return digest.hexdigest()


packed_path, u8_path, npz_path, out = sys.argv[1:]
about, packed = safetensors(packed_path)
columns = json.loads(about["lacuna.columns"])
masks = {
    name: np.unpackbits(bits, axis=1, count=columns[name], bitorder="little").astype(bool)
    for name, bits in packed.items()
}
metadata = json.loads(about["lacuna.masks"])
assert checksum(metadata, masks) == metadata["sha256"], "checksum"

_, u8 = safetensors(u8_path)
npz = np.load(npz_path)
assert list(u8) == list(masks) and set(npz.files) == {*masks, "__metadata__"}, (list(u8), npz.files)
for name, mask in masks.items():
    assert npz[name].dtype == bool and np.array_equal(npz[name], mask) and np.array_equal(u8[name], mask), name
assert json.loads(npz["__metadata__"].tobytes()) == metadata

# What numpy may write: other types, orders and compression.
theirs = dict(masks)
first, second = list(masks)[:2]
theirs[first] = masks[first].astype(np.uint8)
theirs[second] = np.asfortranarray(masks[second])
np.savez_compressed(out, **theirs)
print(f"{len(masks)} masks agree")
