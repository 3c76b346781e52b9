"""Plans in tests are made for no machine in particular."""

import pytest

from calibrate.inputs import device


@pytest.fixture(autouse=True)
def no_gpu_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "present_gpus", tuple)
