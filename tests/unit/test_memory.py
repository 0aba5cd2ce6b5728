import os
import subprocess
import sys

import pytest

SIZE, TIMES = 8 * 2**20, 20
# Prints the pages that the system gave for tensors of SIZE bytes, each freed before the next.
COUNT = f"""
import resource
import torch
from mtfixmatch.runtime.memory import keep_freed_memory

def tensors(times):
    for _ in range(times):
        torch.zeros({SIZE}, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

kept = keep_freed_memory()
print(kept, -tensors(1) + tensors({TIMES}))
"""


def count(**env: str) -> tuple[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", COUNT],
        env={k: v for k, v in os.environ.items() if "MALLOC" not in k and k != "GLIBC_TUNABLES"}
        | env,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, pages = done.stdout.split()
    return kept, int(pages)


def test_freed_memory_serves_the_next_tensors():
    kept, pages = count()
    assert kept == "True"
    assert pages < 3 * SIZE // os.sysconf("SC_PAGESIZE")  # of two tensors of twenty at most


@pytest.mark.parametrize("name", ["MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"])
def test_the_users_choice_stays(name):
    kept, pages = count(**{name: str(2**16)})
    assert kept == "False"
    assert pages >= TIMES * SIZE // os.sysconf("SC_PAGESIZE")
