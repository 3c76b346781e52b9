"""The time that the settings of a run still take, from estimates and the pace so far."""

import time
from collections.abc import Callable, Sequence

from details.engines.sizes import Setting
from perfmodel.core.units import Frac, Seconds, format_duration

_KEPT_FRAC: Frac = 0.1
"""A setting that took a smaller share of its estimate was measured before: it does not show the pace."""


class TimeLeft:
    """Estimates the time left, whenever a setting begins.

    Args:
        settings: all that will be measured, in order.
        clock: a monotonic clock in seconds.
    """

    def __init__(self, settings: Sequence[Setting], clock: Callable[[], Seconds] = time.perf_counter) -> None:
        self._settings, self._clock = list(settings), clock
        self._expected_s = self._spent_s = 0.0
        self._begun: tuple[Setting, Seconds] | None = None

    def begin(self, setting: Setting) -> str:
        """A line about the setting that begins now, and the time left."""
        now_s = self._clock()
        if self._begun is not None:
            before, start_s = self._begun
            if now_s - start_s >= _KEPT_FRAC * 60 * before.minutes:
                self._expected_s += 60 * before.minutes
                self._spent_s += now_s - start_s
        self._begun = setting, now_s
        number = self._settings.index(setting)
        pace = self._spent_s / self._expected_s if self._expected_s else 1.0
        left_s = pace * 60 * sum(later.minutes for later in self._settings[number:])
        return f"{setting.label}: setting {number + 1} of {len(self._settings)}, about {format_duration(left_s)} left"
