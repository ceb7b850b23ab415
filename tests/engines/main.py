"""tests/engines/run calls this: the groups named on the command line, one table each, and what was missed."""

import argparse
import importlib
import shutil
import sys
import time
from pathlib import Path

from table import Checks

GROUPS = {
    "transformers": "run_transformers",
    "llama.cpp": "run_llama_cpp",
    "vllm": "run_vllm",
    "ranks": "run_ranks",
    "cost": "run_cost",
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("groups", nargs="+", choices=GROUPS)
    arguments = parser.parse_args()
    checks, tables, work = Checks(), [], arguments.work.resolve()
    for group in arguments.groups:
        start = time.monotonic()
        print(f"\n==> {group}", flush=True)
        scratch = work / group
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        tables += importlib.import_module(GROUPS[group]).run(work, scratch, checks)
        shutil.rmtree(scratch)
        print(f"    ({group}: {time.monotonic() - start:.0f} s)", flush=True)
    for table in tables:
        print(table)
    if checks.known:
        print("\nKnown to be missed:")
        for missed in checks.known:
            print(f"- {missed}")
    if checks.failed:
        print("\nMissed:")
        for missed in checks.failed:
            print(f"- {missed}")
    print(f"\n{checks.passed} passed, {len(checks.failed)} failed")
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
