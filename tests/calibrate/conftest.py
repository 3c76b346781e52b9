"""Plans in tests do not depend on the GPUs of the machine."""

import pytest

from calibrate.inputs import device


@pytest.fixture(autouse=True)
def no_gpu_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "present_gpus", tuple)
