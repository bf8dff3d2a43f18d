"""Configuration files: all mistakes are reported at once, and a written configuration is read back."""

import re
from operator import attrgetter
from pathlib import Path

import pytest
import yaml

from pfedsam.core.errors import OptionError
from pfedsam.experiment.load import all_keys, dump_options, load_options
from pfedsam.experiment.options import RunOptions

GOOD = "data:\n  sites: {a: here}\n  classes: {n: [1]}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text)
    return path


def test_folders_are_relative_to_the_file_and_overrides_win(tmp_path: Path) -> None:
    options = load_options(write(tmp_path, GOOD), ["training.rounds=7", "model.experts=null"])
    assert options.data.sites["a"] == tmp_path / "here"
    assert options.training.rounds == 7
    assert options.model.experts is None


def test_every_key_is_listed_with_a_description_and_its_default_in_yaml() -> None:
    keys = {key.path: key for key in all_keys()}
    assert all(key.description for key in keys.values())
    assert keys["data.sites"].default == ""
    assert keys["data.sites.<name>.not_annotated"].default == "[]"
    assert keys["data.tiling"].default == "null"
    assert keys["model.experts"].default == "as below"
    assert keys["model.experts.top_k"].default == "2"
    assert keys["data.augment.flips"].default == "null"
    assert keys["model.precision"].description.endswith("One of float32, bfloat16, auto.")
    for path in ("method", "training.optimizer.learning_rate", "communication.codec"):
        assert yaml.safe_load(keys[path].default) == attrgetter(path)(RunOptions.model_validate(yaml.safe_load(GOOD)))


def test_a_mistake_beside_set_is_not_said_to_be_the_files_alone(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    with pytest.raises(OptionError, match=rf"^{path.name} with --set has 1 mistake"):
        load_options(path, ["training.roundz=7"])
    with pytest.raises(OptionError, match=rf"^{path.name} has 1 mistake"):
        load_options(write(tmp_path, GOOD + "trainng: {}\n"))


@pytest.mark.parametrize(("values", "bound"), [("[4]", "at least 2"), ("[4, 4, 4, 4, 4, 4]", "at most 5")])
def test_of_a_list_of_a_wrong_length_the_bound_and_the_list_are_told(tmp_path: Path, values: str, bound: str) -> None:
    with pytest.raises(OptionError) as caught:
        load_options(write(tmp_path, GOOD), [f"model.image_skip.channels={values}"])
    assert f"model.image_skip.channels: give {bound} value(s) (got {values})" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.image_skip.channels=16", "model.image_skip.channels: give a list in square brackets (got 16)"),
        ("evaluation.lesions=lesion", "evaluation.lesions: give a list in square brackets (got 'lesion')"),
        ("model.image_skip=often", "model.image_skip: give keys with values (got 'often')"),
    ],
)
def test_of_a_value_of_a_wrong_form_the_form_is_told(tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(OptionError) as caught:
        load_options(write(tmp_path, GOOD), [override])
    assert said in str(caught.value)


def test_a_backbone_with_a_name_that_is_too_long_for_a_file_is_none_beside_the_configuration(tmp_path: Path) -> None:
    assert load_options(write(tmp_path, GOOD), [f"model.backbone={'x' * 5000}"]).model.backbone == "x" * 5000


def test_a_split_folder_and_a_cache_are_relative_to_the_file(tmp_path: Path) -> None:
    options = load_options(write(tmp_path, GOOD + "  split_folder: splits\nruntime: {cache_folder: ../cache}\n"))
    assert options.data.split_folder == tmp_path / "splits"
    assert options.runtime.cache_folder == tmp_path / "../cache"


def test_a_backbone_beside_the_file_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, run = tmp_path / "study", tmp_path / "run"
    (study / "weights" / "mine").mkdir(parents=True)
    (study / "sam_vit_b.pth").touch()
    run.mkdir()
    monkeypatch.chdir(study)
    for name in ("sam_vit_b.pth", "weights/mine", str(study / "sam_vit_b.pth")):
        options = load_options(write(Path(), GOOD + f"model: {{backbone: {name}}}\n"))
        assert options.model.backbone == str(study / name)
        # As a run keeps it, in its own folder, and is opened from elsewhere.
        with monkeypatch.context() as elsewhere:
            elsewhere.chdir(tmp_path)
            assert load_options(write(run, dump_options(options))) == options


@pytest.mark.parametrize("name", ["facebook/sam-vit-base", "sam-tiny", "elsewhere/sam_vit_b.pth"])
def test_a_backbone_that_does_not_lie_beside_the_file_stays_a_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "sam-tiny").mkdir()  # as in `load_backbone`, the shipped one goes before
    assert load_options(write(tmp_path, GOOD), [f"model.backbone={name}"]).model.backbone == name


def test_a_value_in_the_place_of_keys_is_told(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"2 mistake\(s\)(.|\n)*model: (.|\n)*runtime: "):
        load_options(write(tmp_path, GOOD + "model: big\nruntime: [fast]\n"))


def test_what_is_dumped_loads_to_the_same_options(tmp_path: Path) -> None:
    options = load_options(write(tmp_path, GOOD), ["method=fedavg"])
    assert load_options(write(tmp_path, dump_options(options))) == options


def test_words_that_old_yaml_takes_for_truth_values_are_words(tmp_path: Path) -> None:
    text = "data:\n  sites: {no: here}\n  classes: {n: [1]}\ntraining: {phases: decoupled, distillation: {direction: off}}\n"
    options = load_options(write(tmp_path, text), ["training.frozen_local=true"])
    assert list(options.data.sites) == ["no"]
    assert options.training.distillation.direction == "off"
    assert options.training.frozen_local is True
    assert load_options(tmp_path / "study.yaml", ["training.distillation.direction=off"]).training.frozen_local is False
    assert load_options(write(tmp_path, dump_options(options))).data == options.data


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    text = GOOD + "metod: x\ntraining: {rounds: many, distillation: {direction: sideways}}\nmodel: {lora: {rnk: 2}}\n"
    with pytest.raises(OptionError) as error:
        load_options(write(tmp_path, text))
    message = str(error.value)
    assert "4 mistake(s)" in message
    for words in ("did you mean 'method'", "training.rounds", "training.distillation.direction", "did you mean 'rank'"):
        assert words in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data:\n  sites:\n    a: x\n    a: y\n", "occurs twice"),
        ("- 1\n", "keys and values"),
        ("data: [\n", "not YAML"),
        ("x: !!python/object/apply:os.system [touch /tmp/owned]\n", "not YAML"),
    ],
)
def test_unsound_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        load_options(write(tmp_path, text))


def test_an_override_through_a_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="'rounds' has a value"):
        load_options(write(tmp_path, GOOD + "training: {rounds: 3}\n"), ["training.rounds.x=1"])


def test_a_malformed_override_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"key\.path=value"):
        load_options(write(tmp_path, GOOD), ["training.rounds"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "data:\n  classes: {x: [1]}\n  sites:\n    a: a\n    b: b\n    a: c\n",
            "study.yaml, line 6: the key 'a' occurs twice (first in line 4). Names",
        ),
        (
            "data:\n  sites: {1: a, b: b}\n  classes: {x: [1]}\n",
            "data.sites: the name 1 is read as a number or a date; put the name in quotes, as in '1'",
        ),
        (
            "data:\n  sites: {a: a}\n  classes: {x: 1}\n",
            "data.classes.x: the ids must be a list, even if there is only one: write [1]",
        ),
    ],
    ids=["twice", "numeric name", "scalar id"],
)
def test_mistakes_that_yaml_invites_are_told_with_what_to_write(tmp_path, text, said):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(OptionError) as caught:
        load_options(path)
    assert said in str(caught.value)


def partial(sites: str, more: str = "") -> str:
    return f"data:\n  classes: {{disc: [1], cup: [2]}}\n{more}  sites:\n{sites}"


def test_a_site_may_be_a_folder_or_a_folder_with_what_is_different_there(tmp_path: Path) -> None:
    text = partial(
        "    a: here\n    b: {folder: there, labels: {cup: [5]}, not_annotated: [disc], patient_pattern: '(.)'}\n"
    )
    data = load_options(write(tmp_path, text)).data
    assert (data.folder("a"), data.folder("b")) == (tmp_path / "here", tmp_path / "there")
    assert data.sites["a"] == tmp_path / "here"
    assert dict(data.label_map("a").ids) == {"disc": (1,), "cup": (2,), "background": (0,)}
    assert dict(data.label_map("b").ids) == {"disc": (), "cup": (5,), "background": (0,)}
    assert (data.pattern("a"), data.pattern("b")) == (None, "(.)")


def test_what_is_dumped_of_sites_is_read_back(tmp_path: Path) -> None:
    text = partial("    a: here\n    b: {folder: there, not_annotated: [disc]}\n", "  ignore: [255]\n")
    options = load_options(write(tmp_path, text))
    again = tmp_path / "again.yaml"
    again.write_text(dump_options(options))
    assert load_options(again).data == options.data


@pytest.mark.parametrize(
    ("sites", "said"),
    [
        ("    a: {folder: here, label: {cup: [5]}}\n", "data.sites.a.label: unknown key; did you mean 'labels'?"),
        ("    a: {labels: {cup: [5]}}\n", "data.sites.a.folder: is required"),
        (
            "    a: {folder: here, labels: {cup: 5}}\n",
            "data.sites.a.labels.cup: the ids must be a list, even if there is only one: write [5]",
        ),
        ("    a: 7\n", "data.sites.a: "),
        (
            "    a: {folder: here, labels: {cup: [5]}, not_annotated: [cup]}\n",
            "study.yaml: data.sites.a: class 'cup' has the ids [5] under labels and is listed under not_annotated",
        ),
        (
            "    a: {folder: here, not_annotated: [cup]}\n    b: {folder: there, not_annotated: [cup]}\n",
            "class 'cup' is annotated at no site",
        ),
        (
            "    a: here\n    b: {folder: there, not_annotated: [cup, disc]}\n",
            "study.yaml: data.sites.b: not_annotated names every class of the study (disc, cup)",
        ),
    ],
)
def test_mistakes_about_the_labels_of_a_site_are_one_message_each(tmp_path: Path, sites: str, said: str) -> None:
    with pytest.raises(OptionError) as caught:
        load_options(write(tmp_path, partial(sites)))
    assert said in str(caught.value)
    assert "[site]" not in str(caught.value)
    assert "[folder]" not in str(caught.value)


def test_a_site_without_spacing_that_is_no_site_is_refused(tmp_path: Path) -> None:
    path = write(
        tmp_path, partial("    north: here\n    south: there\n", "  volume: {spacing_unknown: [south, soth]}\n")
    )
    with pytest.raises(OptionError, match=r"data\.volume\.spacing_unknown names soth; the sites are north, south"):
        load_options(path)


@pytest.mark.parametrize(
    ("evaluation", "said"),
    [
        ("{lesions: [nodule]}", "evaluation.lesions names nodule; the classes are liver, tumour"),
        ("{single_region: [nodule]}", "evaluation.single_region names nodule; the classes are liver, tumour"),
        ("{lesions: [background]}", "evaluation.lesions names background; the classes are liver, tumour"),
        ("{single_region: [background]}", "evaluation.single_region names background; the classes are liver, tumour"),
        ("{single_region: liver}", "evaluation.single_region: give a list of classes, such as [liver], or all"),
    ],
)
def test_lesions_and_organs_that_are_no_classes_are_refused(tmp_path: Path, evaluation: str, said: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(
        f"data: {{sites: {{a: a}}, classes: {{background: [0], liver: [1], tumour: [2]}}}}\nevaluation: {evaluation}\n"
    )
    with pytest.raises(OptionError, match=re.escape(said)):
        load_options(path)


def _said(tmp_path: Path, text: str, *overrides: str) -> str:
    """The message about a configuration that is refused."""
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(OptionError) as caught:
        load_options(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("{sites: {a: a}, classes: {'../../x': [1]}, overlap: true}", "its name may hold none of /"),
        ("{sites: {a: a}, classes: {'': [1]}}", "empty name"),
        ("{sites: {a: a}, classes: {x: [99999999999999999999999, 1]}}", "an id is 0 or more and at most"),
        ("{sites: {a: a}, classes: {x: [65536, 1]}}", "put a lower id of the same class first"),
        ("{sites: {a: {folder: a, labels: {x: [70000]}}}, classes: {x: [1]}}", "data.sites.a"),
        (f"{{sites: {{{'s' * 65}: a}}, classes: {{x: [1]}}}}", "at most 64 characters"),
        ("{sites: {'a/b': a}, classes: {x: [1]}}", "cannot name a folder"),
        ("{sites: {a: 5}, classes: {x: [1]}}", "data.sites.a: give a path as text (got 5)"),
    ],
)
def test_what_could_only_fail_after_the_training_is_refused_at_once(tmp_path: Path, data: str, said: str) -> None:
    assert said in _said(tmp_path, f"data: {data}\n")


def test_a_site_name_may_have_64_characters(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(f"data: {{sites: {{{'s' * 64}: a}}, classes: {{x: [1]}}}}\n")
    assert list(load_options(tmp_path / "study.yaml").data.sites) == ["s" * 64]


@pytest.mark.parametrize(
    "override",
    [
        "data.tiling={side: 100000}",
        "data.tiling={side: 64, max_tiles: 1000000}",
        "data.augment.views=100000",
        "model.lora.rank=100000",
        "model.local_lora=100000",
        "model.experts.width=100000",
        "model.image_size=100000",
        "training.batch_size=100000",
        "evaluation.batch_size=100000",
        "runtime.threads=100000",
    ],
)
def test_numbers_that_would_fill_the_machine_are_refused(tmp_path: Path, override: str) -> None:
    assert "less than or equal to" in _said(tmp_path, "data: {sites: {a: a}, classes: {x: [1]}}\n", override)


@pytest.mark.parametrize("given", ["100000", "0", "1.5", "true", "many"])
def test_the_number_of_processes_is_a_number_or_auto(tmp_path: Path, given: str) -> None:
    content = "data: {sites: {a: a}, classes: {x: [1]}}\n"
    assert "give a number" in _said(tmp_path, content, f"runtime.workers={given}")


@pytest.mark.parametrize("override", ["seed=true", "training.rounds=true", "data.ignore=[true]"])
def test_truth_values_are_no_numbers(tmp_path: Path, override: str) -> None:
    key, said = override.partition("=")[0], "give a number; true and false are not numbers"
    assert f"{key}: {said}" in _said(tmp_path, "data: {sites: {a: a}, classes: {x: [1]}}\n", override)


def test_numbers_are_decimal_in_a_file_and_in_overrides(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("seed: 010\ndata: {sites: {007: here}, classes: {organ: [010, 0x10]}}\n")
    options = load_options(path, ["training.rounds=012", "training.optimizer.learning_rate=1e-3"])
    assert (options.seed, options.data.classes, list(options.data.sites)) == (10, {"organ": [10, 16]}, ["007"])
    assert (options.training.rounds, options.training.optimizer.learning_rate) == (12, 1e-3)
    assert load_options(path, ["seed=011"]).seed == 11
    for key in ("training.rounds", "training.optimizer.learning_rate", "seed"):
        with pytest.raises(OptionError, match=rf"{key}: .* unable to parse string .* \(got '1:30'\)"):
            load_options(path, [f"{key}=1:30"])
