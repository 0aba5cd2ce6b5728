from pathlib import Path

import pytest
import torch

from mtfixmatch.street import generate as street

# The networks are so small that two threads only wait for each other.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def street_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for DATASETS.ROOT, with a small data set in its folder `street`."""
    root = tmp_path_factory.mktemp("datasets")
    street.generate(root / "street", num_train=16, num_val=6, size=(256, 128), seed=1)
    return root
