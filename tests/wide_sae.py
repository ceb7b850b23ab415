"""Measures what reading and compiling 100 features of a wide SAE costs: seconds and anonymous memory.

    python3 tests/wide_sae.py target/release/neurograft DIR [FEATURES]

Writes a random SAE of 65,536 features in a stream of 4,096, f32, in SAELens's layout (2.1 GB, features are columns of W_enc) to
DIR, compiles 100 ablations cold (the file's pages dropped first) and warm, and samples RssAnon, the memory that is the
program's own. Linux; needs numpy.
"""

import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np

D, F = 4096, 65536


def write(folder):
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {"W_enc": (D, F), "W_dec": (F, D), "b_enc": (F,), "b_dec": (D,), "threshold": (F,)}
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(6)
    with open(folder / "sae_weights.safetensors", "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            left = int(np.prod(shape))
            while left:
                n = min(left, 1 << 24)
                values = rng.standard_normal(n, dtype=np.float32) / np.float32(np.sqrt(D))
                f.write((np.abs(values) + 0.5 if name == "threshold" else values).astype(np.float32).tobytes())
                left -= n
        os.fsync(f.fileno())
    (folder / "cfg.json").write_text(json.dumps({
        "architecture": "jumprelu", "d_in": D, "d_sae": F, "dtype": "float32", "apply_b_dec_to_input": False,
        "normalize_activations": "none", "metadata": {"hook_name": "blocks.0.hook_resid_post"}}))


def run(command, path, cold):
    if cold:
        with open(path, "rb") as f:
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start, peak = time.monotonic(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            for line in open(f"/proc/{process.pid}/status"):
                if line.startswith("RssAnon"):
                    peak = max(peak, int(line.split()[1]) * 1024)
        except (FileNotFoundError, ProcessLookupError):
            pass
        time.sleep(0.005)
    return time.monotonic() - start, peak, process.returncode


def main():
    binary, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 100
    if not (folder / "cfg.json").exists():
        write(folder)
    indices = np.random.default_rng(7).choice(F, count, replace=False)
    spec = {"sae": str(folder.resolve()), "interventions": [{"feature": int(f), "action": "ablate"} for f in indices],
            "budget": {"tolerance": 0.01, "band": 0.05}, "domain": {"range": [-20, 20], "norm": 100}}
    (folder / "spec.json").write_text(json.dumps(spec))
    command = [binary, "compile", str(folder / "spec.json"), "-o", str(folder / "out"), "--force"]
    for name, cold in [("cold", True), ("warm", False)]:
        seconds, peak, code = run(command, folder / "sae_weights.safetensors", cold)
        print(f"{name}: {seconds:.1f} s, RssAnon at most {peak / 1e6:.0f} MB, exit code {code}")


main()
