"""What was done to an image: measurement operators `y = f(x) + noise`.

`x` is `[B, C, H, W]` in [-1, 1]. A `SpectralOperator` knows its singular value decomposition `A = U S V^T`, from which
its adjoint, its pseudo-inverse and every baseline follow; the others know how to start and are differentiated.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from noiseworks.core.errors import InputError
from torch import Tensor

Shape = tuple[int, int, int]
SMALLEST_SINGULAR = (
    3e-2  # of separable operators; the pseudo-inverse takes smaller ones for 0, as in the released code
)


class Operator:
    """A measurement that may be non-linear.

    Attributes:
        shape: (C, H, W) of an image.
        measured_shape: Shape of one measurement.
    """

    def __init__(self, shape: Sequence[int], measured_shape: Sequence[int]) -> None:
        self.shape: Shape = tuple(shape)
        self.measured_shape = tuple(measured_shape)

    @property
    def measurements(self) -> int:
        """M, how many numbers a measurement has."""
        return torch.Size(self.measured_shape).numel()

    def forward(self, x: Tensor) -> Tensor:
        """Return f(x), `[B, *measured_shape]`."""
        raise NotImplementedError

    def start(self, y: Tensor) -> Tensor:
        """Return an image `[B, C, H, W]` to start from."""
        raise NotImplementedError

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the gradient of `½ |y - f(x)|^2` of each image, by automatic differentiation of f alone."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            loss = 0.5 * (y - self.forward(x)).square().sum()
            return torch.autograd.grad(loss, x)[0]

    def check(self, y: Tensor) -> None:
        """Refuse measurements of another shape, complex ones, and NaN or infinity.

        Raises:
            InputError: Naming the shape.
        """
        if tuple(y.shape[1:]) != self.measured_shape:
            raise InputError(
                f"measurements must have shape [B, {', '.join(map(str, self.measured_shape))}], got {list(y.shape)}"
            )
        if y.is_complex() or not bool(y.isfinite().all()):
            raise InputError("measurements must be real numbers, none of them NaN or infinite")


class LinearOperator(Operator):
    """A linear measurement A."""

    def adjoint(self, y: Tensor) -> Tensor:
        """Return `A^T y`, `[B, C, H, W]`."""
        raise NotImplementedError

    def pinv(self, y: Tensor) -> Tensor:
        """Return `A^+ y`, `[B, C, H, W]`."""
        raise NotImplementedError

    def start(self, y: Tensor) -> Tensor:
        """Return `A^+ y`."""
        return self.pinv(y)

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """Return `A^T (A x - y)`."""
        return self.adjoint(self.forward(x) - y)


class SpectralOperator(LinearOperator):
    """A linear measurement with a cheap singular value decomposition.

    Attributes:
        singulars: The N singular values, 0 where nothing is measured, `[C H W]`.
    """

    singulars: Tensor

    def spectrum(self, x: Tensor) -> Tensor:
        """Return `V^T x`, `[B, N]`."""
        raise NotImplementedError

    def image(self, coefficients: Tensor) -> Tensor:
        """Return `V c`, `[B, C, H, W]`."""
        raise NotImplementedError

    def measured(self, y: Tensor) -> Tensor:
        """Return `U^T y` in the places of the singular values, `[B, N]`."""
        raise NotImplementedError

    def measurement(self, coefficients: Tensor) -> Tensor:
        """Return `U c`, `[B, *measured_shape]`."""
        raise NotImplementedError

    def scale(self, y: Tensor) -> Tensor:
        """Return the singular values as y's dtype and on its device."""
        return self.singulars.to(y)

    def forward(self, x: Tensor) -> Tensor:
        """Return `U S V^T x`."""
        return self.measurement(self.scale(x) * self.spectrum(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """Return `V S U^T y`."""
        return self.image(self.scale(y) * self.measured(y))

    def pinv(self, y: Tensor) -> Tensor:
        """Return `V S^+ U^T y`."""
        return self.regularized(y, 0.0)

    def regularized(self, y: Tensor, ratio: float) -> Tensor:
        """Return `A^T (A A^T + ratio I)^-1 y`, which for 0 is the pseudo-inverse."""
        s = self.scale(y)
        filtered = torch.where(s > 0, s / (s.square() + ratio).clamp(min=torch.finfo(s.dtype).tiny), 0.0)
        return self.image(filtered * self.measured(y))


class Inpainting(SpectralOperator):
    """Known pixels stay, unknown ones are 0: `y = m x`. A mask of ones is denoising.

    Args:
        mask: True where known, `[H, W]` or `[C, H, W]`.
        channels: C, for a mask of two axes.

    Raises:
        InputError: When nothing is known.
    """

    def __init__(self, mask: Tensor, channels: int = 3) -> None:
        mask = mask.bool()
        mask = mask.expand(channels, *mask.shape) if mask.ndim == 2 else mask
        if not bool(mask.any()):
            raise InputError("the mask has no known pixel; known ones are white (or true)")
        super().__init__(mask.shape, mask.shape)
        self.singulars = mask.flatten().double()

    def spectrum(self, x: Tensor) -> Tensor:
        """Return the pixels."""
        return x.flatten(1)

    def image(self, coefficients: Tensor) -> Tensor:
        """Return the image of the pixels."""
        return coefficients.reshape(-1, *self.shape)

    def measured(self, y: Tensor) -> Tensor:
        """Return the known pixels."""
        return y.flatten(1) * self.scale(y)

    def measurement(self, coefficients: Tensor) -> Tensor:
        """Return the pixels as a measurement."""
        return self.image(coefficients)


class BlockAverage(SpectralOperator):
    """Super-resolution from means of r x r blocks; every singular value is 1/r.

    Args:
        shape: (C, H, W).
        factor: r, which divides H and W.

    Raises:
        InputError: When it does not.
    """

    def __init__(self, shape: Sequence[int], factor: int) -> None:
        channels, height, width = shape
        if height % factor or width % factor:
            raise InputError(f"factor {factor} does not divide an image of {height}x{width}")
        super().__init__(shape, (channels, height // factor, width // factor))
        self.factor = factor
        # A basis of a block whose first vector is constant: QR of it beside unit vectors.
        start = torch.eye(factor**2, dtype=torch.float64)
        start[:, 0] = 1
        basis = torch.linalg.qr(start)[0]
        self.basis = basis * basis[0, 0].sign()
        first = torch.zeros(channels, height // factor, width // factor, factor**2, dtype=torch.float64)
        first[..., 0] = 1 / factor
        self.singulars = first.flatten()

    def spectrum(self, x: Tensor) -> Tensor:
        """Return the coefficients of each block in its basis."""
        c, h, w = self.measured_shape
        r = self.factor
        blocks = x.reshape(-1, c, h, r, w, r).transpose(3, 4).reshape(-1, c, h, w, r * r)
        return (blocks @ self.basis.to(x)).flatten(1)

    def image(self, coefficients: Tensor) -> Tensor:
        """Return the image of the blocks."""
        c, h, w = self.measured_shape
        r = self.factor
        blocks = coefficients.reshape(-1, c, h, w, r * r) @ self.basis.T.to(coefficients)
        return blocks.reshape(-1, c, h, w, r, r).transpose(3, 4).reshape(-1, *self.shape)

    def measured(self, y: Tensor) -> Tensor:
        """Return the means in the places of the blocks' first coefficients."""
        return F.pad(y.unsqueeze(-1), (0, self.factor**2 - 1)).flatten(1)

    def measurement(self, coefficients: Tensor) -> Tensor:
        """Return the blocks' first coefficients."""
        return coefficients.reshape(-1, *self.measured_shape, self.factor**2)[..., 0]


class Separable(SpectralOperator):
    """The same matrix along rows and along columns of every channel: `Y = R X K^T`.

    Pseudo-inverse and spectral methods leave out singular values below `SMALLEST_SINGULAR`, which amplify noise.

    Args:
        shape: (C, H, W).
        rows: R, `[h, H]`.
        columns: K, `[w, W]`.
    """

    def __init__(self, shape: Sequence[int], rows: Tensor, columns: Tensor) -> None:
        super().__init__(shape, (shape[0], len(rows), len(columns)))
        self.rows, self.columns = rows.double(), columns.double()
        self._rows, self._columns = (
            torch.linalg.svd(m, full_matrices=True) for m in (self.rows, self.columns)
        )
        first, second = (
            F.pad(one.S, (0, one.Vh.shape[0] - len(one.S))) for one in (self._rows, self._columns)
        )
        singulars = torch.outer(first, second)
        singulars = torch.where(singulars < SMALLEST_SINGULAR, 0.0, singulars)
        self.singulars = singulars.expand(shape[0], -1, -1).flatten()

    def forward(self, x: Tensor) -> Tensor:
        """Return `R X K^T`."""
        return self.rows.to(x) @ x @ self.columns.T.to(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return `R^T Y K`."""
        return self.rows.T.to(y) @ y @ self.columns.to(y)

    def spectrum(self, x: Tensor) -> Tensor:
        """Return `V_R^T X V_K`."""
        return (self._rows.Vh.to(x) @ x @ self._columns.Vh.T.to(x)).flatten(1)

    def image(self, coefficients: Tensor) -> Tensor:
        """Return `V_R C V_K^T`."""
        c = coefficients.reshape(-1, *self.shape)
        return self._rows.Vh.T.to(c) @ c @ self._columns.Vh.to(c)

    def measured(self, y: Tensor) -> Tensor:
        """Return `U_R^T Y U_K`, with zeros where more is asked for than measured."""
        (_, height, width), (_, h, w) = self.shape, self.measured_shape
        return F.pad(self._rows.U.T.to(y) @ y @ self._columns.U.to(y), (0, width - w, 0, height - h)).flatten(
            1
        )

    def measurement(self, coefficients: Tensor) -> Tensor:
        """Return `U_R C U_K^T`."""
        _, h, w = self.measured_shape
        c = coefficients.reshape(-1, *self.shape)[..., :h, :w]
        return self._rows.U.to(c) @ c @ self._columns.U.T.to(c)


def blur_matrix(size: int, taps: Tensor, *, legacy_taps: bool = False) -> Tensor:
    """Return the matrix of a blur along one axis, float64 `[size, size]`.

    Args:
        size: Pixels.
        taps: Weights of an odd number of taps, scaled to sum 1; at the edge the nearest pixel is repeated.
        legacy_taps: Leave the last tap out and what lies beyond the edge, as the released code does; inner rows of a
            Gaussian of 5 taps then sum to 0.80 instead of 1.
    """
    taps = taps.double() / taps.double().sum()
    half = len(taps) // 2
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size):
        for j in range(i - half, i + half + (not legacy_taps)):
            if legacy_taps and not 0 <= j < size:
                continue
            matrix[i, min(max(j, 0), size - 1)] += taps[j - i + half]
    return matrix


def gaussian_taps(count: int, deviation: float) -> Tensor:
    """Return a Gaussian at `count` taps, float64, of sum 1."""
    offsets = torch.arange(count, dtype=torch.float64) - count // 2
    taps = torch.exp(-0.5 * (offsets / deviation).square())
    return taps / taps.sum()


def blur(shape: Sequence[int], taps: Tensor, *, legacy_taps: bool = False) -> Separable:
    """Return a blur with the same taps along rows and columns, of unit gain."""
    rows, columns = (blur_matrix(size, taps, legacy_taps=legacy_taps) for size in shape[1:])
    return Separable(shape, rows, columns)


def motion_blur(shape: Sequence[int], count: int) -> Separable:
    """Return a horizontal blur over `count` pixels."""
    columns = blur_matrix(shape[2], torch.ones(count))
    return Separable(shape, torch.eye(shape[1], dtype=torch.float64), columns)


def bicubic(shape: Sequence[int], factor: int) -> Separable:
    """Return bicubic downsampling (a = -0.5, 4 r taps, reflected at the edge).

    Raises:
        InputError: When the factor does not divide height and width.
    """
    if shape[1] % factor or shape[2] % factor:
        raise InputError(f"factor {factor} does not divide an image of {shape[1]}x{shape[2]}")
    return Separable(shape, *(_bicubic_matrix(size, factor) for size in shape[1:]))


def _bicubic_matrix(size: int, factor: int) -> Tensor:
    offsets = (torch.arange(4 * factor, dtype=torch.float64) + 0.5) / factor - 2
    u = offsets.abs()
    near = 1.5 * u**3 - 2.5 * u**2 + 1
    taps = torch.where(u <= 1, near, -0.5 * u**3 + 2.5 * u**2 - 4 * u + 2)
    taps = taps / taps.sum()
    matrix = torch.zeros(size // factor, size, dtype=torch.float64)
    for i in range(size // factor):
        for k, weight in enumerate(taps):
            j = i * factor + k + (factor - 4 * factor) // 2
            j = -j - 1 if j < 0 else j
            matrix[i, min(2 * size - 1 - j if j >= size else j, size - 1)] += weight
    return matrix


class Gray(SpectralOperator):
    """Colourisation: only a weighted mean of the channels is measured.

    Args:
        shape: (C, H, W).
        weights: One a channel.
    """

    def __init__(self, shape: Sequence[int], weights: Sequence[float] = (0.3333, 0.3334, 0.3333)) -> None:
        super().__init__(shape, (1, *shape[1:]))
        row = torch.tensor([weights], dtype=torch.float64)
        self._svd = torch.linalg.svd(row, full_matrices=True)
        singulars = torch.zeros(shape, dtype=torch.float64)
        singulars[0] = float(self._svd.S[0])
        self.singulars = singulars.flatten()

    def spectrum(self, x: Tensor) -> Tensor:
        """Return the channels in the basis of the decomposition."""
        return torch.einsum("kc,bchw->bkhw", self._svd.Vh.to(x), x).flatten(1)

    def image(self, coefficients: Tensor) -> Tensor:
        """Return the image of such coefficients."""
        c = coefficients.reshape(-1, *self.shape)
        return torch.einsum("kc,bkhw->bchw", self._svd.Vh.to(c), c)

    def measured(self, y: Tensor) -> Tensor:
        """Return the gray image as the first coefficient."""
        return F.pad(float(self._svd.U) * y, (0, 0, 0, 0, 0, self.shape[0] - 1)).flatten(1)

    def measurement(self, coefficients: Tensor) -> Tensor:
        """Return the first coefficient."""
        return float(self._svd.U) * coefficients.reshape(-1, *self.shape)[:, :1]


class Matrix(SpectralOperator):
    """Any linear measurement of small images, as a matrix `[M, C H W]`; see also `compressed_sensing`."""

    def __init__(self, shape: Sequence[int], matrix: Tensor) -> None:
        super().__init__(shape, (len(matrix),))
        self._svd = torch.linalg.svd(matrix.double(), full_matrices=True)
        self.singulars = F.pad(self._svd.S, (0, matrix.shape[1] - len(self._svd.S)))

    def spectrum(self, x: Tensor) -> Tensor:
        """Return `V^T x`."""
        return x.flatten(1) @ self._svd.Vh.T.to(x)

    def image(self, coefficients: Tensor) -> Tensor:
        """Return `V c`."""
        return (coefficients @ self._svd.Vh.to(coefficients)).reshape(-1, *self.shape)

    def measured(self, y: Tensor) -> Tensor:
        """Return `U^T y`."""
        return F.pad(y @ self._svd.U.to(y), (0, len(self.singulars) - self.measurements))

    def measurement(self, coefficients: Tensor) -> Tensor:
        """Return `U c`."""
        return coefficients[:, : self.measurements] @ self._svd.U.T.to(coefficients)


def compressed_sensing(shape: Sequence[int], measurements: int, seed: int = 0) -> Matrix:
    """Return random orthonormal measurements: rows of a Gaussian matrix, orthonormalised, so that `A^+ = A^T`."""
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(torch.Size(shape).numel(), measurements, generator=generator, dtype=torch.float64)
    return Matrix(shape, torch.linalg.qr(gaussian)[0].T)


class Fourier(SpectralOperator):
    """Some frequencies of a real image: `y = m F x`, orthonormal, as pairs of real and imaginary part.

    The mask is made symmetric, since a real image has no more to tell at -k than at k; real images are then diagonal in
    the Hartley basis.

    Args:
        shape: (C, H, W).
        mask: True at measured frequencies, `[H, W]`, frequency 0 at [0, 0].
    """

    def __init__(self, shape: Sequence[int], mask: Tensor) -> None:
        super().__init__(shape, (*shape, 2))
        mask = mask.bool()
        self.mask = mask | mask.flip(0, 1).roll((1, 1), (0, 1))
        self.singulars = self.mask.expand(shape).flatten().double()

    def spectrum(self, x: Tensor) -> Tensor:
        """Return the Hartley transform."""
        f = torch.fft.fft2(x, norm="ortho")
        return (f.real - f.imag).flatten(1)

    def image(self, coefficients: Tensor) -> Tensor:
        """Return the image; the transform is its own inverse."""
        return self.spectrum(coefficients.reshape(-1, *self.shape)).reshape(-1, *self.shape)

    def measured(self, y: Tensor) -> Tensor:
        """Return the Hartley coefficients that the frequencies tell."""
        f = torch.view_as_complex(y.contiguous()) * self.mask.to(y)
        return self.spectrum(torch.fft.ifft2(f, norm="ortho").real) * self.scale(y)

    def measurement(self, coefficients: Tensor) -> Tensor:
        """Return the frequencies."""
        f = torch.fft.fft2(self.image(coefficients), norm="ortho") * self.mask.to(coefficients)
        return torch.view_as_real(f)


class HighDynamicRange(Operator):
    """Overexposure: `clip(2 x, -1, 1)`; saturated pixels have no gradient, so only the prior moves them."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape, shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return the clipped image."""
        return (2 * x).clamp(-1, 1)

    def start(self, y: Tensor) -> Tensor:
        """Return y / 2."""
        return y / 2


class PhaseRetrieval(Operator):
    """Magnitudes of the Fourier transform of the padded image: `|F pad(x)|`, orthonormal.

    Args:
        shape: (C, H, W).
        oversample: The image is padded by oversample / 8 of its side on each side.
    """

    def __init__(self, shape: Sequence[int], oversample: float = 2.0) -> None:
        self.pad = int(oversample / 8 * shape[1])
        side = [size + 2 * self.pad for size in shape[1:]]
        super().__init__(shape, (shape[0], *side))

    def forward(self, x: Tensor) -> Tensor:
        """Return the magnitudes."""
        padded = F.pad(x, (self.pad,) * 4)
        return torch.fft.fft2(padded, norm="ortho").abs()

    def start(self, y: Tensor) -> Tensor:
        """Return the magnitude of the inverse transform of y, without the padding."""
        image = torch.fft.ifft2(
            y.to(torch.complex64 if y.dtype == torch.float32 else torch.complex128), norm="ortho"
        )
        (_, height, width), p = self.shape, self.pad
        return image.abs()[..., p : p + height, p : p + width]


class Composed(Operator):
    """One measurement after another: `f = second o first`."""

    def __init__(self, first: Operator, second: Operator) -> None:
        if first.measured_shape != second.shape:
            raise InputError(f"{first.measured_shape} is measured first and {second.shape} expected second")
        super().__init__(first.shape, second.measured_shape)
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        """Return `second(first(x))`."""
        return self.second.forward(self.first.forward(x))

    def start(self, y: Tensor) -> Tensor:
        """Return the start of the first from the start of the second."""
        return self.first.start(self.second.start(y))
