"""What is to be told of a device: its bandwidth in plain decoding, its exit checks, and what its datasheet would predict."""

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
    """Bytes of weights and cache that plain decoding reads a second."""

    bytes_per_token: float
    bytes_per_s: BytesPerS
    datasheet_bytes_per_s: BytesPerS | None
    """None for a CPU, whose bandwidth no datasheet of ours tells, and for a device in no table."""

    @property
    def datasheet_frac(self) -> Frac | None:
        """Share of the datasheet's that is reached."""
        return None if self.datasheet_bytes_per_s is None else self.bytes_per_s / self.datasheet_bytes_per_s


def bandwidth_of(pair: ModelPair, rounds: Sequence[RoundStats], decode_s: Seconds) -> Bandwidth:
    """What plain rounds read, each all weights but the embedding and all that is cached, over the seconds they took."""
    key = pair.device_key
    setting = PassSetting(model=pair.target.geometry, weights=plain_format(key.dtype))
    work = setting.work("verify", 0, 1)
    passes = [one for prompt in rounds for one in prompt.passes if one.kind == "verify"]
    read = sum(one.num_passes * work.weight_bytes + one.cached_tokens_sum * work.kv_bytes_per_cached_token for one in passes)
    hardware = known_accelerator(key)
    return Bandwidth(
        bytes_per_token=read / sum(one.num_passes for one in passes),
        bytes_per_s=read / decode_s,
        datasheet_bytes_per_s=hardware.memory_bytes_per_s if hardware else None,
    )


def datasheet_models(pair: ModelPair) -> Models | None:
    """Seconds of draft and target by the device's datasheet, in eager execution; None where no row tells of it."""
    key = pair.device_key
    hardware = known_accelerator(key)
    if hardware is None:
        return None
    draft = pair.geometry
    weights = plain_format(hardware.compute_dtype(key.dtype))
    drafting = PassSetting(model=draft.model, exit_layers=draft.exit_layers, weights=weights)
    verifying = PassSetting(model=pair.target.geometry, exit_layers=target_exits(draft), weights=weights)
    return RooflineLatency(drafting, hardware, key.engine), RooflineLatency(verifying, hardware, key.engine)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitCheck:
    """One exit check on a device that is idle before it."""

    check_s: Seconds
    """Norm, head, softmax, and token and confidence read on the host."""
    head_s: Seconds
    """Norm and head alone, until the device is done."""

    @property
    def reading_s(self) -> Seconds:
        """What choosing, and reading on the host, add to the head."""
        return self.check_s - self.head_s


@torch.inference_mode()
def exit_check_of(pair: ModelPair) -> ExitCheck:
    """Medians of many checks of the draft's first exit, with and without the reading in turns."""
    decoder = pair.draft.decoder
    verifier, states = make_verifier(GREEDY, "max-prob", decoder.device), decoder.embed([1])
    verifier.start(1, 2)

    def check() -> None:
        verifier.check_exit(decoder, states, [1], 1, 0)()

    def head() -> None:
        decoder.exit_logits(states)

    found: dict[Callable[[], None], list[Seconds]] = {check: [], head: []}
    for number in range(NUM_WARM_UPS + NUM_CHECKS):
        for act, seconds in found.items():
            took_s = _seconds_of(act, decoder.device)
            if number >= NUM_WARM_UPS:
                seconds.append(took_s)
    return ExitCheck(check_s=common.median(found[check]), head_s=common.median(found[head]))


def _seconds_of(act: Callable[[], None], device: torch.device) -> Seconds:
    """From an idle device until it is idle again."""
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronise()
    start_s = perf_counter()
    act()
    synchronise()
    return perf_counter() - start_s


def release_memory(device: torch.device) -> None:
    """Give the device what nothing uses any more: at the edge, fragments are missed."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
