from typing import Any

from numpy.typing import NDArray

def run(
    is_self_draft: bool,
    by_prompt: bool,
    keep_blocks: bool,
    rules: NDArray[Any],
    looked: NDArray[Any],
    thresholds: NDArray[Any],
    curves: NDArray[Any],
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
