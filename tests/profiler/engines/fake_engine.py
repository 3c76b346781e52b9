"""A session that answers at once, in place of an engine: what it writes and how fast follows from its draft length."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

from s2d.engines.session_request import CallResult, EngineFacts, SessionRequest


class FakeSession:
    """Writes the same tokens with every draft; class attributes change what all sessions do."""

    opened: ClassVar[list[str]] = []
    """Log names of all sessions that were started."""
    calls: ClassVar[list[tuple[str, int]]] = []
    """Log name and draft length of every call, warm-ups included."""
    facts = EngineFacts(version="1.0", options=("cache=f16",))
    pid = 2**22 + 1
    """No process has this id."""
    wrong_exits: tuple[str, ...] = ()
    """Sessions of these logs write another text."""
    fails_after: int | None = None
    """The call with this index raises KeyboardInterrupt."""

    def __init__(self, request: SessionRequest) -> None:
        self.request = request

    def __enter__(self) -> Self:
        type(self).opened.append(self.request.log.stem)
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""

    def call(
        self, prompt: Sequence[int], max_new_tokens: int, draft_tokens: int | None = None, floor: float | None = None
    ) -> CallResult:
        assert len(prompt) + max_new_tokens + (draft_tokens or 0) <= self.request.context_tokens
        cls = type(self)
        if cls.fails_after is not None and len(cls.calls) >= cls.fails_after:
            raise KeyboardInterrupt
        name, length = self.request.log.stem, draft_tokens or 0
        cls.calls.append((name, length))
        first = 9 if name in cls.wrong_exits else 1
        return CallResult(
            tokens=(first, *range(max_new_tokens - 1)),
            call_s=1.0,
            decode_s=1.0 / (1 + length),
            untimed_tokens=1,
            num_rounds=(max_new_tokens - 1) // (1 + length) if length else None,
            raw={} if floor is None else {"expected_tokens_per_round": 10 * floor},
        )


def no_conversion(source: Path, engine: str, weights: str, out: Path) -> Path:
    """In place of `make_checkpoint`: one small file."""
    out.write_bytes(b"x" * 1000)
    return out
