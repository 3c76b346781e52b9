from typing import Any

from numpy.typing import NDArray

ENTRY_KINDS: tuple[str, ...]
ENTRY_FIELDS: tuple[str, ...]
RULE_FIELDS: tuple[str, ...]
RULE_FORMATS: tuple[str, ...]

def run(
    is_self_draft: bool,
    by_prompt: bool,
    keep_blocks: bool,
    num_cold_places: int,
    rules: NDArray[Any],
    active: NDArray[Any],
    thresholds: NDArray[Any],
    curve_numbers: NDArray[Any],
    agreement: NDArray[Any],
    confidence: NDArray[Any],
    off_path: NDArray[Any] | None,
    accepted: NDArray[Any],
    ends_text: NDArray[Any],
    room: NDArray[Any],
    begin: NDArray[Any],
    end: NDArray[Any],
    known: NDArray[Any],
    /,
) -> bytes: ...
