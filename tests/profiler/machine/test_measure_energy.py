"""Energy from readings of simulated power sensors."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from profiler.machine.measure_energy import EnergyMeter, PowerSensor, measure_energy, nvml_sensor


def clock_of(*seconds: float) -> Iterator[float]:
    return iter(seconds)


def test_energy_follows_the_trapezoid_rule() -> None:
    times, powers = clock_of(0.0, 2.0, 3.0), iter((10.0, 20.0, 40.0))
    meter = EnergyMeter(lambda: next(powers), clock=lambda: next(times))
    meter.read()
    meter.read()
    assert meter.energy_j == pytest.approx(15 * 2 + 30 * 1)
    assert meter.seconds == 3.0
    assert meter.mean_w == pytest.approx(20.0)


def test_mean_power_is_unknown_before_time_has_passed() -> None:
    assert EnergyMeter(lambda: 5.0, clock=lambda: 1.0).mean_w is None


def test_energy_at_constant_power_is_power_times_time_and_the_thread_ends() -> None:
    before = threading.active_count()
    with measure_energy(lambda: 100.0, read_every_s=0.002) as meter:
        time.sleep(0.03)
    assert meter is not None
    assert threading.active_count() == before
    assert meter.seconds >= 0.03
    assert meter.energy_j == pytest.approx(100.0 * meter.seconds)


def test_the_thread_ends_when_the_body_fails() -> None:
    before = threading.active_count()
    with pytest.raises(KeyError), measure_energy(lambda: 1.0, read_every_s=0.001):
        raise KeyError
    assert threading.active_count() == before


def failing_after(num_readings: int) -> PowerSensor:
    readings = iter((1.0,) * num_readings)

    def read() -> float:
        for reading in readings:
            return reading
        raise OSError("the card fell off the bus")

    return read


@pytest.mark.parametrize("num_readings", [0, 1, 3])
def test_a_failing_sensor_ends_the_readings_and_not_the_body(num_readings: int) -> None:
    before, is_done = threading.active_count(), False
    with measure_energy(failing_after(num_readings), read_every_s=0.001) as meter:
        time.sleep(0.02)
        is_done = True
    assert is_done
    assert threading.active_count() == before
    assert meter is not None
    assert str(meter.failure) == "the card fell off the bus"


def test_a_failure_at_the_last_reading_is_recorded() -> None:
    with measure_energy(failing_after(1), read_every_s=60) as meter:
        assert meter is not None
        assert meter.failure is None
    assert meter.failure is not None


def test_there_is_no_meter_without_a_sensor() -> None:
    assert nvml_sensor(torch.device("cpu")) is None
    with measure_energy(None) as meter:
        assert meter is None


def test_a_pause_adds_neither_energy_nor_time() -> None:
    times, powers = clock_of(0.0, 1.0, 3601.0, 3602.0), iter((10.0, 10.0, 300.0, 10.0))
    meter = EnergyMeter(lambda: next(powers), clock=lambda: next(times))
    for _ in range(3):
        meter.read()
    assert meter.energy_j == pytest.approx(10.0 + 155.0)
    assert meter.seconds == pytest.approx(2.0)
