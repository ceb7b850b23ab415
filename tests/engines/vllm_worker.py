"""Runs in vLLM's own environment: one model, every text; what came out goes to a file.

    python vllm_worker.py MODEL DTYPE FIRST LAST INPUT OUTPUT

INPUT is JSON with token ids: `texts`, `prompts`, `new_tokens`. FIRST and LAST are the inserted layers. OUTPUT holds the
stream before FIRST and after LAST, the stream after the final norm, the log-probabilities that vLLM reports for the
texts' own tokens, and greedy continuations.
"""

import json
import os
import sys

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from vllm import LLM, SamplingParams

CAPTURED = {"before": [], "after": [], "final": []}


def attach(first: int, last: int):
    def stream(hidden, residual):
        # what the next fused norm adds up, in the stream's format
        return (hidden if residual is None else hidden + residual).detach().clone()

    def before(module, arguments, keywords):
        given = dict(zip(("positions", "hidden_states", "residual"), arguments)) | keywords
        CAPTURED["before"].append(stream(given["hidden_states"], given["residual"]))

    def after(module, arguments, output):
        CAPTURED["after"].append(stream(*output))

    def final(module, arguments, output):
        CAPTURED["final"].append((output[0] if isinstance(output, tuple) else output).detach().clone())

    def hooks(model):
        layers = model.model.layers
        layers[first].register_forward_pre_hook(before, with_kwargs=True)
        layers[last].register_forward_hook(after)
        model.model.norm.register_forward_hook(final)
        return [type(layer).__name__ for layer in (layers[first], layers[last])]

    return hooks


def main():
    model, dtype, first, last, source, target = sys.argv[1:]
    given = json.loads(open(source).read())
    llm = LLM(
        model=model,
        dtype=dtype,
        enforce_eager=True,
        max_model_len=256,
        enable_prefix_caching=False,
        skip_tokenizer_init=False,
        disable_log_stats=True,
    )
    llm.apply_model(attach(int(first), int(last)))
    reported = []
    streams = {name: [] for name in CAPTURED}
    for text in given["texts"]:
        for name in CAPTURED:
            CAPTURED[name].clear()
        parameters = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=1)
        out = llm.generate({"prompt_token_ids": text}, parameters, use_tqdm=False)[0]
        for name, parts in CAPTURED.items():
            whole = torch.cat(parts)
            assert len(whole) == len(text), (name, len(whole), len(text))
            streams[name].append(whole)
        reported.append([None if entry is None else entry[token].logprob for entry, token in zip(out.prompt_logprobs, text)])
    parameters = SamplingParams(
        max_tokens=given["new_tokens"], min_tokens=given["new_tokens"], temperature=0, ignore_eos=True
    )
    prompts = [{"prompt_token_ids": prompt} for prompt in given["prompts"]]
    greedy = [list(out.outputs[0].token_ids) for out in llm.generate(prompts, parameters, use_tqdm=False)]
    torch.save({**streams, "reported": reported, "greedy": greedy}, target)


if __name__ == "__main__":
    main()
