from pathlib import Path

import pytest
import torch
from hypothesis import settings

from mtfixmatch.street import generate as street

# The networks are so small that two threads only wait for each other.
torch.set_num_threads(1)

# The same examples in every run: a test fails because of the code, not because of the draw. There
# is no deadline, since a busy machine is no fault of the code.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of a folder: `faults`, and `slow` for all that `tests/unit` does not hold."""
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        if folder != "unit":
            item.add_marker("slow")
        if folder == "faults":
            item.add_marker("faults")


@pytest.fixture(scope="session")
def street_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for DATASETS.ROOT, with a small data set in its folder `street`."""
    root = tmp_path_factory.mktemp("datasets")
    street.generate(root / "street", num_train=16, num_val=6, size=(256, 128), seed=1)
    return root
