#!/usr/bin/env python3
"""Does an engine run this spliced checkpoint as it should? Compares it with selftest.json, which lies beside this file.

    python selftest.py transformers PATH [--dtype bfloat16]
    python selftest.py vllm PATH [--dtype bfloat16]
    python selftest.py openai http://localhost:8000/v1 [--model NAME] [--dtype bfloat16 | quantised]

PATH is the spliced checkpoint. `openai` asks a server (vLLM, llama.cpp's llama-server, ...) by its completions, prompts
being token ids. Needs Python and the engine, nothing else.

What is expected was computed in f64 from the weights before splicing with the exact intervention between their layers.

The inserted layers live by one bias of an attention's output projection, and an engine that does not know a bias drops it
without a word. With padded carriers the layers then have no effect: log-probabilities are those of the model without the
intervention. With borrowed ones they destroy the text. So a difference passes if it is small for the number format, or
below half of what the intervention changes. A line whose limit is above that half says `ok?`: the engine's rounding hides
whether the intervention is there. The test needs lines that can tell. Seen on a model of 135 million parameters (mean over the ten likeliest tokens):
6e-6 in float32 with transformers and 2e-3 with llama.cpp, 0.05 in bfloat16, 0.1 with Q4_1 weights; 0.3 to 0.5 where the bias
was dropped.
"""

import argparse
import base64
import json
import math
import pathlib
import struct
import sys
import urllib.request

# What passes always, and what never does; between them, half of what the intervention changes.
# Mean difference of log-probabilities over the expected tokens of a prompt.
LOGPROBS = {"float32": (1e-3, 1e-2), "float16": (2e-2, 1e-1), "bfloat16": (0.15, 0.5), "quantised": (0.15, 0.5)}
# Error of one token's stream, in its norm and in the coordinates that change most, relative to its norm.
STREAM = {"float32": (1e-5, 1e-3), "float16": (2e-3, 2e-2), "bfloat16": (2e-2, 1e-1)}
# Error of what inserted layers make of one residual, relative to its norm: no other layer's rounding comes in.
PAIR = {"float32": (1e-5, 1e-3), "float16": (1e-3, 1e-2), "bfloat16": (8e-3, 3e-2)}
DTYPES = {"f64": "float32", "f32": "float32", "f16": "float16", "bf16": "bfloat16"}
WIDTH = {"f64": 64, "f32": 32, "float32": 32, "f16": 16, "bf16": 16, "float16": 16, "bfloat16": 16, "quantised": 32}


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else math.nan


class Line:
    """An outcome: is it good, and could it have been bad without the intervention?"""

    def __init__(self, good, tells):
        self.good, self.tells = good, tells


def judge(what, error, changed, limits, noise=0.0):
    """Prints a line; NaN fails. `noise`: what the engine is off by already where the first inserted layer begins."""
    limit = max(limits[0], min(limits[1], changed / 2), 3 * noise)
    line = Line(error <= limit, limit < 0.75 * changed)
    verdict = ("ok  " if line.tells else "ok? ") if line.good else "FAIL"
    print(f"  {verdict} {what}: off by {error:.1e}, changed by {changed:.1e}, limit {limit:.1e}")
    return line


def judge_prompt(k, prompt, found, dtype):
    """`found`: log-probabilities by token id; an engine may report the likeliest only."""
    expected = {n["token"]: n["logprob"] for n in prompt["expected"]}
    unmodified = dict(zip(expected, prompt["unmodified"]))
    # A token that is not among the reported ones is less likely than those.
    floor = min(found.values()) if found else -math.inf
    off = lambda known: mean(abs(found.get(t, floor) - p) for t, p in known.items())
    changed = mean(abs(unmodified[t] - p) for t, p in expected.items())
    note = f"{len(prompt['tokens'])} tokens, {prompt['active']} changed"
    if prompt["doubtful"]:
        note += f", {prompt['doubtful']} at a threshold"
    line = judge(f"prompt {k} ({note}), log-probabilities", off(expected), changed, LOGPROBS[dtype])
    if not line.good and off(unmodified) < changed / 2:
        print("       these are rather those of the model WITHOUT the intervention: the inserted layer has no effect")
    return line


def run_transformers(test, path, dtype):
    import torch
    from transformers import AutoModelForCausalLM

    kind = getattr(torch, dtype)
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=kind)
    except TypeError:  # before version 4.56
        model = AutoModelForCausalLM.from_pretrained(path, torch_dtype=kind)
    model.eval()
    live, results = test["live"], []
    for k, prompt in enumerate(test["prompts"]):
        with torch.no_grad():
            out = model(torch.tensor([prompt["tokens"]]), output_hidden_states=True)
        found = dict(enumerate(out.logits[0, -1].double().log_softmax(-1).tolist()))
        results.append(judge_prompt(k, prompt, found, dtype))
        seen = prompt["stream"]
        # After the last layer transformers reports the normed stream.
        if seen["layer"] + 1 < test["layers"]:
            x = out.hidden_states[seen["layer"] + 1][0, seen["position"], :live].double()
            errors = [x.norm().item() - seen["norm"]] + [x[i].item() - value for i, value in seen["coordinates"]]
            error = max(map(abs, errors)) / seen["norm"]
            entering = out.hidden_states[seen["first"]][0, seen["position"], :live].double()
            noise = max(abs(entering[i].item() - value) for (i, _), value in zip(seen["coordinates"], seen["before"])) / seen["norm"]
            what = f"prompt {k}, stream after layer {seen['layer']} at token {seen['position']}"
            results.append(judge(what, error, seen["changed"], STREAM[dtype], noise))
    decode = lambda text: struct.unpack(f"<{live}f", base64.b64decode(text))
    for pair in test["pairs"]:
        x, y = (torch.tensor(decode(pair[key]), dtype=torch.float64) for key in "xy")
        stream = torch.zeros(1, 1, model.config.hidden_size, dtype=kind)
        stream[0, 0, :live] = x.to(kind)
        seen = []

        def replace(module, args, kwargs):
            if args:
                return (stream, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": stream}

        def keep(module, args, out):
            seen.append((out[0] if isinstance(out, tuple) else out).reshape(-1)[:live].double())

        layers = model.model.layers
        hooks = [
            layers[pair["layers"][0]].register_forward_pre_hook(replace, with_kwargs=True),
            layers[pair["layers"][1]].register_forward_hook(keep),
        ]
        with torch.no_grad():
            model(torch.tensor([[0]]))
        for hook in hooks:
            hook.remove()
        error = (seen[0] - y).norm().item() / y.norm().item()
        what = f"{pair['response']}, one residual through layers {pair['layers']}"
        results.append(judge(what, error, pair["changed"], PAIR[dtype]))
    return results


def run_vllm(test, path, dtype):
    from vllm import LLM, SamplingParams

    model = LLM(model=path, dtype=dtype, enforce_eager=True, max_model_len=64, skip_tokenizer_init=True)
    sampling = SamplingParams(max_tokens=1, temperature=0.0, logprobs=20, detokenize=False)
    prompts = [{"prompt_token_ids": p["tokens"]} for p in test["prompts"]]
    results = []
    for k, (prompt, out) in enumerate(zip(test["prompts"], model.generate(prompts, sampling))):
        found = {token: x.logprob for token, x in out.outputs[0].logprobs[0].items()}
        results.append(judge_prompt(k, prompt, found, dtype))
    return results


def ask(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def reported(choice):
    """Log-probabilities by token id, in the shapes that servers have for them."""
    logprobs = choice.get("logprobs") or {}
    if logprobs.get("content"):  # llama.cpp
        return {t["id"]: t["logprob"] for t in logprobs["content"][0]["top_logprobs"]}
    found = {}
    for token, p in (logprobs.get("top_logprobs") or [{}])[0].items():  # vLLM, with return_tokens_as_token_ids
        if not token.startswith("token_id:"):
            raise SystemExit("the server names tokens by their text: this test needs ids (vLLM: return_tokens_as_token_ids)")
        found[int(token.removeprefix("token_id:"))] = p
    return found


def run_openai(test, url, dtype, model):
    url = url.rstrip("/")
    model = model or ask(f"{url}/models")["data"][0]["id"]
    results = []
    for k, prompt in enumerate(test["prompts"]):
        body = {
            "model": model, "prompt": prompt["tokens"], "max_tokens": 1, "temperature": 0.0, "logprobs": 10,
            "return_tokens_as_token_ids": True, "cache_prompt": False,
        }  # fmt: skip
        found = reported(ask(f"{url}/completions", body)["choices"][0])
        results.append(judge_prompt(k, prompt, found, dtype))
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=["transformers", "vllm", "openai"])
    parser.add_argument("target", help="the spliced checkpoint, or the server's address")
    parser.add_argument(
        "--dtype", choices=list(LOGPROBS), help="what the engine computes in; without it, what the inserted weights were made for"
    )
    parser.add_argument("--model", help="its name at the server")
    a = parser.parse_args()
    if a.engine != "openai" and a.dtype == "quantised":
        parser.error("quantised: what a llama.cpp server has")
    if a.engine != "openai" and not pathlib.Path(a.target).is_dir():
        parser.error(f"{a.target}: no such directory")
    test = json.loads(pathlib.Path(__file__).with_name("selftest.json").read_text())
    a.dtype = a.dtype or DTYPES[test["weights"]]
    if test["no_prompts"]:
        print(f"no prompts: {test['no_prompts']}")
    if WIDTH[a.dtype] < WIDTH[test["weights"]]:
        print(f"the inserted layers' weights were made for {test['weights']}; in {a.dtype} they are rounded once more")
    if a.engine == "transformers":
        results = run_transformers(test, a.target, a.dtype)
    elif a.engine == "vllm":
        results = run_vllm(test, a.target, a.dtype)
    else:
        results = run_openai(test, a.target, a.dtype, a.model)
    if not results:
        sys.exit("nothing was tested: residuals can be tested with transformers only")
    if all(line.good for line in results):
        if not any(line.tells for line in results):
            sys.exit(f"no line can tell: {a.dtype} rounds away more than the intervention changes on these prompts")
        print("PASS: the engine computes what the certificates speak of, as far as its number format allows")
        return
    print(
        "FAIL: the inserted layers do not compute what they should. What it probably is:\n"
        "  as without the intervention: a bias was dropped (self_attn.o_proj.bias, in GGUF attn_output.bias), or the source\n"
        "  was loaded; off by 1 and more: a bias of the MLP was dropped, or the norm is not computed in f32;\n"
        "  a little above a limit: is --dtype what the engine computes in, and what the checkpoint was made for? A jump that\n"
        "  one inserted layer makes in 16 bits costs a few percent by itself, and a token at a threshold may go either way."
    )
    sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except (ImportError, OSError, ValueError) as e:
        sys.exit(f"the test could not be run: {type(e).__name__}: {e}")
