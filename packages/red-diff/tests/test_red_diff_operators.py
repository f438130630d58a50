"""Adjoints, pseudo-inverses and spectra against dense matrices and known values."""

import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.red_diff import operators as ops

SHAPE = (2, 8, 8)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mask(seed=0):
    return random(8, 8, seed=seed) > 0


LINEAR = {
    "inpainting": lambda: ops.Inpainting(mask(), 2),
    "average": lambda: ops.BlockAverage(SHAPE, 4),
    "bicubic": lambda: ops.bicubic(SHAPE, 2),
    "blur": lambda: ops.blur(SHAPE, ops.gaussian_taps(5, 1.5)),
    "legacy blur": lambda: ops.blur(SHAPE, ops.gaussian_taps(5, 25.0), legacy_taps=True),
    "motion": lambda: ops.motion_blur(SHAPE, 3),
    "gray": lambda: ops.Gray(SHAPE, (0.4, 0.6)),
    "matrix": lambda: ops.Matrix(SHAPE, random(17, 128)),
    "sensing": lambda: ops.compressed_sensing(SHAPE, 32),
    "fourier": lambda: ops.Fourier(SHAPE, mask(3)),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_operators_agree_with_their_dense_matrix(name):
    operator = LINEAR[name]()
    columns = operator.forward(torch.eye(128, dtype=torch.float64).reshape(128, *SHAPE)).flatten(1)
    dense = columns.T  # [M, N]
    x, y = random(3, *SHAPE, seed=1), operator.forward(random(3, *SHAPE, seed=2)) + 0
    y = y + random(*y.shape, seed=4)
    torch.testing.assert_close(operator.forward(x).flatten(1), x.flatten(1) @ dense.T)
    torch.testing.assert_close(operator.adjoint(y).flatten(1), y.flatten(1) @ dense, atol=1e-10, rtol=1e-10)
    left, singular, right = torch.linalg.svd(dense, full_matrices=False)
    # Separable operators leave out small singular values of what they invert.
    kept = torch.where(singular < (3e-2 if isinstance(operator, ops.Separable) else 1e-9), 0.0, singular)
    torch.testing.assert_close(
        operator.singulars.sort(descending=True).values[: len(kept)], kept, atol=1e-8, rtol=0
    )
    for ratio in (0.0, 0.3):
        filtered = torch.where(kept > 0, kept / (kept**2 + ratio), 0.0)
        expected = y.flatten(1) @ left @ torch.diag(filtered) @ right
        torch.testing.assert_close(operator.regularized(y, ratio).flatten(1), expected, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(operator.pinv(y), operator.regularized(y, 0.0))
    torch.testing.assert_close(operator.gradient(x, y), ops.Operator.gradient(operator, x, y))
    torch.testing.assert_close(operator.image(operator.spectrum(x)), x)


def test_known_gains_and_singular_values():
    assert torch.equal(ops.BlockAverage((1, 8, 8), 4).singulars.unique(), torch.tensor([0.0, 0.25]).double())
    ones = torch.ones(1, 1, 16, 16, dtype=torch.float64)
    for operator in (ops.blur((1, 16, 16), torch.ones(9)), ops.bicubic((1, 16, 16), 4)):
        torch.testing.assert_close(operator.forward(ones), torch.ones_like(operator.forward(ones)))
    for taps, gain in ((ops.gaussian_taps(5, 25.0), 0.8003), (torch.ones(9), 0.8889)):
        inner = ops.blur_matrix(32, taps, legacy_taps=True)[16].sum()
        assert float(inner) == pytest.approx(gain, abs=5e-5)
    full = ops.Fourier((1, 8, 8), torch.ones(8, 8))
    x = random(1, 1, 8, 8)
    torch.testing.assert_close(full.adjoint(full.forward(x)), x)
    torch.testing.assert_close(full.forward(x).square().sum(), x.square().sum())


def test_non_linear_operators_have_known_values_and_finite_gradients():
    hdr = ops.HighDynamicRange((1, 2, 2))
    x = torch.tensor([[[[-0.9, 0.2], [0.5, 0.1]]]])
    assert torch.equal(hdr.forward(x), torch.tensor([[[[-1.0, 0.4], [1.0, 0.2]]]]))
    gradient = hdr.gradient(x, torch.zeros_like(x))
    torch.testing.assert_close(gradient, torch.tensor([[[[0.0, 0.8], [2.0, 0.4]]]]))
    phase = ops.PhaseRetrieval((1, 8, 8))
    assert phase.measured_shape == (1, 12, 12)
    assert ops.PhaseRetrieval((3, 256, 256)).measured_shape == (3, 384, 384)
    image = random(1, 1, 8, 8)
    y = phase.forward(image)
    torch.testing.assert_close(y.square().sum(), image.square().sum())
    torch.testing.assert_close(phase.forward(image.flip(2, 3)), y)
    assert bool(phase.gradient(torch.zeros_like(image), y).isfinite().all())
    both = ops.Composed(ops.BlockAverage((1, 8, 8), 2), ops.HighDynamicRange((1, 4, 4)))
    torch.testing.assert_close(
        both.forward(image), (2 * torch.nn.functional.avg_pool2d(image, 2)).clamp(-1, 1)
    )
    assert both.start(both.forward(image)).shape == image.shape


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="no known pixel"):
        ops.Inpainting(torch.zeros(4, 4))
    with pytest.raises(InputError, match="factor 3"):
        ops.BlockAverage((3, 8, 8), 3)
    operator = ops.BlockAverage((3, 8, 8), 2)
    with pytest.raises(InputError, match=r"\[B, 3, 4, 4\]"):
        operator.check(torch.zeros(1, 3, 8, 8))
    with pytest.raises(InputError, match="real numbers"):
        operator.check(torch.zeros(1, 3, 4, 4, dtype=torch.complex64))
    with pytest.raises(InputError, match="NaN"):
        operator.check(torch.full((1, 3, 4, 4), torch.nan))
