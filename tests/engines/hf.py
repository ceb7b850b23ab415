"""transformers: batches, forward hooks, logits, greedy text."""

import json
import os
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from cases import Case
from oracle import Intervention

logging.set_verbosity_error()
logging.disable_progress_bar()
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
torch.set_grad_enabled(False)

TEXTS = Path(__file__).with_name("texts.json")
NEW_TOKENS = 24


class Texts:
    """texts.json as tokens: prompts under the chat template, each with the model's own reply."""

    def __init__(self, checkpoint: Path):
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        texts = json.loads(TEXTS.read_text())
        self.prompts = [self.template(text["prompt"]) for text in texts]
        self.texts = [
            self.tokens(self.template_text(text["prompt"]) + text["reply"]) for text in texts
        ]
        self.count = sum(map(len, self.texts))

    def template_text(self, prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def template(self, prompt: str) -> list[int]:
        return self.tokens(self.template_text(prompt))


def load(path: Path, **options):
    return AutoModelForCausalLM.from_pretrained(path, dtype="auto", **options).eval()


def padded(sequences: list[list[int]], left: bool):
    """Token ids and attention mask."""
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        place = slice(longest - len(sequence), longest) if left else slice(0, len(sequence))
        ids[row, place] = torch.tensor(sequence)
        mask[row, place] = 1
    return ids, mask


def tensor(output):
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def hooked(model, case: Case, sae=None):
    """The forward hook that the checkpoint replaces. Yields what it last read, by site."""
    handles, read = [], {}
    for site in case.sites:
        intervention = Intervention(site, sae)

        def hook(module, inputs, output, intervention=intervention, site=site):
            read[site] = tensor(output)
            x = intervention.apply(read[site])
            return (x, *output[1:]) if isinstance(output, tuple) else x

        handles.append(model.model.layers[site.layer].register_forward_hook(hook))
    try:
        yield read
    finally:
        for handle in handles:
            handle.remove()


def inserted(case: Case):
    """For each site: the indices of the first and last inserted layer in the spliced model."""
    for count, site in enumerate(sorted(case.sites, key=lambda site: site.layer)):
        first = site.layer + 1 + count * case.layers
        yield site, first, first + case.layers - 1


class Streams:
    """The stream before and after every insertion of a spliced model."""

    def __init__(self, model, case: Case):
        self.before, self.after = {}, {}
        self.handles = []
        for site, first, last in inserted(case):
            layers = model.model.layers

            def before(module, arguments, keywords, site=site):
                self.before[site] = (arguments[0] if arguments else keywords["hidden_states"]).detach().clone()

            def after(module, arguments, output, site=site):
                self.after[site] = tensor(output).detach().clone()

            self.handles.append(layers[first].register_forward_pre_hook(before, with_kwargs=True))
            self.handles.append(layers[last].register_forward_hook(after))

    def close(self):
        for handle in self.handles:
            handle.remove()


def logits(model, texts: list[list[int]]) -> list[torch.Tensor]:
    """Logits in float32 at every token of every text, in one batch; padding is on the right, where nobody looks."""
    ids, mask = padded(texts, left=False)
    out = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return [row[: len(text)].float() for row, text in zip(out, texts)]


def flat(stream: torch.Tensor, texts: list[list[int]]) -> torch.Tensor:
    """[batch, length, hidden] without the padding tokens."""
    return torch.cat([row[: len(text)] for row, text in zip(stream, texts)])


def greedy(model, prompts: list[list[int]], new_tokens: int = NEW_TOKENS) -> list[list[int]]:
    ids, mask = padded(prompts, left=True)
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return out[:, ids.shape[1] :].tolist()


def kl(reference: list[torch.Tensor], candidate: list[torch.Tensor]) -> torch.Tensor:
    """KL(reference || candidate) in nats at every token, in float64."""
    parts = []
    for p, q in zip(reference, candidate):
        p, q = p.double().log_softmax(-1), q.double().log_softmax(-1)
        parts.append((p.exp() * (p - q)).sum(-1))
    return torch.cat(parts)


def same_sides(case: Case, one: dict, other: dict, sae=None) -> torch.Tensor:
    """Tokens that lie on the same side of every jump in two runs (streams by site, flat)."""
    same = []
    for site in case.sites:
        intervention = Intervention(site, sae)
        d = intervention.sae.w.shape[1]
        same.append((intervention.sides(one[site][:, :d]) == intervention.sides(other[site][:, :d])).all(dim=-1))
    return torch.stack(same).all(dim=0)


def agreement(reference: list[torch.Tensor], candidate: list[torch.Tensor]) -> float:
    same = [p.argmax(-1) == q.argmax(-1) for p, q in zip(reference, candidate)]
    return torch.cat(same).double().mean().item()
