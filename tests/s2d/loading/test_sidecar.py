"""The page that documents `s2d.json` agrees with the code."""

import re
from dataclasses import fields
from pathlib import Path

from s2d.loading.sidecar import Calibration, Sidecar, read_sidecar

PAGE = (Path(__file__).parents[3] / "docs" / "sidecar.md").read_text(encoding="utf-8")


def test_the_example_in_the_docs_is_read(tmp_path: Path) -> None:
    example = re.search(r"<!-- sidecar-example -->\n```json\n(.*?)```", PAGE, re.DOTALL)
    assert example is not None
    (tmp_path / "s2d.json").write_text(example[1])
    sidecar = read_sidecar(tmp_path)
    assert sidecar is not None
    assert (sidecar.exit_layers, sidecar.head_token_ids) == ((2, 4, 6), None)
    assert sidecar.calibration is not None
    assert [curve is None for curve in sidecar.calibration.curves] == [True, False, False]


def test_every_key_of_the_file_is_documented() -> None:
    keys = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    assert keys == {field.name for record in (Sidecar, Calibration) for field in fields(record)}
