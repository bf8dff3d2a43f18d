"""A run is continued only from states of one moment, and a change of the version of pFedSAM is named."""

from pathlib import Path

import pytest
import torch

from pfedsam.core.errors import RunError, StoreError
from pfedsam.engine.resuming import refuse_earlier_sites, refuse_other_configuration
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.site_store import SiteState, SiteStore


def _commit(folder: Path, site: str, round_: int) -> None:
    state = SiteState("study", site, round_, "round", {"w": torch.ones(1)}, {})
    SiteStore(folder / "sites" / site / "state").commit(state)


def test_a_site_of_an_earlier_round_than_the_servers_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for site, round_ in {"north": 2, "south": 3, "west": 1}.items():
        _commit(tmp_path, site, round_)
    refuse_earlier_sites(tmp_path, ["north", "south"], 2)  # the south has trained the round that was interrupted
    refuse_earlier_sites(tmp_path, ["west", "new"], 0)
    assert caplog.text == ""
    with pytest.raises(
        StoreError, match=r"The state of site 'west' is that after round 1, .* has done 2 rounds.*whole folder"
    ):
        refuse_earlier_sites(tmp_path, ["north", "south", "west"], 2)
    refuse_earlier_sites(tmp_path, ["new"], 2)
    assert "The folder of site 'new' has no state of the 2 round(s)" in caplog.text


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (["seed"], None),  # set now, and stored
        (["seed", "model.lora.rank"], "model.lora.rank"),  # an option that was not stored
        (["seed", "training.rounds"], "training.rounds"),  # a default that was another one
    ],
)
def test_other_options_or_defaults_of_another_version_are_named(
    tmp_path: Path, changed: list[str], named: str | None
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("seed: 1\ntraining: {rounds: 7}\n")
    data = {"sites": {"a": "a", "b": "b"}, "classes": {"organ": [1]}}
    options = RunOptions.model_validate({"seed": 2, "data": data, "model": {"lora": {"rank": 3}}})
    with pytest.raises(RunError) as refused:
        refuse_other_configuration(config, changed, options)
    assert f"different: {', '.join(changed)}. Resume with the configuration" in str(refused.value)
    hint = f"If you did not change {named}, the run was begun by another version of pFedSAM"
    assert (hint in str(refused.value)) == (named is not None)
    assert ("another version" in str(refused.value)) == (named is not None)
