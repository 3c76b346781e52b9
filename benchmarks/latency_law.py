"""How well does the latency law price a model that nobody timed?

    gpu tables  kernel times of one Llama-2 layer on A100 and H100 (Vidur's public tables): each model and tensor-parallel
                degree is predicted by a law fitted to the others, for one row and for 1 to 16 rows
    published   tokens/s that others published, predicted by the roofline of the device's row alone; points from which a
                number of that row was taken are shown and not counted
    cpu         passes of small random models on this machine, timed now: each model is predicted by a law fitted to the
                others; the models take turns, so that each finds the caches as the others left them

Example: python benchmarks/latency_law.py --quick --data ../shared/data
"""

import csv
import math
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from common import SHARED_DATA, finish, make_parser, one_thread

from calibrate.fit_latency import Observation, fit_law, held_out_errors, observe
from calibrate.show_law import validation_text
from calibrate.validate import validate
from perfmodel.console import run_command, table
from perfmodel.errors import BadFile
from perfmodel.geometry import ModelGeometry, find_model
from perfmodel.hardware import find_hardware
from perfmodel.passes import PassKind, PassSamples
from perfmodel.profile import DeviceKey, Dtype, LatencyProfile
from perfmodel.units import Seconds, format_frac, format_seconds, format_signed_frac
from perfmodel.work import layers_work

NAME = "latency_law"
SEED = 20260701

GPU_MODELS = {"Llama-2-7b-hf": "llama-2-7b", "Llama-2-70b-hf": "llama-2-70b"}
LAYER_OPERATORS = (
    "input_layernorm", "attn_pre_proj", "attn_rope", "attn_post_proj", "add",
    "post_attention_layernorm", "mlp_up_proj", "mlp_act", "mlp_down_proj", "add",
)  # fmt: skip
MAX_TABLE_ROWS = 16

CPU_SHAPES = ((4, 128), (8, 128), (16, 128), (32, 128), (4, 256), (12, 256), (8, 192), (20, 192), (24, 64))
"""Layers and hidden size."""
CPU_ROWS = (1, 2, 3, 5, 8)
CPU_CONTEXTS = (50, 150, 300)
CPU_SECONDS, CPU_QUICK_SECONDS = 90.0, 25.0
CPU_TURNS_PER_VISIT = 3


def gpu_observations(path: Path, gpu: str, max_rows: int) -> list[Observation]:
    """Kernel seconds of one decoder layer, attention over the cache apart."""
    found = []
    for row in read_csv(path):
        rows, degree = int(row["rows"]), int(row["tensor_parallel"])
        if row["gpu"] != gpu or rows > max_rows:
            continue
        model = find_model(GPU_MODELS[row["model"]])
        work = layers_work(model, num_layers=1, head_rows=0, rows=rows, batch=1, num_devices=degree, dtype="fp16")
        found.append(
            Observation(
                group=f"{model.name} / {degree}",
                work=replace(work, num_passes=0, num_all_reduces=0, link_bytes=0.0),
                cached_tokens=0.0,
                max_cached_tokens=model.max_context_tokens,
                seconds=sum(float(row[f"{operator}_s"]) for operator in LAYER_OPERATORS),
            )
        )
    return found


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a table with a header."""
    if not path.is_file():
        raise BadFile(path, "there is no such table", "Give the folder of the public tables: --data DIR")
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def gpu_tables(path: Path) -> dict[str, float]:
    """Errors by GPU and range of rows, printed."""
    result: dict[str, float] = {}
    lines, every = [], []
    for gpu in ("a100", "h100"):
        for max_rows, label in ((1, "1 row"), (MAX_TABLE_ROWS, f"1 to {MAX_TABLE_ROWS} rows")):
            observations = gpu_observations(path, gpu, max_rows)
            errors = held_out_errors(observations, launch_bound=False)
            law = fit_law(observations, launch_bound=False).law
            sizes = [abs(error) for group in errors.values() for error in group]
            every.extend(sizes)
            bandwidth = f"{1 / law.weight_byte_s / 1e9:.0f} GB/s"
            mape = sum(sizes) / len(sizes)
            result[f"{gpu}_{'one_row' if max_rows == 1 else 'rows'}_mape_frac"] = mape
            lines.append([gpu, label, format_seconds(law.layer_s), bandwidth, format_frac(mape), format_frac(max(sizes))])
    print(table(lines, headers=["GPU", "rows", "floor", "bandwidth", "mean error", "worst"]))
    return {"gpu_tables_mape_frac": sum(every) / len(every)} | result


def published() -> dict[str, float]:
    """Errors on published speeds, printed as `s2d-plan validate` does."""
    validation = validate()
    print(validation_text(validation))
    errors = {one.device: one.mape_frac for one in validation.devices}
    return {
        "published_mape_frac": errors[find_hardware("a100").name],
        "published_4090_mape_frac": errors[find_hardware("rtx-4090").name],
    }


def small_geometry(num_layers: int, hidden_size: int) -> ModelGeometry:
    """A model of the reference family's kind, of another depth and width."""
    return ModelGeometry(
        name=f"{num_layers} layers of {hidden_size}",
        num_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=5 * hidden_size // 2,
        num_heads=hidden_size // 64,
        num_kv_heads=hidden_size // 64,
        head_dim=64,
        vocab_size=2048,
        tied_embeddings=True,
        max_context_tokens=512,
        source="made for this benchmark",
    )


Sample = tuple[PassKind, int, int, int, int, Seconds]


def cpu_profiles(dtype: Dtype, seconds: Seconds) -> list[LatencyProfile]:
    """Profiles of every small model, halved by one exit, the models taking turns for so many seconds."""
    from s2d.load import random_model

    models = [random_model(small_geometry(*shape), (shape[0] // 2, shape[0]), dtype, seed=SEED) for shape in CPU_SHAPES]
    samples: list[list[Sample]] = [[] for _ in models]
    rng = random.Random(SEED)
    turns = [timed_turns(model, rng) for model in models]
    for warm_up in turns:
        next(warm_up)
    end_s = perf_counter() + seconds
    while perf_counter() < end_s:
        for number in rng.sample(range(len(models)), len(models)):
            for _ in range(CPU_TURNS_PER_VISIT):
                samples[number].extend(next(turns[number]))
    device = DeviceKey(device="this CPU", num_devices=1, num_threads=1, dtype=dtype, engine="eager")
    return [
        LatencyProfile(
            model=model.geometry,
            model_sha256=model.sha256,
            exit_layers=(model.geometry.num_layers // 2,),
            beside=None,
            device=device,
            rule="greedy",
            samples=PassSamples(**dict(zip(SAMPLE_COLUMNS, map(tuple, zip(*found, strict=True)), strict=True))),
        )
        for model, found in zip(models, samples, strict=True)
    ]


SAMPLE_COLUMNS = ("kind", "stage", "rows", "cached_tokens", "place", "seconds")


def timed_turns(model, rng: random.Random) -> Iterator[list[Sample]]:
    """Forever: the first half over some rows, an exit check, the second half with its head; seconds of each."""
    import torch

    decoder = model.decoder
    cache = decoder.new_cache(model.exit_layers, model.geometry.max_context_tokens)
    first, second = cache.segments
    while True:
        rows, cached = rng.choice(CPU_ROWS), rng.choice(CPU_CONTEXTS)
        cache.lengths = [cached, cached]
        token_ids = [rng.randrange(model.geometry.vocab_size) for _ in range(rows)]
        with torch.inference_mode():
            start_s = perf_counter()
            states = decoder.forward_segment(decoder.embed(token_ids), first, cache)
            half_s = perf_counter()
            decoder.exit_logits(states[-1:]).argmax(-1).item()
            exit_s = perf_counter()
            decoder.exit_logits(decoder.forward_segment(states, second, cache)).argmax(-1).tolist()
            end_s = perf_counter()
        # One row's verify is the plain loop's, through all layers: see perfmodel.work.PassSetting.
        verify_s = end_s - exit_s + (half_s - start_s if rows == 1 else 0.0)
        yield [
            ("segment", 0, rows, cached, 1, half_s - start_s),
            ("exit", 0, 1, 0, 1, exit_s - half_s),
            ("verify", 0, rows, cached, 1, verify_s),
        ]


def noise_frac(profiles: Sequence[LatencyProfile]) -> float:
    """Mean difference between the first and the second half of the time, shape by shape, as the error of one of them."""
    differences = []
    for profile in profiles:
        middle = len(profile.samples) // 2
        halves = [replace(profile, samples=_part(profile.samples, part)) for part in (slice(middle), slice(middle, None))]
        early, late = ({(one.work, one.cached_tokens): one.seconds for one in observe(half)} for half in halves)
        differences.extend(abs(early[key] / late[key] - 1) for key in early.keys() & late.keys())
    return sum(differences) / len(differences) / math.sqrt(2)


def _part(samples: PassSamples, part: slice) -> PassSamples:
    return PassSamples(**{column: getattr(samples, column)[part] for column in SAMPLE_COLUMNS})


def cpu(dtypes: Sequence[Dtype], seconds: Seconds) -> dict[str, float]:
    """Errors on this machine, printed."""
    one_thread()
    result: dict[str, float] = {}
    lines = []
    for dtype in dtypes:
        profiles = cpu_profiles(dtype, seconds)
        observations = [one for profile in profiles for one in observe(profile)]
        errors = held_out_errors(observations, launch_bound=False)
        means = {group: sum(map(abs, error)) / len(error) for group, error in errors.items()}
        result[f"cpu_{dtype}_mape_frac"] = sum(abs(e) for error in errors.values() for e in error) / len(observations)
        result[f"cpu_{dtype}_noise_frac"] = noise_frac(profiles)
        lines.extend(
            [dtype, group, format_frac(mean), format_signed_frac(sum(errors[group]) / len(errors[group]))]
            for group, mean in means.items()
        )
    print(table(lines, headers=["dtype", "left out", "mean error", "bias"], align="llrr"))
    print(f"\nthis machine against itself: {format_frac(result[f'cpu_{dtypes[0]}_noise_frac'])}")
    return {"cpu_mape_frac": result[f"cpu_{dtypes[0]}_mape_frac"]} | result


def main() -> int:
    """Print three tables and the result."""
    parser = make_parser(__doc__)
    parser.add_argument("--data", type=Path, default=SHARED_DATA, metavar="DIR", help="holds gpu_layer_times.csv")

    def run(args) -> int:
        import torch

        from profiler.device import device_facts

        result = gpu_tables(args.data / "gpu_layer_times.csv")
        print()
        result |= published()
        print()
        dtypes: tuple[Dtype, ...] = ("fp32",) if args.quick else ("fp32", "bf16")
        result |= cpu(dtypes, CPU_QUICK_SECONDS if args.quick else CPU_SECONDS)
        device = device_facts(torch.device("cpu")).label
        finish(NAME, quick=args.quick, result=result, libraries=("numpy", "scipy", "torch"), device=device, seed=SEED)
        return 0

    return run_command(parser, None, run)


if __name__ == "__main__":
    sys.exit(main())
