"""Blocks of text, folded at the width of a page."""

import shlex

import pytest

from perfmodel.core.blocks import (
    PAGE_CHARS,
    Command,
    Facts,
    Paragraph,
    Table,
    as_html,
    as_text,
    leading_clauses,
    sentence_blocks,
    short_note,
)

LONG = "word " * 60


def test_labels_are_padded_and_values_folded_under_one_another() -> None:
    text = as_text([Facts([("a", "first"), ("label", LONG)])])
    lines = text.splitlines()
    assert lines[0] == "a      first"
    assert lines[1].startswith("label  word word")
    assert lines[2].startswith("       word word")
    assert max(map(len, lines)) <= PAGE_CHARS
    assert as_text([Facts([("a", "first")], label_chars=5)]) == "a      first"


def test_a_table_wider_than_a_page_folds_its_widest_cells_and_keeps_every_word() -> None:
    text = as_text(
        [Table([["name", LONG, "1.00x"], ["other", "short", "2.00x"]], ["what", "text", "speedup"], "llr", "A title.")]
    )
    lines = text.splitlines()
    assert lines[0] == "A title."
    assert max(map(len, lines)) <= PAGE_CHARS
    assert text.split().count("word") == 60
    assert next(line for line in lines if line.startswith("other")).split() == ["other", "short", "2.00x"]


def test_a_table_of_long_words_is_left_as_wide_as_they_are() -> None:
    assert "x" * 120 in as_text([Table([["x" * 120, "1"]], ["word", "number"])])


@pytest.mark.parametrize(
    "command",
    [
        "s2d-plan --target llama-70b",
        f"s2d-plan --trace '/a folder/{'t' * 60}.npz' --profile {'p' * 50}.json -o plan.json && s2d-run --plan plan.json",
        f"s2d-plan fit '{'a' * 90}'/*.latency.json -o '{'a' * 90}'/law.fit.json",
    ],
)
def test_a_long_command_continues_as_a_shell_reads_it(command: str) -> None:
    text = as_text([Command(command)])
    assert text.startswith("next: s2d-plan ")
    assert shlex.split(text.removeprefix("next: ").replace("\\\n", "")) == shlex.split(command)
    assert all(len(line) <= PAGE_CHARS or len(line.split()) <= 4 for line in text.splitlines())
    assert all(line.endswith(" \\") for line in text.splitlines()[:-1])


def test_a_flag_stays_on_the_line_of_its_value() -> None:
    flags = [f"--flag-{number} value-{number}" for number in range(12)]
    lines = as_text([Command(" ".join(["s2d-plan", *flags]))]).splitlines()
    assert len(lines) > 2
    assert all(any(flag in line for line in lines) for flag in flags)


def test_prose_that_ends_with_a_command_keeps_the_command_whole() -> None:
    note = f"{LONG}to make one: s2d-train draft --target t"
    prose, command = sentence_blocks(note, label="next: ")
    assert isinstance(prose, Paragraph)
    assert prose.text.startswith("next: word")
    assert command == Command("s2d-train draft --target t", label="  ")
    assert sentence_blocks("nothing to do") == [Paragraph("nothing to do")]
    assert sentence_blocks("run it: torchrun --nproc-per-node 2 x")[1] == Command("torchrun --nproc-per-node 2 x", label="  ")
    assert short_note("make one: s2d-train draft") == "make one (--explain shows the command)"
    assert short_note("nothing to do") == "nothing to do"


def test_html_shows_every_block_and_escapes_it() -> None:
    shown = as_html([Facts([("a", "<b>")]), Table([["x", "&"]], ["h", "i"], title="t"), Paragraph("p"), Command("c > d")])
    left, right = 'style="text-align: left"', 'style="text-align: right"'
    assert f"<tr><th {left}>a</th><td {left}>&lt;b&gt;</td></tr>" in shown
    head, row = f"<tr><th {left}>h</th><th {right}>i</th></tr>", f"<tr><td {left}>x</td><td {right}>&amp;</td></tr>"
    assert f"<p>t</p><table>{head}{row}</table>" in shown
    assert "<p>p</p>" in shown
    assert "<pre>c &gt; d</pre>" in shown


def test_a_long_fact_is_cut_between_clauses_and_outside_brackets() -> None:
    for text, cut in {
        "short, all of it": "short, all of it",
        "first clause, second; third clause": "first clause, second",
        "first (one, two, three) clause; second": "first (one, two, three) …",
        "only one clause that is too long": "only one clause that is …",
    }.items():
        assert leading_clauses(text, 25) == cut
