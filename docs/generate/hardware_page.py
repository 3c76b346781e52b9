"""The tables of docs/reference/hardware.md: every known device."""

from docs.generate.marks import with_part
from perfmodel.hardware.hardware import Hardware
from perfmodel.hardware.known_hardware import KNOWN_HARDWARE

PEAK_COLUMNS = ("fp32", "fp16", "bf16", "fp8", "int8", "int4")


def with_hardware_tables(page: str) -> str:
    """The page with its tables made anew between their two marks."""
    return with_part(page, "hardware-tables", hardware_tables())


def hardware_tables() -> str:
    """Every known device: its figures, then its names and sources."""
    peaks = " | ".join(PEAK_COLUMNS)
    figures = [f"| device | {peaks} | GB/s | GB | links, GB/s in one direction | kernel costs | error |"]
    figures += ["|---|" + "---:|" * (len(PEAK_COLUMNS) + 2) + "---|---|---:|"]
    figures += [figures_row(hardware) for hardware in KNOWN_HARDWARE]
    sources = ["| device | also found as | source |", "|---|---|---|"]
    sources += [f"| {hardware.name} | {', '.join(hardware.aliases)} | {hardware.spec_source} |" for hardware in KNOWN_HARDWARE]
    return "\n".join([*figures, "", *sources])


def figures_row(hardware: Hardware) -> str:
    peaks = [hardware.peak_flops_per_s.get(dtype) for dtype in PEAK_COLUMNS]
    links = ", ".join(f"{link.kind} {link.bytes_per_s / 1e9:g} ({link.max_devices})" for link in hardware.links)
    costs = "its own" if hardware.similarity == "itself" else f"{hardware.reference_device}, {hardware.similarity}"
    cells = [
        hardware.name,
        *("" if peak is None else f"{peak / 1e12:g}" for peak in peaks),
        f"{hardware.memory_bytes_per_s / 1e9:g}",
        f"{hardware.memory_bytes / 1e9:g}",
        links,
        costs,
        f"{100 * hardware.error_frac:.0f} %",
    ]
    return f"| {' | '.join(cells)} |"
