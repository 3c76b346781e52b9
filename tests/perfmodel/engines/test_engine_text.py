"""An engine prints what it executes, and with explain every fact with the source that it names."""

from perfmodel.core.blocks import as_text
from perfmodel.engines.engine_text import list_blocks
from perfmodel.engines.find_engine import find_engine
from perfmodel.engines.known_engines import ENGINES

SCREEN_LINES = 20


def test_the_list_has_every_engine_and_fits_a_screen() -> None:
    text = as_text(list_blocks(ENGINES.values()))
    lines = text.splitlines()
    table = text.partition("\n\n")[0].splitlines()[2:]
    assert [line.split()[0] for line in table if not line.startswith(" ")] == list(ENGINES)
    assert len(lines) <= SCREEN_LINES
    [openvino] = [line for line in lines if line.startswith("openvino ")]
    assert openvino.split() == ["openvino", "2026.4", "K", "5", "cpu", "yes"]
    assert "20, floor 0.4" in text


def test_the_short_text_of_an_engine_fits_a_screen_and_says_how_a_round_differs() -> None:
    texts = {name: str(engine) for name, engine in ENGINES.items()}
    assert not [name for name, text in texts.items() if len(text.splitlines()) > SCREEN_LINES]
    assert "the draft reads the block again, K + 1 rows" in " ".join(texts["llama.cpp"].split())
    assert "compares top10-prob, drops the token below it" in texts["llama.cpp"]
    assert "no: commands are generated from documentation" in texts["sglang"]


def test_every_number_of_a_source_is_listed_with_its_document() -> None:
    engine = find_engine("llama.cpp")
    text = " ".join(engine.explain().split())
    documents = {fact.source.document for fact in (*engine.options, *engine.metrics, *engine.constraints, *engine.known_bad)}
    assert [document for document in documents if document not in text] == []
    assert all(f"[{number}]" in text for number in range(1, len(documents) + 1))
