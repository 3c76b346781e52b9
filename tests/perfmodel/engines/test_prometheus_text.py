"""Prometheus text: every sample with its labels, and nothing else."""

import pytest

from perfmodel.engines.prometheus_text import BadSample, Sample, read_samples


def test_samples_have_labels_and_values() -> None:
    text = (
        "# HELP rounds Rounds so far.\n# TYPE rounds counter\n\n"
        'rounds{model="a} b",place="\\"c\\\\d\\""} 12 1700000000\n'
        "rounds 3.5\n"
        'latency_bucket{le="+Inf"} 7 # {trace="x"} 0.5\n'
    )
    assert list(read_samples(text)) == [
        Sample("rounds", (("model", "a} b"), ("place", '"c\\d"')), 12.0),
        Sample("rounds", (), 3.5),
        Sample("latency_bucket", (("le", "+Inf"),), 7.0),
    ]


@pytest.mark.parametrize("line", ["<html>", "rounds", "rounds{model=a} 1", "rounds one", 'rounds{model="a" 1'])
def test_another_line_is_named_with_its_number(line: str) -> None:
    with pytest.raises(BadSample) as caught:
        list(read_samples(f"rounds 1\n{line}\n"))
    assert (caught.value.number, caught.value.line) == (2, line)
