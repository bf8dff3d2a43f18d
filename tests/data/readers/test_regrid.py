import numpy as np

from pfedsam.data.readers.regrid import depths_of, even_stack, nearest_voxels, resample_stack, slice_numbers, usual_gap

AFFINE = np.array([[0.0, 2, 0, 10], [3, 0, 0, 20], [0, 0, 1, 30], [0, 0, 0, 1]])
"""Rows to the front in steps of 3 mm, columns to the right in steps of 2 mm; the normal (row direction x column direction) is upward."""


def _positions(heights: list[float], sideways: float = 0.0) -> np.ndarray:
    """In DICOM's directions: x to the left, y to the back."""
    return np.array([[-10, -(20 + sideways * k), 30 + height] for k, height in enumerate(heights)], dtype=float)


def test_an_uneven_stack_lies_on_a_grid_of_its_smallest_gap():
    shape, affine = even_stack(_positions([0, 2, 6, 8]), AFFINE, (4, 5, 4))
    assert shape == (4, 5, 5)
    np.testing.assert_allclose(affine, np.array([[0, 2, 0, 10], [3, 0, 0, 20], [0, 0, 2, 30], [0, 0, 0, 1]]))


def test_a_ramp_along_the_stack_is_kept_where_slices_are_put_in_between():
    positions = _positions([0, 2, 6, 8])
    shape, affine = even_stack(positions, AFFINE, (4, 5, 4))
    planes = [np.full((4, 5), height, np.float32) for height in (0, 2, 6, 8)]
    found = resample_stack(planes, positions, AFFINE, affine, shape)
    np.testing.assert_allclose(found[1, 2], [0, 2, 4, 6, 8], atol=1e-5)


def test_rounded_positions_add_no_rows_and_columns():
    positions = _positions([0, 2, 6, 8]) + np.random.default_rng(0).choice([-0.005, 0.005], (4, 3))
    shape, affine = even_stack(positions, AFFINE, (4, 5, 4))
    assert shape == (4, 5, 5)
    np.testing.assert_allclose(affine[:3, 3], [10, 20, 30], atol=0.01)


def test_a_tilted_stack_is_sheared_back_so_that_a_point_stays_at_its_place():
    positions = _positions([0, 5, 10], sideways=3.0)  # one row further to the front with each slice
    shape, affine = even_stack(positions, AFFINE, (4, 5, 3))
    assert shape == (6, 5, 3)
    planes = [np.zeros((4, 5), np.float32) for _ in range(3)]
    for plane in planes:
        plane[1, 2] = 1
    found = resample_stack(planes, positions, AFFINE, affine, shape)
    for k in range(3):
        (place,) = np.argwhere(found[..., k] > 0.5)
        at = affine @ [*place, k, 1]
        np.testing.assert_allclose(at[:3], [10 + 2 * 2, 20 + 3 * k + 3 * 1, 30 + 5 * k], atol=1e-6)


def test_places_between_and_beyond_slices_have_numbers_with_fractions():
    positions = _positions([0, 2, 6, 8])
    _, affine = even_stack(positions, AFFINE, (4, 5, 4))
    depths = depths_of(positions, AFFINE, affine)
    np.testing.assert_allclose(depths, [0, 1, 3, 4])
    numbers = slice_numbers(np.array([[-1, 0, 0.5, 1], [2, 2.5, 4, 6]]), depths)
    np.testing.assert_allclose(numbers, [[-1, 0, 0.5, 1], [1.5, 1.75, 3, 5]])


def test_ids_go_to_the_nearest_voxel_and_outside_is_background():
    ids = np.arange(1, 9).reshape(2, 2, 2)
    fine = np.diag([0.5, 0.5, 0.5, 1.0])
    fine[:3, 3] = -0.25
    found = nearest_voxels(ids, np.eye(4), fine, (4, 4, 4))
    np.testing.assert_array_equal(found, ids.repeat(2, 0).repeat(2, 1).repeat(2, 2))
    assert not nearest_voxels(ids, np.eye(4), np.eye(4) + np.eye(4, k=3) * 5, (2, 2, 2)).any()


def test_the_usual_gap_is_that_of_neighbours_although_planes_are_missing_doubled_or_rounded():
    assert usual_gap(np.array([30.0, 10, 15])) == 5
    assert usual_gap(np.array([0.0, 1.2, 2.5, 3.8, 5.0, 50.0])) == 1.25
    assert usual_gap(np.array([0.0, 0.002, 4.0]), same=0.01) == 3.998
    assert usual_gap(np.array([7.0])) is usual_gap(np.array([7.0, 7.0])) is None
