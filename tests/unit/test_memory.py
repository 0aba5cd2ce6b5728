import os
import platform
import subprocess
import sys

import pytest

from mtfixmatch.runtime.memory import CHOSEN_BY

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
        env={k: v for k, v in os.environ.items() if k not in CHOSEN_BY} | env,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, pages = done.stdout.split()
    return kept, int(pages)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_serves_the_next_tensors():
    kept, pages = count()
    assert kept == "True"
    assert pages < 3 * SIZE // os.sysconf("SC_PAGESIZE")  # of two tensors of twenty at most


@pytest.mark.parametrize("name", CHOSEN_BY)
def test_the_users_choice_stays(name):
    kept, _ = count(**{name: ""})
    assert kept == "False"
