"""Measure a device: memory bandwidth in plain decoding, the time of an exit check, and datasheet predictions."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch

from calibrate.pricing.pricing import target_exits
from perfmodel.core.units import BytesPerS, Frac, Seconds
from perfmodel.latency.latency_model import RooflineLatency
from perfmodel.latency.lower_bound import known_accelerator
from perfmodel.passes.flops_bytes import PassSetting
from perfmodel.policies.sampling import GREEDY
from perfmodel.quantisation.weight_format import plain_format
from perfmodel.replay.round_stats import RoundStats
from s2d.decoding.pair import ModelPair
from s2d.decoding.verify import make_verifier
from shared import common
from shared.interleaved import Models

NUM_CHECKS = 50
NUM_WARM_UPS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidth:
    """Bytes of weights and KV cache that plain decoding reads per second."""

    bytes_per_token: float
    bytes_per_s: BytesPerS
    datasheet_bytes_per_s: BytesPerS | None
    """None for a CPU and for a device that is in no table."""

    @property
    def datasheet_frac(self) -> Frac | None:
        """Share of the datasheet's bandwidth."""
        return None if self.datasheet_bytes_per_s is None else self.bytes_per_s / self.datasheet_bytes_per_s


def plain_bandwidth(pair: ModelPair, rounds: Sequence[RoundStats], decode_s: Seconds) -> Bandwidth:
    """Bandwidth of plain rounds. A round reads all weights except the embedding, and the whole KV cache."""
    key = pair.device_key
    setting = PassSetting(model=pair.target.geometry, weights=plain_format(key.dtype))
    work = setting.work("verify", 0, 1)
    counts = [count for prompt in rounds for count in prompt.passes if count.kind == "verify"]
    num_passes = sum(count.num_passes for count in counts)
    cached_tokens = sum(count.cached_tokens_sum for count in counts)
    read_bytes = num_passes * work.weight_bytes + cached_tokens * work.kv_bytes_per_cached_token
    hardware = known_accelerator(key)
    return Bandwidth(
        bytes_per_token=read_bytes / num_passes,
        bytes_per_s=read_bytes / decode_s,
        datasheet_bytes_per_s=hardware.memory_bytes_per_s if hardware else None,
    )


def datasheet_models(pair: ModelPair) -> Models | None:
    """Latency models of draft and target from the device's datasheet. None if the device is in no table."""
    key = pair.device_key
    hardware = known_accelerator(key)
    if hardware is None:
        return None
    draft = pair.geometry
    weights = plain_format(hardware.compute_dtype(key.dtype))
    drafting = PassSetting(model=draft.model, exit_layers=draft.exit_layers, weights=weights)
    verifying = PassSetting(model=pair.target.geometry, exit_layers=target_exits(draft), weights=weights)
    return RooflineLatency(drafting, hardware, key.mode), RooflineLatency(verifying, hardware, key.mode)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitCheck:
    """The time of one exit check on a device that is idle before it."""

    check_s: Seconds
    """Norm, head and softmax, until the host has read token and confidence."""
    head_s: Seconds
    """Norm and head only, until the device is done."""

    @property
    def reading_s(self) -> Seconds:
        """Time to choose a token and to read it on the host."""
        return self.check_s - self.head_s


@torch.inference_mode()
def measure_exit_check(pair: ModelPair) -> ExitCheck:
    """Median times of many checks of the draft's first exit, alternating with its norm and head only."""
    decoder = pair.draft.decoder
    verifier, states = make_verifier(GREEDY, "max-prob", decoder.device), decoder.embed([1])
    verifier.start(1, 2)

    def check() -> None:
        verifier.check_exit(decoder, states, [1], 1, 0)()

    def head() -> None:
        decoder.exit_logits(states)

    times: dict[Callable[[], None], list[Seconds]] = {check: [], head: []}
    for number in range(NUM_WARM_UPS + NUM_CHECKS):
        for action, seconds in times.items():
            elapsed_s = _elapsed_s(action, decoder.device)
            if number >= NUM_WARM_UPS:
                seconds.append(elapsed_s)
    return ExitCheck(check_s=common.median(times[check]), head_s=common.median(times[head]))


def _elapsed_s(action: Callable[[], None], device: torch.device) -> Seconds:
    """The time of an action, from an idle device until it is idle again."""
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronise()
    start_s = perf_counter()
    action()
    synchronise()
    return perf_counter() - start_s


def release_memory(device: torch.device) -> None:
    """Return unused memory to the device. Models that nearly fill it need the fragments."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
