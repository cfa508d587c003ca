#!/usr/bin/env python3
"""Writes the seeds of the fuzz targets to fuzz/corpus: python3 fuzz/make_corpus.py, with the standard library only. They are
small files as other programs write them, and as they must not be; masks come from tests/data/masks."""

import io
import json
import struct
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "fuzz/corpus"
# Of a zip entry, so that the same seeds have the same bytes.
DATE = (1980, 1, 1, 0, 0, 0)


def seed(target, name, content):
    path = CORPUS / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def safetensors(header, data=b""):
    text = json.dumps(header, separators=(",", ":")).encode() if isinstance(header, dict) else header
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def headers():
    two = {"__metadata__": {"format": "pt"}, "a": tensor("F32", [2, 1], 0, 8), "b": tensor("BF16", [3], 8, 14)}
    seed("safetensors_header", "two", safetensors(two, bytes(14)))
    every = ["BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "F64", "I64", "U64"]
    sizes = [1] * 6 + [2] * 4 + [4] * 3 + [8] * 3
    header, at = {}, 0
    for dtype, size in zip(every, sizes):
        header[dtype] = tensor(dtype, [], at, at + size)
        at += size
    seed("safetensors_header", "every_type", safetensors(header, bytes(at)))
    seed("safetensors_header", "half_bytes", safetensors({"f": tensor("F4", [2, 2], 0, 2), "e": tensor("F32", [0, 9], 2, 2)}, bytes(2)))
    seed("safetensors_header", "padded", safetensors(b'{"\\u00e9":{"data_offsets":[0,1],"shape":[1],"dtype":"U8"}}     ', b"x"))
    seed("safetensors_header", "twice", safetensors(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":null}', b"x"))
    seed("safetensors_header", "empty", safetensors({}))
    seed("safetensors_header", "long", struct.pack("<Q", 1 << 60) + b"{}")


def npy(descr, shape, data, order="False", version=1):
    text = f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + data


def archive(entries, method=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        for name, content in entries.items():
            file.writestr(zipfile.ZipInfo(name, DATE), content, method)
    return out.getvalue()


def archives():
    mask = bytes([0, 1, 1, 0, 0, 1])
    seed("npz", "stored", archive({"a.npy": npy("|b1", "(2, 3)", mask)}))
    two = {"w.npy": npy("|u1", "(3, 2)", mask, "True"), "v.npy": npy("|b1", "(1, 6)", mask, version=2)}
    seed("npz", "deflated", archive(two, zipfile.ZIP_DEFLATED))
    kept = struct.pack("<4f", 0, 1, 1, 0)
    seed("npz", "kept", archive({"a.weight_mask.npy": npy("<f4", "(2, 2)", kept), "a.bias.npy": npy("<f4", "(1,)", kept[:4])}))
    seed("npz", "metadata", archive({"__metadata__.npy": npy("|u1", "(2,)", b"{}"), "a.npy": npy("|b1", "(2, 3)", mask)}))
    seed("npz", "huge", archive({"a.npy": npy("|b1", f"({1 << 62}, 4)", mask)}))


def pickles():
    legacy = (ROOT / "tests/data/masks/legacy.pt").read_bytes()
    seed("pickle", "legacy", legacy)
    seed("pickle", "legacy_prune", (ROOT / "tests/data/masks/prune-legacy.pt").read_bytes())
    with zipfile.ZipFile(ROOT / "tests/data/masks/prune.pt") as file:
        name = next(name for name in file.namelist() if name.endswith("/data.pkl"))
        seed("pickle", "prune", file.read(name))

    def text(text):
        return b"X" + struct.pack("<I", len(text)) + text

    storage = b"(" + text(b"storage") + b"ctorch\nBoolStorage\n" + text(b"0") + text(b"cpu") + b"M\x00\x01tQ"
    view = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x02K\x03K\x04\x86K\x04K\x01\x86\x89ccollections\nOrderedDict\n)RtR"
    seed("pickle", "view", b"\x80\x02}q\x00" + text(b"a") + view + b"q\x01s" + text(b"b") + b"h\x01s.")
    expanded = view.replace(b"K\x03K\x04\x86K\x04K\x01\x86", b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86K\x00K\x00\x86")
    seed("pickle", "expanded", b"\x80\x02}" + text(b"a") + expanded + b"s.")
    seed("pickle", "far", b"\x80\x02}Nr\xff\xff\xff\x00j\xff\xff\xff\x000.")
    seed("pickle", "numbers", b"\x80\x02}(\x8a\x09" + b"\xff" * 9 + b"J\xff\xff\xff\xff\x88N]q\x01(K\x01eu.")


def gguf_string(text):
    return struct.pack("<Q", len(text)) + text


def gguf_value(value):
    """Type and bytes of a value: a number is u32, or f32 where it has a point."""
    match value:
        case bool():
            return 7, struct.pack("<B", value)
        case int():
            return 4, struct.pack("<I", value)
        case float():
            return 6, struct.pack("<f", value)
        case bytes():
            return 8, gguf_string(value)
        case list():
            items = [gguf_value(item) for item in value]
            return 9, struct.pack("<IQ", items[0][0], len(items)) + b"".join(item for _, item in items)


def gguf(metadata, tensors):
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        kind, content = gguf_value(value)
        out += gguf_string(key.encode()) + struct.pack("<I", kind) + content
    data = b""
    for name, dims in tensors.items():
        count = 1
        for dim in dims:
            count *= dim
        out += gguf_string(name.encode()) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, 0, len(data))
        data += struct.pack(f"<{count}f", *(1 / (1 + at) for at in range(count)))
        data += bytes(-len(data) % 32)
    return out + bytes(-len(out) % 32) + data


def ggufs():
    for name in ["llama", "qwen2", "qwen3"]:
        key = lambda part: f"{name}.{part}"
        metadata = {
            "general.architecture": name.encode(),
            key("block_count"): 1,
            key("context_length"): 8,
            key("embedding_length"): 4,
            key("feed_forward_length"): 2,
            key("attention.head_count"): 2,
            key("attention.head_count_kv"): 1,
            key("attention.layer_norm_rms_epsilon"): 1e-5,
            "tokenizer.ggml.model": b"gpt2",
            "tokenizer.ggml.pre": b"qwen2" if name != "llama" else b"smollm",
            "tokenizer.ggml.tokens": [b"<s>", b"a", b"b", b"ab"],
            "tokenizer.ggml.token_type": [3, 1, 1, 1],
            "tokenizer.ggml.merges": [b"a b"],
            "tokenizer.ggml.bos_token_id": 0,
            "tokenizer.ggml.add_bos_token": True,
        }
        if name == "llama":
            pieces = {
                "tokenizer.ggml.model": b"llama",
                "tokenizer.ggml.tokens": [b"<unk>", b"<s>", b"</s>", "\u2581".encode(), b"a", b"<0x0A>"],
                "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 6],
                "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -1.0, -2.0, 0.0],
            }
            seed("gguf", "sentencepiece", gguf(metadata | pieces, {"token_embd.weight": [4, 6]}))
        # Dimensions with the columns first.
        tensors = {"token_embd.weight": [4, 4], "output_norm.weight": [4]}
        shapes = {"attn_norm": [4], "attn_q": [4, 4], "attn_k": [4, 2], "attn_v": [4, 2], "attn_output": [4, 4]}
        shapes |= {"ffn_norm": [4], "ffn_gate": [4, 2], "ffn_up": [4, 2], "ffn_down": [2, 4]}
        if name == "qwen3":
            shapes |= {"attn_q_norm": [2], "attn_k_norm": [2]}
        tensors |= {f"blk.0.{part}.weight": dims for part, dims in shapes.items()}
        seed("gguf", name, gguf(metadata, tensors))
    seed("gguf", "alignment", gguf({"general.alignment": 0}, {}))
    seed("gguf", "layers", gguf(metadata | {"qwen3.block_count": (1 << 31) - 1}, tensors))


def frames():
    seed("zmtp_frame", "message", b"\x01\x05first\x00\x06second")
    seed("zmtp_frame", "long", b"\x02" + struct.pack(">Q", 300) + b"x" * 300)
    seed("zmtp_frame", "ping", b"\x04\x0a\x04PING\x00\x00abc")
    seed("zmtp_frame", "claim", b"\x02" + b"\xff" * 8)
    seed("zmtp_frame", "almost", b"\x02" + struct.pack(">Q", 1 << 30) + b"x")
    seed("zmtp_frame", "properties", b"\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\x02me")


def ranges():
    for name, text in {
        "range": "bytes 0-7/99",
        "unknown": "bytes 5-5/*",
        "unsatisfied": "bytes */99",
        "reversed": "bytes 7-0/99",
        "greatest": "bytes 0-18446744073709551615/*",
        "beyond": "bytes 0-99/99",
    }.items():
        seed("content_range", name, text.encode())


for make in [headers, archives, pickles, ggufs, frames, ranges]:
    make()
