"""Read what engines and their benchmark tools report, whatever its format, into one report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from calibrate.engine_metrics.fields import FIX
from calibrate.engine_metrics.formats import FORMATS, MetricsFormat
from calibrate.engine_metrics.metrics import Metrics, merged
from calibrate.engine_metrics.metrics_file import MetricsFile, read_metrics_file
from calibrate.engine_metrics.prometheus import Growth
from perfmodel.core.disk import PathLike, as_paths
from perfmodel.core.errors import BadFile, Mismatch, UnknownName, UserInputError, truncated
from perfmodel.engines.find_engine import find_engine
from perfmodel.policies.policy import Policy
from perfmodel.results.engine_report import EngineReport, MetricsSource

LISTED_IN = "docs/guide/compare-with-your-engine.md"
_MAX_KEYS_CHARS = 80


def read_engine_metrics(
    files: PathLike | Sequence[PathLike],
    plain: PathLike | Sequence[PathLike] = (),
    *,
    engine: str | None = None,
    file_format: str | None = None,
    policy: Policy | None = None,
) -> EngineReport:
    """Read what an engine reports about a run with a draft: rounds, accepted tokens and seconds, as far as it reports them.

    Args:
        files: files of one format, whose requests are taken together; or one or two snapshots of `/metrics`, the earlier first.
        plain: the same for plain decoding of the same prompts, which a speedup needs.
        engine: its name, where the files do not say it.
        file_format: name of the format of `files`; None recognises it by its content.
        policy: which run of an engine profile to take. Other files hold one.

    Returns:
        The counters with the engine's way of counting taken out. What the files do not contain is None, and `notes` says so.

    Raises:
        UnknownName: no such engine or format.
        BadFile: a file is truncated, of no known format, or holds impossible counts.
        Mismatch: files of two formats, or of another engine.
        UserInputError: no file, or a counter fell between two snapshots.

    Example:
        >>> from pathlib import Path
        >>> timings = '{"predicted_n": 64, "predicted_ms": 154.4, "draft_n": 91, "draft_n_accepted": 44}'
        >>> _ = Path("answer.json").write_text('{"timings": ' + timings + "}")
        >>> report = s2d.read_engine_metrics("answer.json")
        >>> report.engine, report.total.num_rounds
        ('llama.cpp', 19)
    """
    measured = [read_metrics_file(path) for path in as_paths(files)]
    beside = [read_metrics_file(path) for path in as_paths(plain)]
    if not measured:
        raise UserInputError("no file of engine metrics, expected at least one. Give --engine-metrics FILE.")
    run_format = _format_of(measured, file_format)
    metrics = _read(measured, run_format, policy)
    _check_speculated(measured, metrics)
    plain_metrics = _read(beside, plain_format := _format_of(beside, None), policy) if beside else None
    sources = [*_sources(measured, run_format), *(_sources(beside, plain_format) if beside else ())]
    return _report(metrics, plain_metrics, tuple(sources), None if engine is None else find_engine(engine).name)


def _format_of(files: Sequence[MetricsFile], name: str | None) -> MetricsFormat:
    """The format that all files have.

    Raises:
        UnknownName: no format has this name.
        BadFile: a file has no known format, or not the named one.
        Mismatch: the files have two formats.
    """
    if name is not None and name not in FORMATS:
        raise UnknownName("metrics format", name, FORMATS, listed_in=LISTED_IN)
    found = [_recognised(file, name) for file in files]
    for file, metrics_format in zip(files, found, strict=True):
        if metrics_format != found[0]:
            what, fix = f"{str(file.path)!r}", "Give files of one format, or compare them one by one"
            raise Mismatch(what, made_for=metrics_format.name, given=found[0].name, fix=fix)
    return found[0]


def _recognised(file: MetricsFile, name: str | None) -> MetricsFormat:
    candidates = list(FORMATS.values()) if name is None else [FORMATS[name]]
    matches = [candidate for candidate in candidates if candidate.matches(file)]
    if len(matches) > 1 and file.snapshot is not None:
        names = " and ".join(candidate.name for candidate in matches)
        raise BadFile(file.path, f"it has counters of several engines ({names})", "Name one of these with --format")
    if matches:
        return matches[0]
    keys = truncated(", ".join(file.keys) or "nothing", _MAX_KEYS_CHARS)
    if name is not None:
        problem = f"it has no {FORMATS[name].recognised_by}, expected {name}: {FORMATS[name].written_by}"
        raise BadFile(file.path, f"{problem} (it has {keys})", "Leave out --format to recognise the format by its content")
    if "error" in file.keys:
        raise BadFile(
            file.path, "it is an error that a server answered, expected metrics", "Ask again once its models are loaded"
        )
    looked_for = "; ".join(f"{candidate.name} ({candidate.recognised_by})" for candidate in candidates)
    fix = f"{FIX}, or give its format with --format; {LISTED_IN} says how to write each"
    raise BadFile(file.path, f"its format is not known: it has {keys}. Looked for {looked_for}", fix)


def _read(files: Sequence[MetricsFile], metrics_format: MetricsFormat, policy: Policy | None) -> Metrics:
    if metrics_format.read is not None:
        parts = [metrics_format.read(file, policy) for file in files]
        _check_one_run(files, parts)
        return merged(parts)
    assert metrics_format.read_growth is not None
    snapshots = [file.snapshot for file in files]
    if len(snapshots) > 2:
        problem = f"{len(snapshots)} snapshots of /metrics, expected one, or one before and one after the run"
        raise UserInputError(f"{problem}. Give the first and the last.")
    after = snapshots[-1]
    assert after is not None
    growth = Growth(before=snapshots[0] if len(snapshots) == 2 else None, after=after)
    metrics = metrics_format.read_growth(growth)
    if growth.before is not None:
        return metrics
    note = f"{files[0].path.name} counts since the server's start: give a snapshot from before the run, too"
    return replace(metrics, notes=(*metrics.notes, note))


def _check_one_run(files: Sequence[MetricsFile], parts: Sequence[Metrics]) -> None:
    """Refuse files of runs that differ in what they served: their counters cannot be added.

    Raises:
        Mismatch: two engines, models or draft lengths.
    """
    first = _served(parts[0])
    for file, part in zip(files, parts, strict=True):
        if _served(part) != first:
            fix = "Give the files of one run, or compare them one by one"
            raise Mismatch(f"{str(file.path)!r}", made_for=_served(part), given=first, fix=fix)


def _served(part: Metrics) -> str:
    length = "" if part.draft_tokens is None else f" with {part.draft_tokens} drafted tokens"
    return f"{part.engine or 'an engine'} {part.version or ''} serving {part.model or 'a model'}".replace("  ", " ") + length


def _check_speculated(files: Sequence[MetricsFile], metrics: Metrics) -> None:
    """Refuse a file of plain decoding where one with a draft is expected."""
    has_length = any(run.acceptance_length is not None for run in metrics.runs)
    has_rounds = any(run.num_rounds for run in metrics.runs)
    has_drafts = any(run.num_drafted for run in metrics.runs) or all(run.num_drafted is None for run in metrics.runs)
    is_plain = all(run.num_rounds is None or run.num_rounds == run.num_tokens for run in metrics.runs)
    if has_length or (has_rounds and has_drafts and not is_plain):
        return
    problem = "no rounds with a draft, expected counters of speculative decoding"
    fix = "Give a run with a draft here, and plain decoding with --plain-metrics"
    raise BadFile(files[0].path, problem, fix)


def _sources(files: Sequence[MetricsFile], metrics_format: MetricsFormat) -> list[MetricsSource]:
    return [MetricsSource(name=file.path.name, file_format=metrics_format.name, sha256=file.sha256) for file in files]


def _report(metrics: Metrics, plain: Metrics | None, sources: tuple[MetricsSource, ...], engine: str | None) -> EngineReport:
    """The two arms as one report.

    Raises:
        Mismatch: the files are of two engines, or not of the named one.
    """
    fix = "Give files of one engine, or name the right one with --engine"
    if engine is not None and metrics.engine not in (None, engine):
        raise Mismatch(f"{sources[0].name!r}", made_for=f"engine {metrics.engine}", given=f"engine {engine}", fix=fix)
    known = engine or metrics.engine
    if plain is not None and plain.engine is not None and known not in (None, plain.engine):
        raise Mismatch("plain decoding", made_for=f"engine {plain.engine}", given=f"engine {known}", fix=fix)
    return EngineReport(
        files=sources,
        engine=known,
        version=metrics.version,
        model=metrics.model,
        weights=metrics.weights,
        target_sha256=metrics.target_sha256,
        draft_sha256=metrics.draft_sha256,
        exit_layer=metrics.exit_layer,
        draft_tokens=metrics.draft_tokens,
        concurrency=metrics.concurrency,
        runs=metrics.runs,
        plain_runs=metrics.plain_runs if plain is None else plain.runs,
        plain_token_s=metrics.plain_token_s,
        notes=(*metrics.notes, *_plain_notes(metrics, plain)),
    )


def _plain_notes(metrics: Metrics, plain: Metrics | None) -> tuple[str, ...]:
    """What the two arms do not have in common."""
    if plain is None:
        return ()
    notes = [f"plain decoding: {note}" for note in plain.notes if note not in metrics.notes]
    requests, plain_requests = (_num_requests(part) for part in (metrics, plain))
    if requests is not None and plain_requests is not None and requests != plain_requests:
        notes.append(f"{requests} requests with a draft, {plain_requests} in plain decoding: the prompts may differ")
    if plain.model is not None and metrics.model is not None and plain.model != metrics.model:
        notes.append(f"plain decoding is of model {plain.model!r}, the run of {metrics.model!r}")
    return tuple(notes)


def _num_requests(metrics: Metrics) -> int | None:
    numbers = [run.num_requests for run in metrics.runs]
    return None if None in numbers else sum(number for number in numbers if number is not None)
