"""tests/engines/run calls this: the groups named on the command line, one table each, and what was missed."""

import argparse
import importlib
import multiprocessing
import os
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from table import Checks
from weights import prepare

GROUPS = {
    "transformers": "run_transformers",
    "llama.cpp": "run_llama_cpp",
    "vllm": "run_vllm",
    "ranks": "run_ranks",
    "cost": "run_cost",
    "bounds": "run_bounds",
}


# These share the cores, one thread each; the others run alone.
TOGETHER = ("transformers", "llama.cpp")


def run(group: str, work: Path):
    """One group in a process of its own: its checks, its tables."""
    start = time.monotonic()
    print(f"\n==> {group}", flush=True)
    scratch = work / group
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    checks = Checks()
    tables = importlib.import_module(GROUPS[group]).run(work, scratch, checks)
    shutil.rmtree(scratch)
    print(f"    ({group}: {time.monotonic() - start:.0f} s)", flush=True)
    return checks, tables


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("groups", nargs="+", choices=GROUPS)
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    prepare(work)
    results = {}
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1), multiprocessing.get_context("spawn")) as pool:
        jobs = {group: pool.submit(run, group, work) for group in arguments.groups if group in TOGETHER}
        results.update((group, job.result()) for group, job in jobs.items())
    results.update((group, run(group, work)) for group in arguments.groups if group not in TOGETHER)
    for group in arguments.groups:
        for table in results[group][1]:
            print(table)
    checks = [results[group][0] for group in arguments.groups]
    for title, missed in (("Known to be missed", [m for c in checks for m in c.known]), ("Missed", [m for c in checks for m in c.failed])):
        if missed:
            print("\n".join([f"\n{title}:", *(f"- {m}" for m in missed)]))
    failed = sum(len(c.failed) for c in checks)
    print(f"\n{sum(c.passed for c in checks)} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
