"""Every row of the table of engines is complete, consistent with itself and sourced."""

from collections import Counter

import pytest

from perfmodel.core.codec import decode_record, encode_record
from perfmodel.engines.engine import Engine, Source
from perfmodel.engines.known_engines import ENGINES

NAMES = ("s2d", "vllm", "sglang", "tensorrt-llm", "llama.cpp", "openvino", "onnxruntime", "transformers", "mlx-lm")


def sources(engine: Engine) -> list[Source]:
    facts = (*engine.options, *engine.metrics, *engine.constraints, *engine.known_bad)
    return [fact.source for fact in facts]


def offenders(is_wrong: dict[str, bool]) -> list[str]:
    return [name for name, wrong in is_wrong.items() if wrong]


def test_the_table_has_nine_engines_under_their_own_names() -> None:
    assert tuple(ENGINES) == NAMES
    assert [engine.name for engine in ENGINES.values()] == list(NAMES)


def test_no_two_engines_share_a_name_or_an_alias() -> None:
    words = Counter(word.casefold() for engine in ENGINES.values() for word in (engine.name, *engine.aliases))
    assert [word for word, count in words.items() if count > 1] == []


def test_every_engine_but_ours_says_how_to_draft_what_it_checks_and_what_fails() -> None:
    others = {name: engine for name, engine in ENGINES.items() if not engine.runs_exits}
    assert not offenders({name: not engine.option("draft-model") for name, engine in others.items()})
    assert not offenders({name: not engine.option("draft-tokens") for name, engine in others.items()})
    assert not offenders({name: not engine.constraints for name, engine in others.items()})
    assert not offenders({name: not engine.known_bad for name, engine in others.items()})
    assert set(others) == set(NAMES) - {"s2d"}


def test_every_fact_names_a_document_and_a_version() -> None:
    texts = {
        name: [text for source in sources(engine) for text in (source.document, source.version)]
        for name, engine in ENGINES.items()
    }
    assert not offenders({name: not found or not all(text.strip() for text in found) for name, found in texts.items()})


def test_lengths_weights_and_floors_of_a_row_fit_each_other() -> None:
    wrong = {
        name: any(
            (
                engine.default_draft_tokens is not None and engine.default_draft_tokens < engine.min_draft_tokens,
                engine.max_draft_tokens is not None and (engine.default_draft_tokens or 1) > engine.max_draft_tokens,
                engine.default_floor is not None and engine.floor is None,
                (engine.floor is not None) != (engine.option("confidence-floor") is not None),
                engine.has_tokens_by_batch != (engine.option("tokens-by-batch") is not None),
                engine.has_trees != (engine.option("tree") is not None),
                len(set(engine.weights)) != len(engine.weights),
                not set(engine.weights) >= {word for bad in engine.known_bad for word in bad.weights},
            )
        )
        for name, engine in ENGINES.items()
    }
    assert not offenders(wrong)


def test_an_engine_without_batches_or_sound_sampling_has_the_constraint_that_checks_it() -> None:
    checks = {name: {constraint.check for constraint in engine.constraints} for name, engine in ENGINES.items()}
    assert not offenders({name: (e.max_batch == 1) != ("single-sequence" in checks[name]) for name, e in ENGINES.items()})
    unsound = {name: e.sampling_rule in ("unsound", "none") for name, e in ENGINES.items()}
    assert not offenders({name: wrong != ("greedy-only" in checks[name]) for name, wrong in unsound.items()})
    architectures = [c for e in ENGINES.values() for c in e.constraints if c.check == "architecture"]
    assert architectures
    assert all(constraint.allowed for constraint in architectures)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("llama.cpp", ("q8_0", "--draft-max", "--spec-type", "q4_0", "speculative.n_max")),
        ("openvino", ("assistant_confidence_threshold", "SDPA", "temperature above 0")),
        ("onnxruntime", ("absolute path", "threads", "min_adaptive_k")),
        ("vllm", ("draft_tensor_parallel_size", "Triton", "data parallelism")),
        ("sglang", ("quantised draft", "one or two of")),
        ("tensorrt-llm", ("overlap scheduler",)),
        ("transformers", ("target.generate()", "scikit-learn")),
        ("mlx-lm", ("trimmed",)),
    ],
)
def test_the_traps_that_were_met_are_in_the_table(name: str, words: tuple[str, ...]) -> None:
    conditions = [known.when for known in ENGINES[name].known_bad]
    assert [word for word in words if not any(word in condition for condition in conditions)] == []


def test_rounds_of_engines_that_differ_from_the_papers_are_marked() -> None:
    shapes = {name: engine.round_shape for name, engine in ENGINES.items()}
    assert [name for name, shape in shapes.items() if shape.rereads_block] == ["llama.cpp"]
    assert [name for name, shape in shapes.items() if shape.catches_up_apart] == ["onnxruntime"]
    assert [name for name, shape in shapes.items() if shape.starts_with_block] == ["vllm", "sglang"]


def test_a_row_survives_json() -> None:
    assert [decode_record(encode_record(engine), Engine) for engine in ENGINES.values()] == list(ENGINES.values())


def test_options_and_metrics_are_found_by_their_role() -> None:
    length = ENGINES["llama.cpp"].option("draft-tokens")
    assert length is not None
    assert (length.name, length.default) == ("--spec-draft-n-max", "3")
    estimate = ENGINES["onnxruntime"].metric("estimate")
    assert estimate is not None
    assert estimate.name == "estimated_speedup"
    assert ENGINES["vllm"].option("confidence-floor") is None
    assert ENGINES["mlx-lm"].metric("rounds") is None
