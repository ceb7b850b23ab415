"""Cuts the committed slices out of the full SmolLM2 test data.

    python make_slice.py FULL [ROOT]

FULL is the directory with the full data: cfg.json, sae_weights.safetensors (an SAE with 1,024 features in the SAELens
layout), features.json (statistics of 24 of them), cases.json (interventions), hook.safetensors (residuals).
ROOT is the root of the repository (default: two levels above this file). Written are

    ROOT/tests/data/smollm2-l15/   every feature that features.json or cases.json names, all residuals
    ROOT/examples/data/            six features that mean something to a reader, 64 residuals

Features keep their order and are renumbered from 0; `original` is the index in the full SAE. Values are copied bit by
bit, and the output is a function of the input alone. Needs numpy, nothing else.
"""

import json
import struct
import sys
from pathlib import Path

import numpy as np

READABLE = [139, 228, 283, 314, 667, 885]
EXAMPLE_RESIDUALS = 64


def read_safetensors(path):
    data = Path(path).read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    tensors = {}
    for name, info in header.items():
        if name == "__metadata__":
            continue
        assert info["dtype"] == "F32", (path, name, info["dtype"])
        start, end = (8 + length + offset for offset in info["data_offsets"])
        tensors[name] = np.frombuffer(data[start:end], "<f4").reshape(info["shape"])
    return tensors


def write_safetensors(path, tensors):
    header, offset = {}, 0
    for name, tensor in tensors.items():
        assert tensor.dtype == np.dtype("<f4")
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, offset + tensor.nbytes]}
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            out.write(np.ascontiguousarray(tensor).tobytes())


def write_json(path, value):
    Path(path).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def slice_sae(full, out, kept):
    """An SAE of the kept features; returns the new index of each."""
    out.mkdir(parents=True, exist_ok=True)
    kept = sorted(kept)
    weights = read_safetensors(full / "sae_weights.safetensors")
    cfg = json.loads((full / "cfg.json").read_text())
    write_json(out / "cfg.json", {**cfg, "d_sae": len(kept)})
    write_safetensors(
        out / "sae_weights.safetensors",
        {
            "W_dec": weights["W_dec"][kept],
            "W_enc": weights["W_enc"][:, kept],
            "b_dec": weights["b_dec"],
            "b_enc": weights["b_enc"][kept],
            "threshold": weights["threshold"][kept],
        },
    )
    described = {f["feature"]: f for f in json.loads((full / "features.json").read_text())["features"]}
    new = {original: index for index, original in enumerate(kept)}
    features = []
    for original, index in new.items():
        known = described.get(original, {})
        features.append(
            {
                "feature": index,
                "original": original,
                "threshold": float(weights["threshold"][original]),
                "max_activation": known.get("max_activation"),
                "pre_min": known.get("pre_min"),
                "top_tokens": known.get("top_tokens"),
            }
        )
    write_json(out / "features.json", {"features": features})
    return new


def translate_case(case, new):
    """Feature indices of the slice, with the original ones beside them."""
    out = {}
    for key, value in case.items():
        if key in ("feature", "gate"):
            out[key], out[f"original_{key}"] = new[value], value
        elif key == "features":
            out[key], out[f"original_{key}"] = [new[f] for f in value], value
        else:
            out[key] = value
    return out


def choose_residuals(full, residuals):
    """The tokens with the largest activation of each readable feature in turn, then the first ones with none on."""
    weights = read_safetensors(full / "sae_weights.safetensors")
    # In float64: which tokens are chosen must not depend on the order of a float32 sum.
    z = residuals.astype(np.float64) @ weights["W_enc"][:, READABLE].astype(np.float64) + weights["b_enc"][READABLE]
    a = np.where(z > weights["threshold"][READABLE], z, 0.0)
    chosen = []
    for rank in range(len(a)):
        for feature in range(len(READABLE)):
            token = int(np.argsort(-a[:, feature], kind="stable")[rank])
            if a[token, feature] > 0 and token not in chosen and len(chosen) < EXAMPLE_RESIDUALS * 3 // 4:
                chosen.append(token)
    for token in np.flatnonzero((a == 0).all(axis=1)):
        if len(chosen) < EXAMPLE_RESIDUALS:
            chosen.append(int(token))
    chosen.sort()
    return chosen, {READABLE[k]: int((a[chosen, k] > 0).sum()) for k in range(len(READABLE))}


def main():
    full = Path(sys.argv[1])
    root = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).resolve().parents[2]
    cases = json.loads((full / "cases.json").read_text())
    hook = read_safetensors(full / "hook.safetensors")

    kept = {f["feature"] for f in json.loads((full / "features.json").read_text())["features"]}
    for case in cases.values():
        kept.update(case.get("features", []))
        kept.update(case[key] for key in ("feature", "gate") if key in case)
    out = root / "tests/data/smollm2-l15"
    new = slice_sae(full, out, kept)
    write_json(out / "cases.json", {name: translate_case(case, new) for name, case in cases.items()})
    write_safetensors(
        out / "residuals.safetensors", {"residuals": hook["residuals"], "first_tokens": hook["first_tokens"]}
    )

    out = root / "examples/data"
    slice_sae(full, out, READABLE)
    chosen, active = choose_residuals(full, hook["residuals"])
    write_safetensors(out / "residuals.safetensors", {"residuals": hook["residuals"][chosen]})
    print("residuals of the example:", len(chosen), "tokens; active on:", active)


if __name__ == "__main__":
    main()
