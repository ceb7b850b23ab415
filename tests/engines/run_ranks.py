"""Two ranks against one: constants that are written and removed by biases must be added once.

SmolLM2 has 9 heads and 3 key-value heads, which two ranks cannot share: this is a small random Llama with a random SAE.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

import hf
from cases import Case, Site, Term
from oracle import Intervention, Sae, judge
from splice import Failed, remove, splice
from table import Checks, Table

HIDDEN, FEATURES, LAYER, VOCABULARY = 128, 8, 1, 256
RELU = Case("ablate (relu)", 1, (Site(LAYER, tuple(Term(f, "ablate", activation="relu") for f in range(4))),))
JUMPRELU = Case("ablate (jumprelu)", 2, (Site(LAYER, tuple(Term(f, "ablate") for f in range(4))),))
GATE = Case("gate", 2, (Site(LAYER, (Term(0, "ablate", gate=5), Term(3, "add", 2.5, gate=6))),))


def random_model(path: Path, dtype: torch.dtype):
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=128,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.uniform_(0.5, 1.5)
    shutil.rmtree(path, ignore_errors=True)
    model.to(dtype).save_pretrained(path)


def random_sae(path: Path):
    generator = torch.Generator().manual_seed(11)
    path.mkdir(exist_ok=True)
    rows = torch.randn(FEATURES, HIDDEN, generator=generator)
    save_file(
        {
            "W_enc": torch.randn(HIDDEN, FEATURES, generator=generator) / HIDDEN**0.5,
            "b_enc": torch.randn(FEATURES, generator=generator) / 4,
            "W_dec": rows / rows.norm(dim=1, keepdim=True),
            "b_dec": torch.zeros(HIDDEN),
            "threshold": torch.rand(FEATURES, generator=generator),
        },
        path / "sae_weights.safetensors",
    )
    config = {
        "architecture": "jumprelu",
        "d_in": HIDDEN,
        "d_sae": FEATURES,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"hook_name": f"blocks.{LAYER}.hook_resid_post", "hook_head_index": None},
    }
    (path / "cfg.json").write_text(json.dumps(config))


def run(work: Path, scratch: Path, checks: Checks) -> list[Table]:
    sae_path, model_path, tokens, result = (scratch / name for name in ("sae", "random", "tokens.json", "seen.pt"))
    random_sae(sae_path)
    sae = Sae(sae_path)
    generator = torch.Generator().manual_seed(13)
    tokens.write_text(json.dumps(torch.randint(0, VOCABULARY, (8, 64), generator=generator).tolist()))
    table = Table(
        "two ranks (transformers, tensor parallel, gloo) against one; errors as parts of ‖x‖",
        ["case", "layers", "format", "ranks", "rows a rank", "tokens", "changed", "mean", "max", "hook max", "idle", "disturbed", "padding", "logits, two ranks against one", "unspliced"],
    )  # fmt: skip
    for case, format in [(RELU, "f32"), (JUMPRELU, "f32"), (GATE, "f32"), (JUMPRELU, "bf16")]:
        random_model(model_path, {"f32": torch.float32, "bf16": torch.bfloat16}[format])
        output = scratch / "spliced"
        label = f"ranks, {case.name}, {format}"
        try:
            splice(case, model_path, output, "padded", sae_path)
            spliced = {ranks: worker(output, LAYER + 1, LAYER + case.layers, tokens, result, ranks) for ranks in (1, 2)}
            plain = {ranks: worker(model_path, LAYER + 1, LAYER + 1, tokens, result, ranks) for ranks in (1, 2)}
        except Failed as error:
            checks.check(f"{label}: ran", False, str(error))
            continue
        finally:
            remove(output)
        largest, unspliced = (
            (runs[1]["logits"].float() - runs[2]["logits"].float()).abs().max().item() for runs in (spliced, plain)
        )
        for ranks, seen in spliced.items():
            before, after = seen["before"].flatten(0, 1), seen["after"].flatten(0, 1)
            verdict = judge(Intervention(case.sites[0], sae), before, after)
            both = (largest, unspliced) if ranks == 2 else ("", "")
            table.add(
                case.name, case.layers, format, ranks, f"{seen['rows']} of {seen['of']}", verdict.tokens, verdict.changed,
                verdict.mean, verdict.max, verdict.hook_max, verdict.idle, verdict.disturbed, verdict.padding, *both,
            )  # fmt: skip
            factor = 1.5 if format == "f32" else 2
            checks.at_most(f"{label}, {ranks} ranks: max error", verdict.max, factor * verdict.hook_max)
            checks.check(f"{label}, {ranks} ranks: idle tokens bit for bit", verdict.disturbed == 0, f"{verdict.disturbed}")
        checks.check(f"{label}: weights are split", spliced[2]["rows"] * 2 == spliced[2]["of"], f"{spliced[2]['rows']}")
        checks.at_most(f"{label}: two ranks against one", largest, 4 * unspliced + 1e-6)
    shutil.rmtree(model_path, ignore_errors=True)
    return [table]


def worker(model: Path, first: int, last: int, tokens: Path, result: Path, ranks: int) -> dict:
    script = [str(Path(__file__).with_name("ranks_worker.py")), *map(str, (model, first, last, tokens, result))]
    launch = [sys.executable] if ranks == 1 else [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks),
    ]  # fmt: skip
    done = subprocess.run([*launch, *script], capture_output=True, text=True)
    if done.returncode != 0:
        raise Failed(f"ranks_worker.py, {ranks} ranks: exit code {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}")
    seen = torch.load(result)
    result.unlink()
    return seen
