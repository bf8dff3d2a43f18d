"""Muon against torch's own and against what orthogonal means."""

import torch

from pretraining.muon import Muon, orthogonalise


def test_singular_values_become_about_one() -> None:
    values = torch.linalg.svdvals(orthogonalise(torch.randn(24, 40, generator=torch.Generator().manual_seed(0))))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_tall_and_wide_agree() -> None:
    matrix = torch.randn(8, 20, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(orthogonalise(matrix).T, orthogonalise(matrix.T))


def test_steps_follow_torchs_muon_within_its_bf16() -> None:
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(16, 32, generator=generator)
    gradients = [torch.randn(16, 32, generator=generator) for _ in range(3)]
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    optimizers = (
        Muon([ours], lr=0.02, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for gradient in gradients:
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    moved, expected = ours - start, theirs - start
    assert (moved - expected).norm() < 0.02 * expected.norm()
