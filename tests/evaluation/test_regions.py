import numpy as np
import pytest

from pfedsam.evaluation.regions import clean_regions, measure


def test_small_parts_are_removed_class_by_class_and_corners_join():
    classes = np.zeros((4, 6, 6), np.uint8)
    classes[0, 0, 0] = classes[1, 1, 1] = 1  # joined at a corner: two voxels
    classes[3, 5, 5] = 1
    classes[2, 3:5, 3:5] = 2
    cleaned = clean_regions(classes, smallest=2)
    assert cleaned[3, 5, 5] == 0
    assert (cleaned == 1).sum() == 2
    assert (cleaned == 2).sum() == 4
    assert (clean_regions(classes, smallest=3) == 1).sum() == 0
    np.testing.assert_array_equal(clean_regions(classes), classes)


def test_the_largest_part_of_each_class():
    classes = np.zeros((8, 8), np.uint8)
    classes[0, :3], classes[4, :2], classes[6, 0] = 1, 1, 2
    expected = classes.copy()
    expected[4, :2] = 0
    np.testing.assert_array_equal(clean_regions(classes, single=(1, 2)), expected)
    np.testing.assert_array_equal(clean_regions(classes, single=(2,)), classes)


def test_sizes_in_millilitres_and_square_millimetres():
    classes = np.zeros((3, 4, 5), np.uint8)
    classes[1, :2, :3], classes[2, 0, 0] = 1, 2
    first, second, absent = measure(classes, ("a", "b", "c"), (10.0, 2.0, 0.5))
    assert (first.voxels, first.millilitres) == (6, pytest.approx(0.06))  # 6 x 10 mm3
    assert first.areas == ((1, 6, 6.0),)
    assert second.areas == ((2, 1, 1.0),)
    assert (absent.voxels, absent.millilitres, absent.areas) == (0, 0.0, ())
    assert measure(classes, ("a",), None)[0].areas == ((1, 6, None),)
    (flat,) = measure(classes, ("a",), (2.0, 0.5))  # no thickness
    assert (flat.millilitres, flat.areas) == (None, ((1, 6, 6.0),))


def test_small_parts_of_overlapping_classes_are_removed_for_each_class() -> None:
    labels = np.array([[1, 3, 3, 0, 2, 0, 1]], np.uint8)  # bit 1: three pixels and one; bit 2: two pixels and one
    assert clean_regions(labels, smallest=2, overlap=True).tolist() == [[1, 3, 3, 0, 0, 0, 0]]
    assert clean_regions(labels, smallest=3, overlap=True).tolist() == [[1, 1, 1, 0, 0, 0, 0]]
    assert clean_regions(labels, single=(1, 2), overlap=True).tolist() == [[1, 3, 3, 0, 0, 0, 0]]


def test_sizes_of_overlapping_classes_count_shared_voxels_twice() -> None:
    labels = np.array([[[1, 3], [2, 0]]], np.uint8)
    one, two = measure(labels, ["one", "two"], (2.0, 1.0, 5.0), overlap=True)
    assert (one.voxels, two.voxels) == (2, 2)
    assert one.millilitres == 2 * 10 / 1000
