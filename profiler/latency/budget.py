"""Progress and periodic saving of a measurement with a time budget."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from perfmodel.core.console import Progress, save_or_warn
from perfmodel.core.units import Seconds

SAVE_EVERY_S: Seconds = 15.0


class BudgetProgress:
    """Shows how much of a time budget is spent, in whole seconds.

    Args:
        label: what is measured.
        budget_s: the budget.
    """

    def __init__(self, label: str, budget_s: Seconds) -> None:
        self._budget_s, self._shown_s = round(budget_s), 0
        self._progress = Progress(label, max(1, self._budget_s))

    def __enter__(self) -> Self:
        self._progress.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._progress.__exit__(kind, error, traceback)

    def update(self, spent_s: Seconds, note: str) -> None:
        """Show the time spent, and a note, if another second has passed."""
        if (whole_s := min(round(spent_s), self._budget_s)) > self._shown_s:
            self._progress.step(note, units=whole_s - self._shown_s)
            self._shown_s = whole_s


class PeriodicSave:
    """Saves if `SAVE_EVERY_S` have passed since the last save. On a full disk it warns, and the measurement continues.

    Args:
        save: saves the measurement so far.
    """

    def __init__(self, save: Callable[[], None]) -> None:
        self._save, self._saved_s = save, time.perf_counter()

    def __call__(self) -> None:
        """Save if it is time to."""
        if time.perf_counter() - self._saved_s >= SAVE_EVERY_S:
            save_or_warn(self._save)
            self._saved_s = time.perf_counter()
