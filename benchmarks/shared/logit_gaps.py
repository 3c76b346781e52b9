"""How far emitted tokens lie below the target's largest logit, compared with the gap allowed in half precision."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from perfmodel.models.dtypes import Dtype
from perfmodel.passes.device_key import LaunchMode
from perfmodel.results.report import Divergence
from shared import common  # noqa: F401 makes the checkout importable

STATED_GAP = 0.5
"""In logits. A token this far below the largest logit is exp(-0.5) = 0.61 times as likely as the target's own choice. The limit
was stated before the measurement."""
GAP_EDGES = (0.0, 0.01, 0.03, 0.1, 0.3, STATED_GAP)
GAP_LABELS = ("0", *(f"<={edge:g}" for edge in GAP_EDGES[1:]), f">{STATED_GAP:g}")
GAP_HEADERS = ("pair", "dtype", "mode", "different texts", "accepted", *(f"gap {label}" for label in GAP_LABELS), "worst")


def gap_histogram(gaps: Sequence[float]) -> dict[str, int]:
    """The number of tokens by gap: 0, up to each edge, and above the stated gap. NaN counts as above."""
    counts = [0] * len(GAP_LABELS)
    for gap in gaps:
        counts[next((number for number, edge in enumerate(GAP_EDGES) if gap <= edge), len(GAP_EDGES))] += 1
    return dict(zip(GAP_LABELS, counts, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lossless:
    """The texts of one pair in one dtype under one mode, decoded plainly and speculatively."""

    pair: str
    dtype: Dtype
    mode: LaunchMode
    num_cases: int
    num_drafted: int
    num_accepted: int
    divergences: Sequence[Divergence]
    """The first difference of each text that differs."""
    gaps: Sequence[float]
    """One gap for every token emitted by speculation."""

    @property
    def as_json(self) -> dict[str, object]:
        """Everything except the individual gaps."""
        return {
            "pair": self.pair,
            "dtype": self.dtype,
            "mode": self.mode,
            "num_cases": self.num_cases,
            "num_drafted": self.num_drafted,
            "num_accepted": self.num_accepted,
            "divergences": [asdict(divergence) for divergence in self.divergences],
            "gap_histogram": gap_histogram(self.gaps),
            "worst_gap": max(self.gaps),
        }

    @property
    def as_row(self) -> list[str]:
        """The row for a table with `GAP_HEADERS`."""
        return [
            self.pair,
            self.dtype,
            self.mode,
            f"{len(self.divergences)} of {self.num_cases}",
            f"{self.num_accepted} of {self.num_drafted}",
            *map(str, gap_histogram(self.gaps).values()),
            f"{max(self.gaps):.2g}",
        ]


def gap_result(texts: Sequence[Lossless], dtypes: Sequence[Dtype]) -> dict[str, dict[str, object]]:
    """Mismatches and gaps by dtype, over all pairs and modes."""
    result: dict[str, dict[str, object]] = {}
    for dtype in dtypes:
        of_dtype = [text for text in texts if text.dtype == dtype]
        gaps = [gap for text in of_dtype for gap in text.gaps]
        histogram = gap_histogram(gaps)
        figures = {
            "num_cases": sum(text.num_cases for text in of_dtype),
            "num_mismatches": sum(len(text.divergences) for text in of_dtype),
            "num_tokens": len(gaps),
            "num_beyond_stated_gap": histogram[GAP_LABELS[-1]],
            "worst_gap": max(gaps),
            "gap_histogram": histogram,
        }
        for name, figure in figures.items():
            result.setdefault(name, {})[dtype] = figure
    return result
