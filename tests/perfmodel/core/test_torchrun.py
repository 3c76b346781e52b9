"""The number of processes comes from torchrun alone."""

import pytest

from perfmodel.core.torchrun import num_processes, torchrun_command

VARIABLES = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


def test_the_size_of_a_cluster_job_is_ignored_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert num_processes() == 1
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert num_processes() == 1
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    assert num_processes() == 4


def test_one_device_needs_no_launcher() -> None:
    assert torchrun_command(["s2d-run", "--check"], 1) == ("s2d-run", "--check")
    assert torchrun_command(["s2d-run"], 2) == ("torchrun", "--nproc-per-node", "2", "--no-python", "s2d-run")
