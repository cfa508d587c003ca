"""Makes tests/data/text: the same rows as JSON and as parquet files of several writers' settings, and a zstd file.

    python make_text_fixtures.py tests/data/text

needs pyarrow and zstandard; no network. `rows.json` is what `pyarrow.Table.to_pylist` gives back for each of the files.
"""

import json
import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

WORDS = "the white whale sank the ship and no man of the crew was seen again café 鯨 🐋 .".split()


def row(i):
    words = [WORDS[(i * 7 + k * k) % len(WORDS)] for k in range(30 + i % 5)]
    return {
        "text": " ".join(words),
        "id": i * i * 1001 - 5000,
        "small": None if i % 4 == 1 else i % 3,
        "flag": None if i % 7 == 3 else i % 2 == 0,
        "score": i / 8,
        "tags": None if i % 5 == 2 else [None if k == 1 else words[k] for k in range(i % 4)],
        "choices": {"text": words[: i % 5], "label": ["A", "B", "C", "D", "E"][: i % 5]},
        "pairs": [{"a": k, "b": [words[k], words[k + 1]][: k % 3]} for k in range(i % 3)],
    }


SCHEMA = pa.schema([
    ("text", pa.string()), ("id", pa.int64()), ("small", pa.int32()), ("flag", pa.bool_()), ("score", pa.float64()),
    ("tags", pa.list_(pa.string())), ("choices", pa.struct([("text", pa.list_(pa.string())), ("label", pa.list_(pa.string()))])),
    ("pairs", pa.list_(pa.struct([("a", pa.int64()), ("b", pa.list_(pa.large_string()))]))),
])
DELTAS = {"text": "DELTA_BYTE_ARRAY", "id": "DELTA_BINARY_PACKED", "small": "DELTA_BINARY_PACKED", "flag": "RLE",
          "choices.text.list.element": "DELTA_LENGTH_BYTE_ARRAY"}
FILES = {
    "snappy": {},  # every default of the writer, which the hub's are
    "groups": {"compression": "gzip", "row_group_size": 7, "data_page_size": 64, "use_dictionary": ["text", "tags.list.element"]},
    "zstd2": {"compression": "zstd", "data_page_version": "2.0", "data_page_size": 128},
    "deltas": {"compression": "none", "use_dictionary": False, "column_encoding": DELTAS, "data_page_version": "2.0"},
    "plain": {"compression": "snappy", "use_dictionary": False, "use_compliant_nested_type": False, "version": "1.0"},
    "brotli": {"compression": "brotli"},
    "split": {"use_dictionary": False, "column_encoding": {"score": "BYTE_STREAM_SPLIT"}},
}


def main(folder):
    os.makedirs(folder, exist_ok=True)
    table = pa.Table.from_pylist([row(i) for i in range(23)], schema=SCHEMA)
    for name, options in FILES.items():
        path = os.path.join(folder, name + ".parquet")
        pq.write_table(table, path, write_statistics=False, **options)
        assert pq.read_table(path).to_pylist() == table.to_pylist()
    with open(os.path.join(folder, "rows.json"), "w", encoding="utf-8") as file:
        json.dump(table.to_pylist(), file, ensure_ascii=False, indent=0)
    ids = pa.table({"input_ids": pa.array([[i * 8 + k for k in range(8)] for i in range(4)], pa.list_(pa.int32()))})
    pq.write_table(ids, os.path.join(folder, "ids.parquet"))
    lines = "".join(json.dumps({"text": r["text"], "url": "https://a.example/"}) + "\n" for r in table.to_pylist())
    # Two frames, as programs that compress in parallel leave them.
    half = lines.index("\n", len(lines) // 2) + 1
    packed = b"".join(zstandard.compress(part.encode(), 9) for part in (lines[:half], lines[half:]))
    with open(os.path.join(folder, "lines.json.zst"), "wb") as file:
        file.write(packed)


if __name__ == "__main__":
    main(*sys.argv[1:])
