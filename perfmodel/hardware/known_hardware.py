"""The table of known devices, from vendors' documents that each row names.

Peaks are dense. If a datasheet prints only the rate with sparsity, the table holds half of it, noted in the source. Link
bandwidths are for one direction, half of the number for both directions in datasheets. The table is the source of
docs/reference/hardware.md.
"""

from collections.abc import Mapping

from perfmodel.core.units import GB, TERA, FlopsPerS
from perfmodel.hardware.hardware import Hardware, Link
from perfmodel.hardware.kernel_efficiency import A100, A100_BF16_FLOPS_PER_S, A100_BYTES_PER_S, H100, H100_BYTES_PER_S
from perfmodel.models.dtypes import Dtype


def _peaks(
    *, fp32: float, fp16: float, bf16: float | None, fp8: float | None, int8: float | None, int4: float | None
) -> Mapping[Dtype, FlopsPerS]:
    """Peak rates from TFLOP/s; None for a dtype that the device does not compute in."""
    tera_flops: dict[Dtype, float | None] = {"fp32": fp32, "fp16": fp16, "bf16": bf16, "fp8": fp8, "int8": int8, "int4": int4}
    return {dtype: value * TERA for dtype, value in tera_flops.items() if value is not None}


def _nvlink(gb_per_s: float, *, max_devices: int) -> Link:
    return Link(kind="nvlink", bytes_per_s=gb_per_s * GB, max_devices=max_devices)


def _pcie(gb_per_s: float) -> Link:
    return Link(kind="pcie", bytes_per_s=gb_per_s * GB, max_devices=8)


_PCIE_3, _PCIE_4, _PCIE_5 = _pcie(16), _pcie(32), _pcie(64)

_A100_PEAKS = _peaks(fp32=19.5, fp16=312, bf16=A100_BF16_FLOPS_PER_S / TERA, fp8=None, int8=624, int4=1248)
_H100_SXM_PEAKS = _peaks(fp32=67, fp16=989, bf16=989, fp8=1979, int8=1979, int4=None)
_A100_SHEET = "NVIDIA A100 datasheet (nvidia-1758950-r4): 19.5 TFLOP/s fp32, 312 fp16 and bf16, 624 int8, 1,248 int4; "
_HOPPER_SPARSE = "fp16, bf16, fp8 and int8 printed with sparsity, halved here"

_FITTED: tuple[Hardware, ...] = (
    Hardware(
        name=A100,
        aliases=("a100", "a100-80", "a100-80gb", "a100-sxm", "nvidia a100-sxm4-80gb"),
        peak_flops_per_s=_A100_PEAKS,
        memory_bytes_per_s=A100_BYTES_PER_S,
        memory_bytes=80 * GB,
        links=(_nvlink(300, max_devices=8),),
        reference_device=A100,
        similarity="itself",
        num_threads=None,
        spec_source=_A100_SHEET + "SXM, 80 GB at 2,039 GB/s, NVLink 600 GB/s both ways",
    ),
    Hardware(
        name=H100,
        aliases=("h100", "h100-80gb", "h100-sxm5", "nvidia h100 80gb hbm3"),
        peak_flops_per_s=_H100_SXM_PEAKS,
        memory_bytes_per_s=H100_BYTES_PER_S,
        memory_bytes=80 * GB,
        links=(_nvlink(450, max_devices=8),),
        reference_device=H100,
        similarity="itself",
        num_threads=None,
        spec_source="NVIDIA H100 datasheet, column SXM: 80 GB at 3.35 TB/s, 67 TFLOP/s fp32, NVLink 900 GB/s both ways; "
        + _HOPPER_SPARSE,
    ),
)

_DATA_CENTRE: tuple[Hardware, ...] = (
    Hardware(
        name="A100-40GB-SXM",
        aliases=("a100-40", "a100-40gb", "nvidia a100-sxm4-40gb"),
        peak_flops_per_s=_A100_PEAKS,
        memory_bytes_per_s=1555 * GB,
        memory_bytes=40 * GB,
        links=(_nvlink(300, max_devices=8),),
        reference_device=A100,
        similarity="same-chip",
        num_threads=None,
        spec_source=_A100_SHEET + "SXM, 40 GB at 1,555 GB/s, NVLink 600 GB/s both ways",
    ),
    Hardware(
        name="A100-80GB-PCIe",
        aliases=("a100-pcie", "nvidia a100 80gb pcie"),
        peak_flops_per_s=_A100_PEAKS,
        memory_bytes_per_s=1935 * GB,
        memory_bytes=80 * GB,
        links=(_nvlink(300, max_devices=2), _PCIE_4),
        reference_device=A100,
        similarity="same-chip",
        num_threads=None,
        spec_source=_A100_SHEET
        + "PCIe, 80 GB at 1,935 GB/s, NVLink bridge of two 600 GB/s and PCIe Gen4 64 GB/s, both ways; 300 W",
    ),
    Hardware(
        name="A100-40GB-PCIe",
        aliases=("nvidia a100-pcie-40gb",),
        peak_flops_per_s=_A100_PEAKS,
        memory_bytes_per_s=1555 * GB,
        memory_bytes=40 * GB,
        links=(_nvlink(300, max_devices=2), _PCIE_4),
        reference_device=A100,
        similarity="same-chip",
        num_threads=None,
        spec_source="NVIDIA A100 40GB PCIe product brief PB-10137-001, table 2, 1,555 GB/s; peaks of the A100 datasheet; "
        "NVLink bridge of two 600 GB/s, PCIe Gen4 64 GB/s, both ways; 250 W",
    ),
    Hardware(
        name="H100-PCIe",
        aliases=("h100-80gb-pcie", "nvidia h100 pcie"),
        peak_flops_per_s=_peaks(fp32=51, fp16=756, bf16=756, fp8=1513, int8=1513, int4=None),
        memory_bytes_per_s=2000 * GB,
        memory_bytes=80 * GB,
        links=(_nvlink(300, max_devices=2), _PCIE_5),
        reference_device=H100,
        similarity="same-chip",
        num_threads=None,
        spec_source="NVIDIA H100 datasheet, column PCIe: 80 GB at 2 TB/s, 51 TFLOP/s fp32, NVLink bridge of two 600 GB/s, "
        "PCIe Gen5 128 GB/s, both ways; " + _HOPPER_SPARSE + "; the earlier Hopper whitepaper printed 48 and 800",
    ),
    Hardware(
        name="H100-NVL",
        aliases=("h100-94gb", "nvidia h100 nvl"),
        peak_flops_per_s=_peaks(fp32=60, fp16=835.5, bf16=835.5, fp8=1670.5, int8=1670.5, int4=None),
        memory_bytes_per_s=3900 * GB,
        memory_bytes=94 * GB,
        links=(_nvlink(300, max_devices=2), _PCIE_5),
        reference_device=H100,
        similarity="same-chip",
        num_threads=None,
        spec_source="NVIDIA H100 datasheet, column NVL: 94 GB at 3.9 TB/s, 60 TFLOP/s fp32, NVLink bridge of two 600 GB/s, "
        "PCIe Gen5 128 GB/s, both ways; " + _HOPPER_SPARSE + "; per GPU, where the first datasheet printed a pair",
    ),
    Hardware(
        name="H200-SXM",
        aliases=("h200", "h200-141gb", "nvidia h200"),
        peak_flops_per_s=_H100_SXM_PEAKS,
        memory_bytes_per_s=4800 * GB,
        memory_bytes=141 * GB,
        links=(_nvlink(450, max_devices=8),),
        reference_device=H100,
        similarity="same-chip",
        num_threads=None,
        spec_source="NVIDIA H200 datasheet, column SXM: 141 GB at 4.8 TB/s, compute and NVLink of the H100; " + _HOPPER_SPARSE,
    ),
    Hardware(
        name="GH200-96GB",
        aliases=("gh200", "nvidia gh200 480gb"),
        peak_flops_per_s=_H100_SXM_PEAKS,
        memory_bytes_per_s=4000 * GB,
        memory_bytes=96 * GB,
        links=(_nvlink(450, max_devices=2),),
        reference_device=H100,
        similarity="same-chip",
        num_threads=None,
        spec_source="NVIDIA GH200 Grace Hopper Superchip datasheet: 96 GB HBM3 at 4 TB/s, 67 TFLOP/s fp32, NVLink 900 GB/s "
        "both ways between two (NVL2); the CPU's 480 GB are not counted; " + _HOPPER_SPARSE,
    ),
    Hardware(
        name="GH200-144GB",
        aliases=("gh200-hbm3e", "nvidia gh200 144g hbm3e"),
        peak_flops_per_s=_H100_SXM_PEAKS,
        memory_bytes_per_s=4900 * GB,
        memory_bytes=144 * GB,
        links=(_nvlink(450, max_devices=2),),
        reference_device=H100,
        similarity="same-chip",
        num_threads=None,
        spec_source="NVIDIA GH200 Grace Hopper Superchip datasheet: 144 GB HBM3e at up to 4.9 TB/s, 67 TFLOP/s fp32, NVLink "
        "900 GB/s both ways between two (NVL2); " + _HOPPER_SPARSE,
    ),
    Hardware(
        name="B200-SXM",
        aliases=("b200", "b200-180gb", "nvidia b200"),
        peak_flops_per_s=_peaks(fp32=75, fp16=2250, bf16=2250, fp8=4500, int8=4500, int4=None),
        memory_bytes_per_s=7700 * GB,
        memory_bytes=180 * GB,
        links=(_nvlink(900, max_devices=8),),
        reference_device=H100,
        similarity="neighbour",
        num_threads=None,
        spec_source="NVIDIA Blackwell datasheet, HGX B200, per GPU: 180 GB at 7.7 TB/s, 75 TFLOP/s fp32, NVLink 1.8 TB/s both "
        "ways; fp16, bf16, fp8 and int8 printed with sparsity, halved here; the DGX B200 datasheet prints 8 TB/s; its fp4 is "
        "not an int4",
    ),
    Hardware(
        name="L40S",
        aliases=("nvidia l40s",),
        peak_flops_per_s=_peaks(fp32=91.6, fp16=362.05, bf16=362.05, fp8=733, int8=733, int4=733),
        memory_bytes_per_s=864 * GB,
        memory_bytes=48 * GB,
        links=(_PCIE_4,),
        reference_device=H100,
        similarity="neighbour",
        num_threads=None,
        spec_source="NVIDIA L40S datasheet, dense column: 48 GB at 864 GB/s, PCIe Gen4 64 GB/s both ways",
    ),
    Hardware(
        name="L4",
        aliases=("nvidia l4",),
        peak_flops_per_s=_peaks(fp32=30.3, fp16=121, bf16=121, fp8=242.5, int8=242.5, int4=None),
        memory_bytes_per_s=300 * GB,
        memory_bytes=24 * GB,
        links=(_PCIE_4,),
        reference_device=H100,
        similarity="distant",
        num_threads=None,
        spec_source="NVIDIA L4 datasheet: 24 GB at 300 GB/s, PCIe Gen4 64 GB/s both ways, 72 W; fp16 and bf16 242, fp8 and "
        "int8 485 printed with sparsity, halved here; no int4 printed",
    ),
    Hardware(
        name="A10",
        aliases=("nvidia a10",),
        peak_flops_per_s=_peaks(fp32=31.2, fp16=125, bf16=125, fp8=None, int8=250, int4=500),
        memory_bytes_per_s=600 * GB,
        memory_bytes=24 * GB,
        links=(_PCIE_4,),
        reference_device=A100,
        similarity="neighbour",
        num_threads=None,
        spec_source="NVIDIA A10 datasheet, dense column: 24 GB at 600 GB/s, PCIe Gen4 64 GB/s both ways",
    ),
    Hardware(
        name="A40",
        aliases=("nvidia a40",),
        peak_flops_per_s=_peaks(fp32=37.4, fp16=149.7, bf16=149.7, fp8=None, int8=299.3, int4=598.7),
        memory_bytes_per_s=696 * GB,
        memory_bytes=48 * GB,
        links=(_nvlink(56.25, max_devices=2), _PCIE_4),
        reference_device=A100,
        similarity="neighbour",
        num_threads=None,
        spec_source="NVIDIA A40 datasheet, dense column: 48 GB at 696 GB/s, NVLink bridge of two 112.5 GB/s, PCIe Gen4 64 "
        "GB/s, both ways",
    ),
    Hardware(
        name="V100-32GB-SXM2",
        aliases=("v100", "v100-32gb", "v100-sxm2", "tesla v100-sxm2-32gb"),
        peak_flops_per_s=_peaks(fp32=15.7, fp16=125, bf16=None, fp8=None, int8=None, int4=None),
        memory_bytes_per_s=900 * GB,
        memory_bytes=32 * GB,
        links=(_nvlink(150, max_devices=8),),
        reference_device=A100,
        similarity="neighbour",
        num_threads=None,
        spec_source="NVIDIA V100 datasheet, column NVLink: 32 GB at 900 GB/s, NVLink 300 GB/s both ways, all six links "
        "together; tensor cores for fp16 only",
    ),
    Hardware(
        name="V100-16GB-SXM2",
        aliases=("v100-16gb", "tesla v100-sxm2-16gb"),
        peak_flops_per_s=_peaks(fp32=15.7, fp16=125, bf16=None, fp8=None, int8=None, int4=None),
        memory_bytes_per_s=900 * GB,
        memory_bytes=16 * GB,
        links=(_nvlink(150, max_devices=8),),
        reference_device=A100,
        similarity="neighbour",
        num_threads=None,
        spec_source="NVIDIA V100 datasheet, column NVLink: 16 GB at 900 GB/s, NVLink 300 GB/s both ways, all six links "
        "together; tensor cores for fp16 only",
    ),
    Hardware(
        name="V100-32GB-PCIe",
        aliases=("v100-pcie", "tesla v100-pcie-32gb"),
        peak_flops_per_s=_peaks(fp32=14, fp16=112, bf16=None, fp8=None, int8=None, int4=None),
        memory_bytes_per_s=900 * GB,
        memory_bytes=32 * GB,
        links=(_PCIE_3,),
        reference_device=A100,
        similarity="neighbour",
        num_threads=None,
        spec_source="NVIDIA V100 datasheet, column PCIe: 32 GB at 900 GB/s, PCIe Gen3 32 GB/s both ways; tensor cores for "
        "fp16 only",
    ),
    Hardware(
        name="T4",
        aliases=("nvidia t4", "tesla t4"),
        peak_flops_per_s=_peaks(fp32=8.1, fp16=65, bf16=None, fp8=None, int8=130, int4=260),
        memory_bytes_per_s=320 * GB,
        memory_bytes=16 * GB,
        links=(_PCIE_3,),
        reference_device=A100,
        similarity="distant",
        num_threads=None,
        spec_source="NVIDIA T4 product brief PB-09256-001, table 2: 16 GB at up to 320 GB/s (the datasheet prints 300); peaks "
        "of the T4 datasheet; PCIe Gen3 32 GB/s both ways, 70 W",
    ),
    Hardware(
        name="MI300X",
        aliases=("amd instinct mi300x", "amd instinct mi300x oam"),
        peak_flops_per_s=_peaks(fp32=163.4, fp16=1307.4, bf16=1307.4, fp8=2614.9, int8=2614.9, int4=None),
        memory_bytes_per_s=5300 * GB,
        memory_bytes=192 * GB,
        links=(Link(kind="infinity-fabric", bytes_per_s=64 * GB, max_devices=8),),
        reference_device=H100,
        similarity="unrelated",
        num_threads=None,
        spec_source="AMD Instinct MI300X data sheet: 192 GB at 5.3 TB/s, Infinity Fabric 128 GB/s both ways to each of seven "
        "peers",
    ),
)

_DESKTOP: tuple[Hardware, ...] = (
    Hardware(
        name="RTX-3090",
        aliases=("3090", "rtx3090", "nvidia geforce rtx 3090"),
        peak_flops_per_s=_peaks(fp32=35.6, fp16=71, bf16=71, fp8=None, int8=284, int4=568),
        memory_bytes_per_s=936 * GB,
        memory_bytes=24 * GB,
        links=(_nvlink(56.25, max_devices=2), _PCIE_4),
        reference_device=A100,
        similarity="neighbour",
        num_threads=None,
        spec_source="NVIDIA Ampere GA102 whitepaper V2, appendix A (GeForce RTX 3090): 24 GB at 936 GB/s, 71 TFLOP/s fp16 and "
        "bf16 with 32-bit accumulation, NVLink bridge of two 112.5 GB/s both ways; PCIe 4.0 x16",
    ),
    Hardware(
        name="RTX-4090",
        aliases=("4090", "rtx4090", "nvidia geforce rtx 4090"),
        peak_flops_per_s=_peaks(fp32=82.6, fp16=165.2, bf16=165.2, fp8=330.3, int8=660.6, int4=1321.2),
        memory_bytes_per_s=1008 * GB,
        memory_bytes=24 * GB,
        links=(_PCIE_4,),
        reference_device=H100,
        similarity="neighbour",
        num_threads=None,
        spec_source="NVIDIA Ada GPU architecture whitepaper, appendix A (GeForce RTX 4090): 24 GB at 1,008 GB/s, 165.2 "
        "TFLOP/s fp16 and bf16 and 330.3 fp8 with 32-bit accumulation; PCIe 4.0 x16",
    ),
    Hardware(
        name="RTX-5090",
        aliases=("5090", "rtx5090", "nvidia geforce rtx 5090"),
        peak_flops_per_s=_peaks(fp32=104.8, fp16=209.5, bf16=209.5, fp8=419, int8=838, int4=None),
        memory_bytes_per_s=1792 * GB,
        memory_bytes=32 * GB,
        links=(_PCIE_5,),
        reference_device=H100,
        similarity="neighbour",
        num_threads=None,
        spec_source="NVIDIA RTX Blackwell GPU architecture whitepaper, appendix A (GeForce RTX 5090): 32 GB at 1,792 GB/s, "
        "209.5 TFLOP/s fp16 and bf16 and 419 fp8 with 32-bit accumulation, at the rated boost clock; PCIe 5.0 x16; its fp4 is "
        "not an int4",
    ),
    Hardware(
        name="RTX-PRO-6000",
        aliases=("rtx-pro-6000-blackwell", "nvidia rtx pro 6000 blackwell workstation edition"),
        peak_flops_per_s=_peaks(fp32=126, fp16=503.8, bf16=503.8, fp8=1007.6, int8=1007.6, int4=None),
        memory_bytes_per_s=1792 * GB,
        memory_bytes=96 * GB,
        links=(_PCIE_5,),
        reference_device=H100,
        similarity="neighbour",
        num_threads=None,
        spec_source="NVIDIA RTX PRO Blackwell GPU architecture whitepaper (RTX PRO 6000 Blackwell Workstation Edition): 96 GB "
        "at 1,792 GB/s, 503.8 TFLOP/s fp16 and bf16 and 1,007.6 fp8 with 32-bit accumulation; PCIe 5.0 x16; the datasheet "
        "rounds fp32 to 125; its fp4 is not an int4; Max-Q and Server Edition are other devices",
    ),
)

KNOWN_HARDWARE: tuple[Hardware, ...] = (*_FITTED, *_DATA_CENTRE, *_DESKTOP)
"""All devices; the first are those with measured kernels."""
