import pickle

import numpy as np
import pytest

from pfedsam.core.errors import DataError, OptionError
from pfedsam.data.labels import IGNORED, LabelMap, class_pixels, ignored_pixels


def test_classes_follow_the_order_of_the_map():
    labels = LabelMap({"cup": [0], "background": [255], "rim": [128, 129]})
    assert labels.names == ("cup", "rim")
    classes = labels.to_classes(np.array([[0, 128], [129, 255]]))
    assert classes.tolist() == [[1, 2], [2, 0]]
    assert classes.dtype == np.uint8


def test_0_is_background_unless_told_otherwise():
    assert LabelMap({"nucleus": [255]}).to_classes(np.array([[0, 255]])).tolist() == [[0, 1]]
    with pytest.raises(DataError, match="unknown label 255"):
        LabelMap({"prostate": [0]}).to_classes(np.array([[0, 255]]))


def test_unknown_label_names_what_is_found_allowed_and_to_do():
    with pytest.raises(DataError) as caught:
        LabelMap({"nucleus": [1, 2]}).to_classes(np.array([[0, 1, 255]]))
    assert str(caught.value) == (
        "its mask has the unknown label 255; data.classes allows nucleus [1, 2], background [0]. "
        "Add 255 to a class of data.classes, or correct the mask"
    )


def test_many_unknown_labels_are_cut_short_and_no_class_is_advised_for_them():
    with pytest.raises(DataError, match=r"unknown label 2, 3, 4, 5, 6, 7, 8, 9 and 90 more;") as caught:
        LabelMap({"nucleus": [1]}).to_classes(np.arange(100)[None])
    assert "soft edges" in str(caught.value)
    assert "Add 2" not in str(caught.value)


@pytest.mark.parametrize("ids", [{}, {"background": [0]}, {"a": []}, {"a": [1], "b": [1]}, {"a": [1, 1]}, {"a": [-1]}])
def test_maps_without_sense(ids):
    with pytest.raises(OptionError, match=r"data\.classes"):
        LabelMap(ids)


@pytest.mark.parametrize(
    ("ids", "first", "dtype"),
    [
        ({"organ": [128, 7], "lesion": [255]}, [0, 128, 255], np.uint8),
        ({"organ": [300], "lesion": [2]}, [0, 300, 2], np.uint16),
        ({"cup": [0], "background": [255, 3], "rim": [1]}, [255, 0, 1], np.uint8),
        ({"prostate": [0], "rim": [1]}, [2, 0, 1], np.uint8),  # no background: an id that nothing else has
    ],
)
def test_first_ids_stand_for_the_classes(ids, first, dtype):
    found = LabelMap(ids).first_ids()
    assert found.tolist() == first
    assert found.dtype == dtype


def test_a_mask_written_with_first_ids_is_read_back():
    labels = LabelMap({"cup": [0], "background": [255], "rim": [400, 128]})
    classes = np.array([[0, 1, 2], [2, 0, 1]], np.uint8)
    written = labels.first_ids()[classes]
    assert written.tolist() == [[255, 0, 400], [400, 255, 0]]
    assert labels.to_classes(written.astype(np.int64)).tolist() == classes.tolist()


def test_an_id_that_no_png_holds():
    with pytest.raises(OptionError, match=r"65536 is above 65535, .*; put a lower id of the same class first"):
        LabelMap({"organ": [65536, 1]}).first_ids()


def test_survives_pickling_for_worker_processes():
    labels = LabelMap({"organ": [1], "lesion": [2, 3]})
    assert pickle.loads(pickle.dumps(labels)) == labels


def test_a_site_that_does_not_annotate_a_class():
    labels = LabelMap({"disc": [1], "cup": []}, not_annotated=frozenset({"cup"}))
    assert labels.annotated == (True, False)
    assert labels.to_classes(np.array([[0, 1]])).tolist() == [[0, 1]]
    said = r"unknown label 2; .*not annotated \(cup\), take that class out of not_annotated .* add the id to ignore"
    with pytest.raises(DataError, match=said):
        labels.to_classes(np.array([[2]]))
    assert labels.first_ids().tolist() == [0, 1, 2]  # what its model may predict has an id that nothing else has


def test_ids_to_ignore():
    assert LabelMap({"disc": [1]}, ignore=(255,)).to_classes(np.array([[0, 1, 255]])).tolist() == [[0, 1, IGNORED]]
    own = LabelMap({"background": [2], "disc": [1]}, ignore=(0,))
    assert own.to_classes(np.array([[0, 1, 2]])).tolist() == [[IGNORED, 1, 0]]


@pytest.mark.parametrize("classes", [{"disc": [1]}, {"disc": [1], "cup": [2]}, {"background": [], "disc": [1]}])
def test_a_study_without_a_background_that_counts_is_refused(classes):
    with pytest.raises(
        OptionError, match=r"^data.ignore names 0, .* take 0 out of data.ignore, or give the background"
    ):
        LabelMap(classes, ignore=(0,))


def test_regions_are_unions_of_ids():
    labels = LabelMap({"whole": [1, 2, 4], "core": [1, 4], "enhancing": [4]}, overlap=True, ignore=(9,))
    classes = labels.to_classes(np.array([[0, 1, 2, 4, 9]]))
    assert classes.tolist() == [[0, 0b011, 0b001, 0b111, 128]]
    assert class_pixels(classes, 2, overlap=True).tolist() == [[False, True, False, True, False]]
    assert ignored_pixels(classes, overlap=True).tolist() == [[False, False, False, False, True]]


@pytest.mark.parametrize(
    ("ids", "more", "message"),
    [
        (
            {"a": [1], "b": [2]},
            {"not_annotated": frozenset({"b"})},
            r"'b' has the ids \[2\] and is listed under not_annotated",
        ),
        (
            {"a": [1]},
            {"not_annotated": frozenset({"c"})},
            r"not_annotated names 'c', which is not a class; the classes are a",
        ),
        ({"a": [1], "b": [1, 2]}, {}, r"data\.overlap: true allows regions"),
        (
            {"a": [1], "b": [2]},
            {"ignore": (2,)},
            r"the id 2 is given for b and data\.ignore, but an id belongs to one class only$",
        ),
        ({"a": [1], "b": [2, -3]}, {}, "b has the id -3; an id is 0 or more"),
        ({"a": [1, 1]}, {"overlap": True}, "belongs to one class only"),
        ({name: [i] for i, name in enumerate("abcdefgh", 1)}, {"overlap": True}, "at most 7 classes, and there are 8"),
    ],
)
def test_maps_that_contradict_themselves(ids, more, message):
    with pytest.raises(OptionError, match=message):
        LabelMap(ids, **more)


def test_masks_of_overlapping_classes_are_one_for_each_class():
    labels = LabelMap({"whole": [1, 2, 400], "core": [400]}, overlap=True)
    masks = labels.to_ids(np.array([[0, 1, 3]], dtype=np.uint8))
    assert {name: mask.tolist() for name, mask in masks.items()} == {"whole": [[0, 1, 1]], "core": [[0, 0, 400]]}
    exclusive = LabelMap({"disc": [7], "cup": [3]}).to_ids(np.array([[0, 1, 2]], dtype=np.uint8))
    assert {name: mask.tolist() for name, mask in exclusive.items()} == {"": [[0, 7, 3]]}
    with pytest.raises(OptionError, match="may hold none of"):
        LabelMap({"a/b": [1]}, overlap=True).to_ids(np.zeros((1, 1), dtype=np.uint8))


@pytest.mark.parametrize("name", ["../../x", "a/b", "..", "a:b"])
def test_names_that_cannot_be_folders_are_refused_at_once_where_classes_overlap(name):
    with pytest.raises(OptionError, match="each has a folder of masks"):
        LabelMap({name: [1]}, overlap=True)
    assert LabelMap({name: [1]}).names == (name,)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ({"x": [65536]}, "put a lower id of the same class first"),
        ({"x": [10**23, 1]}, "9223372036854775807"),
        ({"x": [1, 2**63]}, "9223372036854775807"),
        ({"": [1]}, "empty name"),
    ],
)
def test_ids_and_names_that_cannot_be_written_are_refused_at_once(ids, message):
    with pytest.raises(OptionError, match=message):
        LabelMap(ids)
    assert LabelMap({"x": [1, 10**9]}).unknown([10**9]) == ()


def test_a_message_about_many_classes_is_short():
    with pytest.raises(OptionError, match="name 1 to 254 classes") as refused:
        LabelMap({f"class_{number}": [number] for number in range(1, 4000)})
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("name", ["=1+1", "+ve", "-", "@SUM(A1)", "\tcup", "cup\n", "c\x00up", "c\x9bup"])
def test_a_name_that_is_a_formula_or_has_control_characters_is_refused(name):
    with pytest.raises(OptionError, match=r"begins with none of = \+ - @.* control characters\. Give it another name"):
        LabelMap({name: [1]})


@pytest.mark.parametrize("name", ["HER2+", "non-enhancing", "T=1", "größe", "前立腺"])
def test_other_names_are_allowed(name):
    assert LabelMap({name: [1]}).names == (name,)
