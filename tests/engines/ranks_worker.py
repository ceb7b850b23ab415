"""One rank of a tensor-parallel run in transformers (torchrun, gloo), or the only one.

    python ranks_worker.py MODEL INDICES INPUT OUTPUT

INDICES are "first-last" pairs of inserted layers, INPUT JSON with token ids, one list a text, all of one length.
"""

import json
import os
import sys

import torch
from transformers import AutoModelForCausalLM

torch.set_grad_enabled(False)


def main():
    path, first, last, source, target = sys.argv[1:]
    parallel = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if parallel:
        torch.distributed.init_process_group("gloo")
    options = {"tp_plan": "auto"} if parallel else {}
    model = AutoModelForCausalLM.from_pretrained(path, dtype="auto", **options).eval()
    seen = {}

    def whole(x):
        return (x.full_tensor() if hasattr(x, "full_tensor") else x).detach().clone()

    def before(module, arguments, keywords):
        seen["before"] = whole(arguments[0] if arguments else keywords["hidden_states"])

    def after(module, arguments, output):
        seen["after"] = whole(output[0] if isinstance(output, tuple) else output)

    layers = model.model.layers
    layers[int(first)].register_forward_pre_hook(before, with_kwargs=True)
    layers[int(last)].register_forward_hook(after)
    ids = torch.tensor(json.loads(open(source).read()))
    seen["logits"] = whole(model(input_ids=ids, use_cache=False).logits)
    # what this rank really holds of a split weight
    weight = layers[int(first)].mlp.gate_proj.weight
    local = weight.to_local() if hasattr(weight, "to_local") else weight
    seen["rows"] = local.shape[0]
    seen["of"] = model.config.intermediate_size
    if not parallel or torch.distributed.get_rank() == 0:
        torch.save(seen, target)
    if parallel:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
