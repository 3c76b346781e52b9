"""Measure energy: a thread reads a power sensor, and the trapezoid rule sums the readings."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from perfmodel.core.units import MILLI, Joules, Seconds, Watts
from profiler.machine.machine_facts import nvml_handle

PowerSensor = Callable[[], Watts]
"""Returns the current power."""

READ_EVERY_S: Seconds = 0.05
"""NVML updates its reading 10 to 50 times a second; reading faster adds nothing."""
MAX_GAP_S: Seconds = 10.0
"""A longer gap between two readings is a pause of the process or the machine."""


class EnergyMeter:
    """Integrates power over time.

    If the sensor fails, the readings end. The latency measurement continues without energy.

    Args:
        sensor: called from another thread.
        clock: a monotonic clock in seconds.
    """

    def __init__(self, sensor: PowerSensor, *, clock: Callable[[], Seconds] = time.perf_counter) -> None:
        self._sensor = sensor
        self._clock = clock
        self.energy_j: Joules = 0.0
        """Energy up to the last reading; meaningless after a failure of the sensor."""
        self.failure: Exception | None = None
        """The error of the sensor; None while it works."""
        self._start_s = self._last_s = clock()
        self._last_w: Watts = 0.0
        try:
            self._last_w = sensor()
        except Exception as err:
            self.failure = err

    @property
    def seconds(self) -> Seconds:
        """Time covered by readings."""
        return self._last_s - self._start_s

    @property
    def mean_w(self) -> Watts | None:
        """Mean power; None before time has passed."""
        return self.energy_j / self.seconds if self.seconds else None

    def read(self) -> None:
        """Add the energy since the last reading: the mean of both powers times the time between them.

        After a gap above `MAX_GAP_S` the power in between is unknown: neither its energy nor its time counts.
        """
        if self.failure is not None:
            return
        try:
            now_s, now_w = self._clock(), self._sensor()
        except Exception as err:  # whatever the driver raises, the measurement continues
            self.failure = err
            return
        gap_s = now_s - self._last_s
        if gap_s > MAX_GAP_S:
            self._start_s += gap_s
        else:
            self.energy_j += (now_w + self._last_w) / 2 * gap_s
        self._last_s, self._last_w = now_s, now_w


@contextmanager
def measure_energy(sensor: PowerSensor | None, *, read_every_s: Seconds = READ_EVERY_S) -> Iterator[EnergyMeter | None]:
    """Measure the energy that the `with` block uses; yields None without a sensor.

    The thread ends with the block, also after an error, or when the sensor fails (`EnergyMeter.failure`).
    """
    if sensor is None:
        yield None
        return
    meter = EnergyMeter(sensor)
    stop = threading.Event()
    thread = threading.Thread(target=_read_until, args=(meter, stop, read_every_s), daemon=True)
    thread.start()
    try:
        yield meter
    finally:
        stop.set()
        thread.join()
    meter.read()


def nvml_sensor(device: torch.device) -> PowerSensor | None:
    """The power sensor of a GPU; None on a CPU, without `nvidia-ml-py`, or if the card has no sensor."""
    handle = nvml_handle(device) if device.type == "cuda" else None
    if handle is None:
        return None
    import pynvml

    def power_w() -> Watts:
        return float(pynvml.nvmlDeviceGetPowerUsage(handle) * MILLI)  # NVML: mW

    try:
        power_w()
    except pynvml.NVMLError:
        return None
    return power_w


def _read_until(meter: EnergyMeter, stop: threading.Event, read_every_s: Seconds) -> None:
    while meter.failure is None and not stop.wait(read_every_s):
        meter.read()
