"""Colours of classes: with colour vision deficiencies simulated by the matrices of Machado et al. (2009), severity 1."""

from itertools import combinations

import numpy as np

from pfedsam.report.class_styles import CLASS_COLORS, class_styles

VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = np.array([0.9505, 1.0, 1.089])


def linear(color: str) -> np.ndarray:
    values = np.array([int(color[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    scaled = XYZ @ np.clip(rgb, 0, 1) / WHITE
    x, y, z = np.where(scaled > 0.008856, np.cbrt(scaled), 7.787 * scaled + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_every_two_colours_differ_also_for_colour_blind_readers() -> None:
    for matrix in VISION.values():
        seen = [lab(np.asarray(matrix) @ linear(color)) for color in CLASS_COLORS]
        assert min(np.linalg.norm(one - other) for one, other in combinations(seen, 2)) > 25


def test_the_colours_are_bright_enough_for_dark_images() -> None:
    assert min(lab(linear(color))[0] for color in CLASS_COLORS) > 50


def test_classes_have_outlines_of_their_own_as_far_as_colours_and_dashes_go() -> None:
    styles = class_styles([f"c{number}" for number in range(1, 23)])
    looks = [(style.color, style.dashes) for style in styles]
    assert len(set(looks[:21])) == 21
    assert looks[21] == looks[0]
    assert {style.dashes for style in styles[:7]} == {()}
    assert class_styles([]) == []
