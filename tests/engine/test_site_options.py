"""`site.yaml`: the message about a mistake names the command that writes the file."""

from pathlib import Path

import pytest

from pfedsam.core.errors import DataError, OptionError, StoreError
from pfedsam.engine.site_options import CONFIG, SETTINGS, read_site_options, refuse_other_settings


def site(folder: Path, text: str) -> Path:
    (folder / CONFIG).write_text(text)
    return folder


def test_what_is_not_said_has_the_documented_default(tmp_path: Path) -> None:
    options = read_site_options(site(tmp_path, "name: north\ndata: /images\n"))
    assert (options.name, options.data, options.backbone) == ("north", Path("/images"), None)
    assert (options.threads, options.device, options.min_free_mb) == (1, "auto", 500)
    assert options.own_labels == {}


def test_labels_of_the_site_are_what_differs_from_the_study(tmp_path: Path) -> None:
    options = read_site_options(site(tmp_path, "name: north\ndata: d\nspacing: [0.5, 0.5]\nnot_annotated: [cup]\n"))
    assert set(options.own_labels) == {"spacing", "not_annotated"}
    assert list(options.own_labels["spacing"]) == [0.5, 0.5]


@pytest.mark.parametrize("backbone", ["../sam.pth", "facebook/sam-vit-base"])
def test_paths_are_relative_to_the_file_and_not_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: str
) -> None:
    """As in the configuration of a run: `site check` and the training process have other working directories."""
    folder = tmp_path / "north"
    folder.mkdir()
    (tmp_path / "sam.pth").touch()
    monkeypatch.chdir(tmp_path)
    options = read_site_options(site(Path("north"), f"name: north\ndata: ../data\nbackbone: {backbone}\n"))
    assert options.data.resolve() == tmp_path / "data"
    assert options.data.is_absolute()
    assert options.backbone == (str(folder / backbone) if backbone.endswith(".pth") else backbone)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="Make the site with `pfedsam site init`"):
        read_site_options(tmp_path)


@pytest.mark.parametrize(
    ("text", "named"),
    [("name: north\n", "data"), ("name: n\ndata: d\nthreads: 0\n", "threads"), ("name: n\ndata: d\nroom: 3\n", "room")],
)
def test_a_wrong_key_is_named(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(OptionError, match=f"(?s)site.yaml is wrong.*{named}"):
        read_site_options(site(tmp_path, text))


def test_a_study_of_an_earlier_version_gets_the_settings_of_now(tmp_path: Path) -> None:
    now = read_site_options(site(tmp_path, "name: north\ndata: d\nlabels: {disc: [1], cup: [2]}\n"))
    refuse_other_settings(tmp_path, now)
    refuse_other_settings(tmp_path, now)
    later = now.model_copy(update={"labels": {"disc": [2], "cup": [1]}, "patient_pattern": "^(.)", "threads": 3})
    with pytest.raises(
        DataError, match=r"^site 'north': labels, patient_pattern in site\.yaml changed .*leave the study"
    ):
        refuse_other_settings(tmp_path, later)
    (tmp_path / SETTINGS).write_bytes((tmp_path / SETTINGS).read_bytes().replace(b"cup", b"cap"))
    with pytest.raises(StoreError, match=r"settings\.json is damaged"):
        refuse_other_settings(tmp_path, now)
