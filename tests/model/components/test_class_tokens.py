"""A token for each class, which starts as the decoder's own mask token."""

import torch
from toy_model import toy_backbone, toy_personal


def test_every_class_starts_with_the_mask_token_of_the_decoder() -> None:
    tokens = toy_personal(classes=3).get_parameter("class_tokens")
    expected = toy_backbone().network.mask_decoder.mask_tokens.weight[:1]
    assert tokens.shape == (3, 32)
    assert all(torch.equal(row, expected[0]) for row in tokens)


def test_each_row_belongs_to_one_class() -> None:
    assert toy_personal(classes=3).class_numbers()["class_tokens"] == (1, 2, 3)
