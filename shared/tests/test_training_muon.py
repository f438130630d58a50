"""Muon: what its iterations return, and that its steps are torch's."""

from functools import partial

import pytest
import torch
from noiseworks.kits.training.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_iterations_keep_the_singular_vectors_and_bring_all_values_near_one(shape):
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    found = orthogonal(u @ torch.diag(torch.linspace(0.5, 3, 6).double()) @ v)
    values = u.T @ found @ v.T
    assert found.dtype == torch.float64
    assert torch.allclose(values, values.diag().diag(), atol=1e-10)
    assert values.diag().min() > 0.5
    assert values.diag().max() < 1.5


def test_steps_are_those_of_torch_up_to_its_bfloat16():
    made = []
    for kind in (partial(torch.optim.Muon, adjust_lr_fn="match_rms_adamw"), Muon):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(12, 30))
        start, optimizer = weight.detach().clone(), kind([weight], 0.1, 0.2)
        for _ in range(3):
            weight.grad = torch.randn(12, 30)
            optimizer.step()
        made.append((weight.detach() - start, optimizer.state[weight]["momentum_buffer"]))
    (theirs, momentum), (ours, own) = made
    assert torch.equal(own, momentum)
    assert (ours - theirs).norm() < 0.02 * theirs.norm()
