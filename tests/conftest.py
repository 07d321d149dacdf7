"""What holds for every test: no network, and one thread, which is fastest for tiny models."""

import os
import sys

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so it is set first
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Keep PyTorch from spreading tiny products over all cores; tests without it skip this."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
