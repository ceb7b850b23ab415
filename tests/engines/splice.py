"""The command line under test."""

import os
import shutil
import subprocess
import time
from pathlib import Path

from cases import REPOSITORY, SAE, Case

NEUROGRAFT = Path(os.environ.get("NEUROGRAFT", REPOSITORY / "target/release/neurograft"))
# Best effort: written, with bounds that hold, but not to the tolerance that was asked for.
BEST_EFFORT = 3


class Failed(Exception):
    pass


def command(*arguments) -> tuple[int, str]:
    run = subprocess.run([str(NEUROGRAFT), *map(str, arguments)], capture_output=True, text=True)
    return run.returncode, (run.stdout + run.stderr).strip()


def splice(case: Case, model: Path, output: Path, carriers: str, sae: Path = SAE) -> str:
    """Writes `output` and reads it back with --check; returns "" or "best effort"."""
    remove(output)
    spec = output.parent / "spec.toml"
    spec.write_text(case.spec(carriers, sae))
    start = time.monotonic()
    code, text = command("splice", spec, "--model", model, "--output", output, "--carriers", carriers)
    if code not in (0, BEST_EFFORT) or not output.exists():
        raise Failed(f"neurograft splice: exit code {code}\n{text}\n--- spec.toml\n{spec.read_text()}")
    seconds = time.monotonic() - start
    checked, text = command("splice", "--check", output)
    if checked not in (0, BEST_EFFORT):
        raise Failed(f"neurograft splice --check: exit code {checked}\n{text}")
    print(f"  {output.name}: {case.name}, {carriers}, spliced in {seconds:.1f} s", flush=True)
    return "best effort" if code == BEST_EFFORT else ""


def remove(path: Path):
    """Spliced checkpoints go as soon as they have been judged, with what travels beside a GGUF."""
    for leftover in (path, path.with_suffix(".neurograft")):
        if leftover.is_file():
            leftover.unlink()
        elif leftover.is_dir():
            shutil.rmtree(leftover)
