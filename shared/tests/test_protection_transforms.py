"""Differentiable transformations against the codec and filters that they stand for, and their gradients."""

import io

import numpy as np
import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.protection import Budget, Transformed, projected_gradient, transforms
from noiseworks.kits.protection import purifiers as files
from noiseworks.kits.protection.engine import streams
from noiseworks.kits.protection.files import to_tensor
from noiseworks.kits.protection.options import TRANSFORM_NAMES, parse_transforms
from PIL import Image


def waves(height=32, width=40):
    y, x = np.indices((height, width))
    planes = [128 + 60 * np.sin(x / 5), 128 + 60 * np.cos(y / 4 + x / 9), 3.0 * x + y]
    return np.clip(np.round(np.stack(planes, -1)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("quality", [10, 49, 50, 75, 95, 100])
def test_tables_are_those_that_encoders_write(quality):
    buffer = io.BytesIO()
    Image.fromarray(waves()).save(buffer, "JPEG", quality=quality)
    written = Image.open(buffer).quantization
    for index, table in enumerate(transforms.quantization(quality)):
        assert table.flatten().int().tolist() == list(written[index])


def test_transforms_give_what_their_twins_give():
    image = to_tensor(waves()).double()

    def apart(mine, theirs):
        return float((mine - to_tensor(theirs).double()).abs().mean()) * 255

    for quality in (50, 75, 95):
        theirs = files.jpeg(waves(), quality)
        # The codec also rounds pixels and colour planes to whole levels.
        assert apart(transforms.jpeg(image, quality, "straight"), theirs) < 1.5
        assert apart(transforms.jpeg(image, quality, "straight"), theirs) < 0.5 * apart(image, theirs) + 0.6
    assert apart(transforms.resize(image, 0.5), files.resize(waves(), 0.5)) < 1
    assert apart(transforms.blur(image, 1.2), files.blur(waves(), 1.2)) < 0.3  # the twin rounds


def test_rounding_is_exact_or_smooth():
    values = torch.tensor([0.2, 0.5, 1.7], dtype=torch.float64, requires_grad=True)
    straight = transforms._rounded(values, "straight")
    assert straight.tolist() == pytest.approx([0, 0, 2])
    assert torch.autograd.grad(straight.sum(), values)[0].tolist() == [1, 1, 1]
    soft = transforms._rounded(values, "soft")
    assert soft.tolist() == pytest.approx([0.2**3, 0.5**3, 2 - 0.3**3])
    slopes = torch.autograd.grad(soft.sum(), values)[0]
    assert slopes.tolist() == pytest.approx([3 * 0.04, 3 * 0.25, 3 * 0.09])


def square(images, generators):
    """An objective whose gradient is written out: sum x^2."""
    return 2 * images, images.square().flatten(1).sum(1)


@pytest.mark.parametrize("name", sorted(transforms.TRANSFORMS))
def test_the_gradient_is_that_of_the_whole_chain(name):
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, value = Transformed(square, (name,))(images, streams(Budget(), 2))
    leaf = images.clone().requires_grad_()
    again = streams(Budget(), 2)
    rows = []
    for image, generator in zip(leaf, again, strict=True):
        torch.randint(1, (1,), generator=generator)
        rows.append(transforms.TRANSFORMS[name](image[None], generator))
    whole = torch.cat(rows).square().flatten(1).sum(1)
    torch.testing.assert_close(value, whole.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found, torch.autograd.grad(whole.sum(), leaf)[0], rtol=1e-10, atol=1e-12)
    alone, _ = Transformed(square, (name,))(images[1:], streams(Budget(), 1, first=1))
    torch.testing.assert_close(alone, found[1:], rtol=1e-12, atol=1e-12)


def test_draws_differ_and_names_are_checked():
    images = torch.full((1, 3, 16, 16), 0.4)
    seen = set()
    record = lambda x, g: (seen.add(float(x.std())), square(x, g))[1]  # noqa: E731
    projected_gradient(images, Transformed(record, ("none", "noise")), Budget(4, 1, 8))
    assert len(seen) > 3
    assert set(TRANSFORM_NAMES) == set(transforms.TRANSFORMS)
    assert parse_transforms(" jpeg, blur") == ("jpeg", "blur")
    assert parse_transforms("") == ()
    with pytest.raises(InputError, match="bleach"):
        parse_transforms("bleach")
    with pytest.raises(InputError, match="at least one"):
        Transformed(square, ())
