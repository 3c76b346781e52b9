"""How far below the target's own choice emitted tokens lie, held against the gap that is allowed in half precision."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from perfmodel.models.dtypes import Dtype
from perfmodel.passes.device_key import EngineMode
from perfmodel.results.report import Divergence
from shared import common  # noqa: F401 makes the checkout importable

STATED_GAP = 0.5
"""In logits: a token that far below the largest is exp(-0.5) = 0.61 times as likely as the target's own choice. Stated before
it was measured."""
GAP_EDGES = (0.0, 0.01, 0.03, 0.1, 0.3, STATED_GAP)
GAP_LABELS = ("0", *(f"<={edge:g}" for edge in GAP_EDGES[1:]), f">{STATED_GAP:g}")
GAP_HEADERS = ("pair", "dtype", "engine", "other texts", "accepted", *(f"gap {label}" for label in GAP_LABELS), "worst")


def gap_histogram(gaps: Sequence[float]) -> dict[str, int]:
    """Tokens by gap: 0, then up to each edge, then beyond the stated gap, where what is no number belongs too."""
    counts = [0] * len(GAP_LABELS)
    for gap in gaps:
        counts[next((place for place, edge in enumerate(GAP_EDGES) if gap <= edge), len(GAP_EDGES))] += 1
    return dict(zip(GAP_LABELS, counts, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lossless:
    """Texts of one pair in one dtype under one engine, written plainly and speculatively."""

    pair: str
    dtype: Dtype
    engine: EngineMode
    num_cases: int
    num_drafted: int
    num_accepted: int
    divergences: Sequence[Divergence]
    """Where texts first differ, one for each that does."""
    gaps: Sequence[float]
    """Of every token that speculation emitted."""

    @property
    def as_json(self) -> dict[str, object]:
        """Everything but the single gaps."""
        return {
            "pair": self.pair,
            "dtype": self.dtype,
            "engine": self.engine,
            "num_cases": self.num_cases,
            "num_drafted": self.num_drafted,
            "num_accepted": self.num_accepted,
            "divergences": [asdict(one) for one in self.divergences],
            "gap_histogram": gap_histogram(self.gaps),
            "worst_gap": max(self.gaps),
        }

    @property
    def as_row(self) -> list[str]:
        """Its line in the table of `GAP_HEADERS`."""
        return [
            self.pair,
            self.dtype,
            self.engine,
            f"{len(self.divergences)} of {self.num_cases}",
            f"{self.num_accepted} of {self.num_drafted}",
            *map(str, gap_histogram(self.gaps).values()),
            f"{max(self.gaps):.2g}",
        ]


def gap_result(texts: Sequence[Lossless], dtypes: Sequence[Dtype]) -> dict[str, dict[str, object]]:
    """By dtype, over all pairs and engines: what was written otherwise, and how far off it was."""
    found: dict[str, dict[str, object]] = {}
    for dtype in dtypes:
        some = [one for one in texts if one.dtype == dtype]
        gaps = [gap for one in some for gap in one.gaps]
        histogram = gap_histogram(gaps)
        figures = {
            "num_cases": sum(one.num_cases for one in some),
            "num_mismatches": sum(len(one.divergences) for one in some),
            "num_tokens": len(gaps),
            "num_beyond_stated_gap": histogram[GAP_LABELS[-1]],
            "worst_gap": max(gaps),
            "gap_histogram": histogram,
        }
        for name, figure in figures.items():
            found.setdefault(name, {})[dtype] = figure
    return found
