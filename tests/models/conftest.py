from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test a model cache of its own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("MACPO_CACHE", str(folder))
    return folder
