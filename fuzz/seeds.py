"""Writes fuzz/corpus from the fixtures of the tests: small files of every kind. Needs nothing but Python."""

import pathlib
import shutil

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent
FIXTURES = ROOT / "tests/fixtures"
LAYOUTS = [  # as in src/lib.rs
    ("cfg.json", "sae_weights.safetensors"), ("cfg.json", "sae.safetensors"), ("config.json", "params.npz"),
    ("config.json", "params.safetensors"), ("hyperparams.json", "checkpoints/final.safetensors"),
    ("config.json", "sae_weights.safetensors"), ("config.json", "sae_weights.pt"), ("config.json", "ae.pt"),
    ("hyperparams.json", "checkpoints/final.pt"),
]


def put(target, name, data):
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


shutil.rmtree(HERE / "corpus", ignore_errors=True)
for path in sorted(FIXTURES.rglob("*")):
    name = "-".join(path.relative_to(FIXTURES).parts)
    if path.suffix in (".safetensors", ".npy", ".npz", ".pt") and path.stat().st_size < 4096:
        put("tensors", name, path.read_bytes())
    if path.parent.name == "vectors" and path.suffix != ".json":
        put("vectors", path.name, path.read_bytes())
put("gguf", "control.gguf", (FIXTURES / "vectors/control.gguf").read_bytes())
for folder in sorted(p for p in (FIXTURES / "saes").rglob("*") if p.is_dir()):
    for k, (cfg, weights) in enumerate(LAYOUTS):
        if (folder / weights).is_file():
            text = (folder / cfg).read_bytes() if (folder / cfg).is_file() else b"{}"
            data = bytes([k]) + len(text).to_bytes(2, "little") + text + (folder / weights).read_bytes()
            put("sae", "-".join(folder.relative_to(FIXTURES / "saes").parts), data)
put("certificate", "two-layers.json", (HERE / "seeds/certificate.json").read_bytes())
put("gguf", "quantised.gguf", (FIXTURES / "tensors/quantised.gguf").read_bytes())
put("spec", "ablate.toml", (ROOT / "examples/ablate.toml").read_bytes())
for k, block in enumerate((ROOT / "docs/spec.md").read_text().split("```")[1::2]):
    language, _, text = block.partition("\n")
    if language in ("toml", "json"):
        put("spec", f"doc-{k}.{language}", text.encode())
put("spec", "sites.toml", b"""layers = 2
[[sites]]
sae = { path = "s", layout = "sparsify", threshold = 0.5 }
layer = 3
[[sites.interventions]]
feature = 1
action = "expr"
expr = "-relu(z) * step(z_12 - 1/3)"
gate = 2
range = ["-inf", 60]
[sites.domain]
norm = 250
""")
for k, text in enumerate([
    "-relu(jumprelu(z, 1.364428043365478515625) - 20)", "(12.5 - z) * step(z - 4.28290271759033203125)",
    "select(z_1 - 1, -relu(z), 3 * z) + clamp(z, -1, 1/3)", "min(max(z, 0), 8) - 2e-3 * gelu(2 * z + 1)",
    "silu(z) - leaky_relu:0.2(z)", "(step(z) + step(z_1) - step(z) * step(z_1)) * (2 - z)",
]):
    put("expr", str(k), text.encode())
