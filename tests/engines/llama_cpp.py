"""llama.cpp through the C interface that the binary wheel xllamacpp exports: logits at every token, and the stream.

The structures below are those of the pinned version (2026.10.11549, llama.h of llama.cpp b11549); `check_layout` compares
what the library says are its defaults with what the header says, so that another version fails loudly. The evaluation
callback sees every tensor of the graph that it asks for: `l_out-15` is the stream after decoder layer 15. It can also
write: that is a forward hook inside llama.cpp.
"""

import ctypes
import os
from ctypes import CFUNCTYPE, POINTER, Structure, c_bool, c_char_p, c_float, c_int8, c_int32, c_size_t, c_uint32, c_void_p
from pathlib import Path

import torch

Callback = CFUNCTYPE(c_bool, c_void_p, c_bool, c_void_p)
Log = CFUNCTYPE(None, c_int32, c_char_p, c_void_p)
F32 = 0


class ModelParams(Structure):
    _fields_ = [
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int32),
        ("load_mode", c_int32),
        ("lazy_mode", c_int32),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
    ]


class ContextParams(Structure):
    _fields_ = [
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int32),
        ("rope_scaling_type", c_int32),
        ("pooling_type", c_int32),
        ("attention_type", c_int32),
        ("flash_attn_type", c_int32),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", Callback),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int32),
        ("type_v", c_int32),
        ("moe_cache_size", c_size_t),
        ("abort_callback", c_void_p),
        ("abort_callback_data", c_void_p),
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    ]


class Batch(Structure):
    _fields_ = [
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    ]


def library() -> ctypes.CDLL:
    import xllamacpp

    lib = ctypes.CDLL(next(Path(xllamacpp.__file__).parent.glob("xllamacpp*.so")))
    signatures = {
        "llama_model_default_params": (ModelParams, []),
        "llama_context_default_params": (ContextParams, []),
        "llama_model_load_from_file": (c_void_p, [c_char_p, ModelParams]),
        "llama_init_from_model": (c_void_p, [c_void_p, ContextParams]),
        "llama_decode": (c_int32, [c_void_p, Batch]),
        "llama_get_logits": (POINTER(c_float), [c_void_p]),
        "llama_get_memory": (c_void_p, [c_void_p]),
        "llama_memory_clear": (None, [c_void_p, c_bool]),
        "llama_model_free": (None, [c_void_p]),
        "llama_free": (None, [c_void_p]),
        "llama_model_get_vocab": (c_void_p, [c_void_p]),
        "llama_vocab_n_tokens": (c_int32, [c_void_p]),
        "llama_model_n_embd": (c_int32, [c_void_p]),
        "llama_model_n_layer": (c_int32, [c_void_p]),
        "llama_log_set": (None, [Log, c_void_p]),
        "llama_backend_init": (None, []),
        "ggml_get_name": (c_char_p, [c_void_p]),
        "ggml_nbytes": (c_size_t, [c_void_p]),
        "ggml_backend_tensor_get": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
        "ggml_backend_tensor_set": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    check_layout(lib)
    lib.quiet = Log(lambda level, text, data: None)
    lib.llama_log_set(lib.quiet, None)
    lib.llama_backend_init()
    return lib


def check_layout(lib):
    model, context = lib.llama_model_default_params(), lib.llama_context_default_params()
    seen = (
        model.use_extra_bufts, model.vocab_only, model.no_alloc, context.n_ctx, context.n_batch, context.n_ubatch,
        context.rope_scaling_type, context.yarn_beta_fast, context.defrag_thold, context.type_k, context.type_v,
        bool(context.cb_eval), context.embeddings, context.offload_kqv, context.n_samplers, context.ctx_other,
    )  # fmt: skip
    defaults = (True, False, False, 512, 2048, 512, -1, -1.0, -1.0, 1, 1, False, False, True, 0, None)
    if seen != defaults:
        raise SystemExit(f"xllamacpp: another llama.h than the one that llama_cpp.py was written for: {seen}")


class Model:
    """A GGUF in llama.cpp: F32 cache, no flash attention, one batch a text."""

    lib = None

    def __init__(self, path: Path, longest: int = 256):
        if Model.lib is None:
            Model.lib = library()
        lib = self.lib
        parameters = lib.llama_model_default_params()
        self.model = lib.llama_model_load_from_file(str(path).encode(), parameters)
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        self.wanted, self.streams, self.hooks = set(), {}, {}
        self.callback = Callback(self._evaluated)
        context = lib.llama_context_default_params()
        context.n_ctx = context.n_batch = context.n_ubatch = longest
        context.n_threads = context.n_threads_batch = int(os.environ.get("OMP_NUM_THREADS", "1"))
        context.type_k = context.type_v = F32
        context.flash_attn_type = 0
        context.cb_eval = self.callback
        self.context = lib.llama_init_from_model(self.model, context)
        if not self.context:
            raise RuntimeError(f"llama.cpp makes no context for {path}")
        self.layers = lib.llama_model_n_layer(self.model)
        self.hidden = lib.llama_model_n_embd(self.model)
        self.vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))

    def close(self):
        self.lib.llama_free(self.context)
        self.lib.llama_model_free(self.model)

    def capture(self, *layers: int):
        """Keep the stream after these decoder layers, every text's after the other."""
        self.wanted = {f"l_out-{layer}": layer for layer in layers}
        self.streams = {layer: [] for layer in layers}

    def hook(self, hooks: dict):
        """Replace the stream after decoder layers: {layer: function of [tokens, hidden]}."""
        self.hooks = {f"l_out-{layer}": function for layer, function in hooks.items()}

    def stream(self, layer: int) -> torch.Tensor:
        return torch.cat(self.streams[layer])

    def _evaluated(self, tensor, ask, data):
        name = self.lib.ggml_get_name(tensor).decode()
        if ask or (name not in self.wanted and name not in self.hooks):
            return not ask or name in self.wanted or name in self.hooks
        values = torch.empty(self.lib.ggml_nbytes(tensor) // 4, dtype=torch.float32).reshape(-1, self.hidden)
        self.lib.ggml_backend_tensor_get(tensor, values.data_ptr(), 0, values.nbytes)
        if name in self.wanted:
            self.streams[self.wanted[name]].append(values.clone())
        if name in self.hooks:
            values = self.hooks[name](values).contiguous()
            self.lib.ggml_backend_tensor_set(tensor, values.data_ptr(), 0, values.nbytes)
        return True

    def logits(self, texts: list[list[int]]) -> list[torch.Tensor]:
        return [self._decode(text, 0) for text in texts]

    def _decode(self, tokens: list[int], start: int) -> torch.Tensor:
        lib, n = self.lib, len(tokens)
        if start == 0:
            lib.llama_memory_clear(lib.llama_get_memory(self.context), True)
        sequence = (c_int32 * 1)(0)
        batch = Batch(
            n,
            (c_int32 * n)(*tokens),
            None,
            (c_int32 * n)(*range(start, start + n)),
            (c_int32 * n)(*[1] * n),
            (POINTER(c_int32) * n)(*[ctypes.cast(sequence, POINTER(c_int32))] * n),
            (c_int8 * n)(*[1] * n),
        )
        code = lib.llama_decode(self.context, batch)
        if code != 0:
            raise RuntimeError(f"llama_decode: {code}")
        out = torch.empty(n, self.vocabulary)
        ctypes.memmove(out.data_ptr(), lib.llama_get_logits(self.context), out.nbytes)
        return out

    def greedy(self, prompt: list[int], new_tokens: int) -> list[int]:
        """Greedy continuation with the cache; the end of text does not stop it."""
        tokens, position, new = prompt, 0, []
        for _ in range(new_tokens):
            token = int(self._decode(tokens, position)[-1].argmax())
            position += len(tokens)
            tokens = [token]
            new.append(token)
        return new
