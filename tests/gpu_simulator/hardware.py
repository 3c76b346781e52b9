"""Properties of the simulated device, as `torch.cuda.get_device_properties` reports them."""

from dataclasses import dataclass

from perfmodel.hardware.find_hardware import find_hardware

MIB = 2**20

_CHIPS: dict[str, tuple[int, int, int]] = {
    "V100": (7, 0, 80),
    "T4": (7, 5, 40),
    "A100": (8, 0, 108),
    "A10": (8, 6, 72),
    "A40": (8, 6, 84),
    "RTX-3090": (8, 6, 82),
    "L4": (8, 9, 58),
    "L40S": (8, 9, 142),
    "RTX-4090": (8, 9, 128),
    "H100": (9, 0, 132),
    "H200": (9, 0, 132),
    "GH200": (9, 0, 132),
    "B200": (10, 0, 148),
    "RTX-5090": (12, 0, 170),
    "RTX-PRO-6000": (12, 0, 188),
}
"""Compute capability and number of SMs, from NVIDIA's CUDA GPU list and data sheets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProperties:
    """The part of torch's device properties that programs read."""

    name: str
    total_memory: int
    major: int
    minor: int
    multi_processor_count: int
    uuid: str = "00000000-0000-0000-0000-000000000000"
    warp_size: int = 32
    is_integrated: int = 0

    @property
    def capability(self) -> tuple[int, int]:
        """Value of `torch.cuda.get_device_capability`."""
        return self.major, self.minor

    @property
    def workspace_bytes(self) -> int:
        """cuBLAS workspace that PyTorch keeps per stream: 32 MiB from Hopper on, 8.125 MiB before."""
        return 32 * MIB if self.major >= 9 else 8 * MIB + 128 * 2**10


def device_properties(name: str) -> DeviceProperties:
    """Properties of a GPU from the project's hardware table.

    Args:
        name: as torch reports it, for example `NVIDIA H200`, or another alias from the table.

    Raises:
        ValueError: the table has no NVIDIA GPU with this name.
    """
    hardware = find_hardware(name)
    matches = [chip for chip in _CHIPS if hardware.name == chip or hardware.name.startswith(f"{chip}-")]
    if not matches:
        raise ValueError(f"cannot simulate {name!r}: expected an NVIDIA GPU, one of {', '.join(_CHIPS)}.")
    major, minor, num_sms = _CHIPS[max(matches, key=len)]
    return DeviceProperties(
        name=name, total_memory=int(hardware.memory_bytes), major=major, minor=minor, multi_processor_count=num_sms
    )
