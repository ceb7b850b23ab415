"""A spliced checkpoint on a GPU: small, random, of SmolLM2's width, so that it travels between two machines.

    python tests/engines/gpu.py make DIR     makes and splices the checkpoints (NEUROGRAFT names the command)
    python tests/engines/gpu.py run DIR      judges them on the GPU, in transformers, against float64

The features are those of tests/data/smollm2-l15; the model is a random Llama of hidden size 576 whose embeddings have the norms of
SmolLM2's residuals, the first token's 25,000 among them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

REPOSITORY = Path(__file__).resolve().parents[2]
SAE = REPOSITORY / "tests/data/smollm2-l15"
FORMATS = {"f32": torch.float32, "bf16": torch.bfloat16}
SPEC = """
sae = "{sae}"
layer = 1
layers = {layers}
[[interventions]]
feature = 3
action = "ablate"
[[interventions]]
feature = 6
action = "clamp_when_active"
value = 20
{more}
[host]
arithmetic = ["transformers-cuda-{format}"{split}]
[domain]
norm = {norm}
{range}
"""
GATE = """[[interventions]]
feature = 10
action = "ablate"
gate = 12
"""
# Steps in one layer of 16 bits: copies of steep neurons, in wide bands.
BAND = """[budget]
band = 1
neurons = 48
"""
RANGE = "range = [-40, 40]"
# (norm, layers, what else): carriers for every token, the first ones too; bounds for those of usual norms.
KINDS = {"": (30_000, 2, GATE), "bounds-": (250, 2, GATE), "one-": (250, 1, BAND)}


def make(folder: Path):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=576, intermediate_size=256, num_hidden_layers=3, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=3000, max_position_embeddings=512, tie_word_embeddings=True, rms_norm_eps=1e-5,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0, 7.0)
        model.model.embed_tokens.weight[0] *= 150
    folder.mkdir(parents=True, exist_ok=True)
    command = os.environ.get("NEUROGRAFT", REPOSITORY / "target/release/neurograft")
    for name, dtype in FORMATS.items():
        model.to(dtype).save_pretrained(folder / f"source-{name}")
        source = folder / f"source-{name}"
        for kind, (norm, layers, more) in KINDS.items():
            # For reduced partial sums no copies help, and they would be chosen for both.
            split = ', "transformers-cuda-split-bf16"' if name == "bf16" and layers == 2 else ""
            spec = SPEC.format(sae=SAE, format=name, split=split, norm=norm, layers=layers, more=more, range=RANGE if layers == 1 else "")
            (folder / "spec.toml").write_text(spec)
            splice = [command, "splice", folder / "spec.toml", "--model", source, "--output", folder / f"{kind}{name}", "--force", "--no-selftest"]
            # 3: a tolerance of 1e-3 is out of reach of bf16 weights.
            assert subprocess.run(splice, stdout=subprocess.DEVNULL).returncode in (0, 3)


def norms_are_exact() -> bool:
    """Do the mean square and its root come out as powers of two, whatever the rest of the row is?"""
    for size in (584, 648, 4128, 4224):
        for k in (40, 49):
            x = torch.randn(64, size, device="cuda") * 100
            rest, at = size, 0
            for power in range(8, -1, -1):
                while 4**power <= rest:
                    x[:, at] = 2.0 ** (power + k)
                    rest, at = rest - 4**power, at + 1
            mean = x.pow(2).mean(-1)
            if not ((mean == 4.0**k).all() and (torch.rsqrt(mean + 1e-5) == 2.0**-k).all()):
                return False
    return True


def run(folder: Path):
    torch.backends.cuda.matmul.allow_tf32 = False
    for allowed in (False, True):
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = allowed
        print("reduced-precision reductions allowed:", allowed)
        judge(folder, "-split" if allowed else "")


def bounds(folder: Path, arithmetic: str) -> tuple[float, float, float]:
    """Certified: off the bands, where nothing is asked for, and how wide the widest band is."""
    (path,) = folder.rglob("certificate.json")
    certificate = json.loads(path.read_text())
    (proved,) = [d for d in certificate["deployed"] if d["arithmetic"] == arithmetic]
    stacks = [c["certificate"]["delta"] + d["delta_rows"] for c, d in zip(certificate["responses"], proved["responses"])]
    quiet = proved["total"]["quiet"]
    band = max([0.0, *stacks, *(b for term in proved["terms"] for b in term["bands"])])
    return proved["total"]["outside"], float("inf") if quiet is None else quiet, band


def judge(folder: Path, split: str):
    from transformers import LlamaForCausalLM

    sae = load_file(SAE / "sae_weights.safetensors")
    w, b, d, threshold = (sae[key].double() for key in ("W_enc", "b_enc", "W_dec", "threshold"))
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "norms exact:", norms_are_exact())
    for kind, name, dtype in ((kind, *f) for kind in KINDS for f in FORMATS.items()):
        norm_limit, layers, _ = KINDS[kind]
        if split and layers == 1:
            continue
        model = LlamaForCausalLM.from_pretrained(folder / f"{kind}{name}", dtype=dtype).cuda().eval()
        ids = torch.randint(1, 3000, (16, 40), generator=torch.Generator().manual_seed(3))
        ids[:, 0] = 0
        seen = {}

        def before(_module, args, kwargs):
            seen["x"] = (args[0] if args else kwargs["hidden_states"]).detach()

        def after(_module, _args, output):
            seen["y"] = (output[0] if isinstance(output, tuple) else output).detach()

        model.model.layers[2].register_forward_pre_hook(before, with_kwargs=True)
        model.model.layers[1 + layers].register_forward_hook(after)
        with torch.no_grad():
            model(ids.cuda())
        x, y = (seen[key].double().cpu().flatten(0, 1) for key in "xy")
        padding = y[:, 576:].abs().max().item()
        x, y = x[:, :576], y[:, :576]
        z = x @ w + b
        on = {f: (z[:, f] > threshold[f]).double() for f in ((3, 6, 10, 12) if layers == 2 else (3, 6))}
        exact = x - (z[:, 3] * on[3])[:, None] * d[3] + ((20 - z[:, 6]) * on[6])[:, None] * d[6]
        gated = on[10] * on[12] if layers == 2 else torch.zeros_like(on[3])
        exact = exact - (z[:, 10] * gated)[:, None] * d[10]
        near = ((z[:, list(on)] - threshold[list(on)]).abs() < (0.02 if name == "f32" else 0.3)).any(1)
        changed = (on[3] + on[6] + gated > 0) & ~near
        idle = ~changed & ~near
        norm = x.norm(dim=1)
        error, rounding = (y - exact).norm(dim=1) / norm, (exact.to(dtype).double() - exact).norm(dim=1) / norm
        print(
            f"{name}, {'one layer' if layers == 1 else 'two layers'}: {len(norm)} tokens of norm {norm.min():.0f} to {norm.max():.0f}, {int(near.sum())} near a threshold; "
            f"{int(changed.sum())} changed: mean {error[changed].mean():.2e}, max {error[changed].max():.2e} "
            f"(rounding the exact result: {rounding[changed].mean():.2e}, {rounding[changed].max():.2e}); "
            f"{int(idle.sum())} idle, {int((y != x).any(1)[idle].sum())} disturbed; padding {padding}"
        )
        if kind:
            outside, quiet, band = bounds(folder / f"{kind}{name}", f"transformers-cuda{split if name == 'bf16' else ''}-{name}")
            off = ((z[:, list(on)] - threshold[list(on)]).abs() > band).all(1) & (norm <= norm_limit)
            worst = (y - exact).norm(dim=1)[off].max().item() if off.any() else 0.0
            moved = (y - x).norm(dim=1)[off & idle].max().item() if (off & idle).any() else 0.0
            print(f"    {int(off.sum())} tokens of norm <= {norm_limit} off the bands: error {worst:.3g}, certified {outside:.3g}; idle ones moved {moved:.3g}, certified {quiet:.3g}")
            assert worst <= outside and moved <= quiet, "a token is beyond its bound"
            continue
        assert padding == 0 and not (y != x).any(1)[idle].any()
        assert error[changed].max() <= (1.5 * 1.3e-7 if name == "f32" else 2 * rounding[changed].max())


if __name__ == "__main__":
    {"make": make, "run": run}[sys.argv[1]](Path(sys.argv[2]))
