"""Each equation against its closed form."""

import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.lmd import Blending, blend, distance


def test_ends_of_the_weight_are_the_tensors_themselves():
    a, b = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(blend(a, b, 0), a)
    assert torch.equal(blend(a, b, 1), b)


def test_distance_of_a_blend_falls_with_the_square_of_what_is_left():
    a, b = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(distance(blend(a, b, 0.25), b), 0.75**2 * distance(a, b))


def test_weights_out_of_range_are_refused():
    with pytest.raises(InputError, match="weight"):
        blend(torch.zeros(1), torch.zeros(1), 1.5)
    with pytest.raises(InputError, match="weight"):
        Blending(weight=-1)
