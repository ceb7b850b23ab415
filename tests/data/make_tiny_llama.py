"""Writes tiny-llama/: a random Llama checkpoint with every bias, and logits of transformers for several configurations.

python make_tiny_llama.py    (transformers 5.19, torch 2.13)

Weights are numbers of bf16; the model runs in f64 (its norms and softmax in f32, as transformers has them).
"""

import json
import pathlib

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

BASE = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "vocab_size": 40,
    "hidden_act": "silu", "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CASES = {
    "default": {"rope_theta": 100.0},
    "linear": {"rope_theta": 100.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama3": {"rope_parameters": LLAMA3 | {"rope_theta": 500.0}},
    "gelu": {"hidden_act": "gelu", "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
    "mistral": {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None, "rope_theta": 50.0},
}
PROMPT = [1, 17, 39, 5, 5, 28, 11]

out = pathlib.Path(__file__).with_name("tiny-llama")
out.mkdir(exist_ok=True)
torch.manual_seed(20261122)
torch.set_default_dtype(torch.float64)
weights = None
expected = {"prompt": PROMPT, "cases": {}}
for name, change in CASES.items():
    config = {**BASE, **change}
    (out / "config.json").write_text(json.dumps(config))
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(out), attn_implementation="eager").eval()
    if weights is None:
        weights = {
            k: (1 + torch.randn_like(v) / 8 if "norm" in k else torch.randn_like(v) / 2).to(torch.bfloat16)
            for k, v in model.state_dict().items()
        }
    known = {k: v.double() for k, v in weights.items() if k in model.state_dict()}
    model.load_state_dict(known)
    with torch.no_grad():
        result = model(torch.tensor([PROMPT]), output_hidden_states=True)
    expected["cases"][name] = {
        "config": change,
        "biases": any(k.endswith("mlp.up_proj.bias") for k in known),
        "stream": [round(x, 7) for x in result.hidden_states[1][0, -1].tolist()],
        "logits": [round(x, 7) for x in result.logits[0, -1].tolist()],
    }
    print(name, result.logits[0, -1, :4])
(out / "config.json").write_text(json.dumps(BASE, indent=1) + "\n")
save_file(weights, out / "model.safetensors")
(out / "expected.json").write_text(json.dumps(expected) + "\n")
