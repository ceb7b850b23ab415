"""Writes gguf_blocks.json: one block of every ggml format that is read, with its values as gguf-py has them.

python make_gguf_blocks.py    (gguf 0.19, numpy)
"""

import json
import pathlib

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize

rng = np.random.default_rng(20261122)
SCALES = {  # where half-precision scales stand in a block
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0], "MXFP4": [],
}
out = {}
for name, scales in SCALES.items():
    block, size = GGML_QUANT_SIZES[T[name]]
    raw = rng.integers(0, 256, size, dtype=np.uint8)
    for at in scales:
        raw[at : at + 2] = np.frombuffer(np.float16(rng.uniform(-0.1, 0.1)).tobytes(), np.uint8)
    if name == "MXFP4":
        raw[0] = 120
    values = dequantize(raw.reshape(1, -1), T[name]).astype("<f4").ravel()
    assert values.size == block and np.isfinite(values).all()
    out[name] = {"bytes": raw.tobytes().hex(), "values": values.tobytes().hex()}
sizes = {t.name: [int(t.value), *map(int, s)] for t, s in GGML_QUANT_SIZES.items()}
path = pathlib.Path(__file__).with_name("gguf_blocks.json")
lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(block)}" for name, block in out.items())
path.write_text(f'{{"sizes": {json.dumps(sizes)},\n "blocks": {{\n{lines}\n}}}}\n')
