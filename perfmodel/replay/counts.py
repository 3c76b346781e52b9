"""What replay counts: entries of one shape for all that happens in rounds, so that whoever counts them needs no record of ours.

Letters: N entries.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from perfmodel.passes.passes import PassKind

ENTRY = np.dtype([(name, np.int64) for name in ("group", "what", "stage", "size", "number", "cached")])
"""So many of a group's passes, rounds or tokens. `stage`: a segment or an exit, zero-based. `size`: rows of a pass, tokens of a
round, or the place of a pass that is cold. `cached`: tokens in the cache before the passes, in sum."""
Entries: TypeAlias = NDArray[Any]
"""[N] of `ENTRY`, group after group."""

KINDS: tuple[PassKind, ...] = ("ahead", "exit", "round", "segment", "verify")
"""Of passes, in the order of their names: the first numbers of `what`."""
AHEAD, EXIT, ROUND, SEGMENT, VERIFY = range(len(KINDS))
ACCEPTED, TAKEN, BLOCK, COLD = range(len(KINDS), len(KINDS) + 4)
"""Other numbers of `what`: rounds by their accepted tokens; tokens by the exit at which they left; single rounds, of `size`
drafted and `number` accepted tokens; and from `COLD` on, by kind, passes that are cold."""
