"""The tables in the documentation are complete, and the megabytes are measured."""

import re
from pathlib import Path

import pytest

from pfedsam.core import rng
from pfedsam.federation.methods import METHODS
from pfedsam.federation.update import Update, encode
from pfedsam.model.backbones.compact import compact_config, new_network
from pfedsam.model.backbones.sam import SamBackbone
from pfedsam.model.build import build_personal
from pfedsam.model.options import ModelOptions
from pfedsam.model.partition import Partition
from pfedsam.model.segmenter import Segmenter
from pfedsam.model.unet import UNetSegmenter

PAGE = (Path(__file__).parents[3] / "docs" / "methods.md").read_text()
TABLE = {
    row[1].strip(" `"): row[-2].strip()
    for line in PAGE.split("MB is the measured")[0].splitlines()
    if len(row := line.split("|")) == 7
}


def test_every_method_has_a_row() -> None:
    lacking = [name for name in METHODS if name not in TABLE]
    assert not lacking, f"the first table of docs/methods.md lacks a row for {', '.join(lacking)}"
    rows = [name for name in TABLE if name in METHODS]
    assert rows == list(METHODS), "give the rows of the first table of docs/methods.md the order of _MODULES"


def test_every_method_has_a_row_in_the_table_of_papers() -> None:
    """A row may be for several methods."""
    section = PAGE.split("## Papers, and differences from them")[1].split("\n## ")[0]
    first = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    named = {name for cell in first for name in re.findall("`([^`]+)`", cell)}
    lacking = [name for name in METHODS if name not in named]
    assert not lacking, f"the table of papers in docs/methods.md lacks a row for {', '.join(lacking)}"


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, method in METHODS.items() if not method.roster.pool])
def test_its_megabytes_are_those_of_its_message(name: str) -> None:
    options = METHODS[name].adapt(ModelOptions())
    if options.unet:
        model: Segmenter = UNetSegmenter(options.unet, 1, rng.generator(1))
    else:
        network = new_network(compact_config("sam-tiny"), rng.generator(0))
        model = build_personal(SamBackbone(network), options, 1, rng.generator(1))
    partition = Partition.of(model, model.components(), METHODS[name].placement(options))
    shared = partition.select(model, "shared")
    size = len(encode(Update("site", 0, shared, 1))) / 1e6 if shared else 0.0
    assert float(TABLE[name]) == pytest.approx(size, abs=0.0006)
