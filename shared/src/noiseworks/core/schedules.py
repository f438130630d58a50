"""Noise schedules: how much of the clean sample and how much noise there is at a time or step.

`x_t = α_t x_0 + σ_t ε`. A schedule gives (α, σ) as a `Level`, the log signal-to-noise ratio
`log_snr = log α²/σ² = 2λ`, and the inverse `t_of_log_snr`. Two kinds share these methods:

- `TableSchedule`: N noising steps. Index i means the level *after* i + 1 steps; index −1 is the clean sample.
- `ContinuousSchedule`: a time t, 0 at the clean end unless the family says otherwise.

Tables and coefficients are float64 on the CPU; `expand` casts them once, where they meet a sample.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from torch import Tensor

BETA_KINDS = ("linear", "scaled_linear", "cosine", "sigmoid", "sigmoid_alpha")
Time = Tensor | float | int


class Level(NamedTuple):
    """A noise level: `alpha` scales the clean sample, `sigma` the noise; float64, in the time's shape."""

    alpha: Tensor
    sigma: Tensor

    @property
    def log_snr(self) -> Tensor:
        """The log signal-to-noise ratio `log α²/σ²`; infinite at either end."""
        return 2 * (self.alpha.log() - self.sigma.log())

    @property
    def snr(self) -> Tensor:
        """The signal-to-noise ratio `α²/σ²`."""
        return (self.alpha / self.sigma) ** 2

    @property
    def sigma_ve(self) -> Tensor:
        """The noise of the variance-exploding view `x/α = x_0 + (σ/α) ε`."""
        return self.sigma / self.alpha


def expand(coefficient: Tensor | float, x: Tensor) -> Tensor:
    """Return a coefficient on x's device, padded with trailing axes of length one to x's rank.

    The only place where coefficients are cast and shaped: to float64 for float64 samples, else to float32, so
    that half-precision samples are stepped with full-precision coefficients.

    Args:
        coefficient: Scalar, (B,), (B, L), or any shape that broadcasts to x once padded on the right.
        x: The sample, of any shape.

    Raises:
        InputError: When the shape does not broadcast to x's.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    c = torch.as_tensor(coefficient, dtype=dtype).to(x.device)
    if c.ndim > x.ndim or any(n not in (1, m) for n, m in zip(c.shape, x.shape, strict=False)):
        raise InputError(
            f"times of shape {tuple(c.shape)} do not fit a sample of shape {tuple(x.shape)}; "
            "give one per sample (B,), per token (B, L), or a shape that broadcasts"
        )
    return c.reshape(c.shape + (1,) * (x.ndim - c.ndim))


def _as_time(t: Time, device: torch.device | None = None) -> Tensor:
    # A Python float must not pass through torch's default float32.
    return torch.as_tensor(t, dtype=torch.float64 if isinstance(t, float) else None, device=device)


def add_noise(x0: Tensor, noise: Tensor, level: Level) -> Tensor:
    """Return `α x_0 + σ ε` in x0's dtype.

    Args:
        x0: Clean sample, (B, ...).
        noise: Standard normal noise of the same shape.
        level: The level to bring it to.
    """
    return (expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * noise).to(x0.dtype)


@dataclass(frozen=True, eq=False)
class TableSchedule:
    """A variance-preserving schedule of N discrete steps, `α² = ᾱ`, `σ² = 1 − ᾱ`.

    Attributes:
        kind: Name of the family.
        alphas_cumprod: ᾱ after step 1 ... N, float64, (N,), falling, in [0, 1); only the last may be 0.
    """

    kind: str
    alphas_cumprod: Tensor
    _tables: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        table = self.alphas_cumprod
        if table.dtype != torch.float64 or table.ndim != 1 or table.numel() < 1:
            raise InputError(f"alphas_cumprod must be a float64 vector, got {table.dtype}, {table.ndim} axes")
        falling = bool((table.diff() < 0).all()) and bool(table[-1] >= 0)
        if not (falling and bool(table[0] < 1) and bool((table[:-1] > 0).all())):
            raise InputError("alphas_cumprod must fall strictly within (0, 1); only the last entry may be 0")
        # With the clean level in front, once for each device: a lookup is then one gather.
        self._tables[table.device] = torch.cat([table.new_ones(1), table])

    @property
    def num_steps(self) -> int:
        """N, the number of noising steps."""
        return self.alphas_cumprod.numel()

    @property
    def t_min(self) -> int:
        """The least noisy index that is not clean."""
        return 0

    @property
    def t_max(self) -> int:
        """The noisiest index, N − 1."""
        return self.num_steps - 1

    @property
    def betas(self) -> Tensor:
        """β_i = 1 − ᾱ_i/ᾱ_{i−1}, float64, (N,)."""
        before = torch.cat([self.alphas_cumprod.new_ones(1), self.alphas_cumprod[:-1]])
        return 1 - self.alphas_cumprod / before

    def to(self, device: torch.device | str) -> "TableSchedule":
        """Return the schedule with its table on a device; lookups with times there keep a copy there anyway."""
        return replace(self, alphas_cumprod=self.alphas_cumprod.to(device))

    def log_snr(self, t: Time) -> Tensor:
        """Return log ᾱ/(1 − ᾱ); +inf at index −1.

        Args:
            t: Indices −1 ... N − 1 of any shape. Fractional ones interpolate the log signal-to-noise ratio.
        """
        t = self._time(t)
        if not t.is_floating_point():
            return torch.logit(self._lookup(t))
        low = t.floor()
        weight = (t - low).double()
        left, right = (torch.logit(self._lookup(i.long())) for i in (low, t.ceil()))
        return torch.where(weight == 0, left, left + weight * (right - left))

    def level(self, t: Time) -> Level:
        """Return (α, σ) at indices −1 ... N − 1 of any shape (fractional ones as in `log_snr`)."""
        t = self._time(t)
        if t.is_floating_point():
            log_snr = self.log_snr(t)
            return Level(torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt())
        alphas_cumprod = self._lookup(t)
        return Level(alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt())

    def alpha(self, t: Time) -> Tensor:
        """Return α at indices −1 ... N − 1."""
        return self.level(t).alpha

    def sigma(self, t: Time) -> Tensor:
        """Return σ at indices −1 ... N − 1."""
        return self.level(t).sigma

    def t_of_log_snr(self, log_snr: Tensor | float) -> Tensor:
        """Return the fractional index of a log signal-to-noise ratio, clamped to [0, N − 1]."""
        rising = -torch.logit(self.alphas_cumprod)
        wanted = -torch.as_tensor(log_snr, dtype=torch.float64, device=rising.device)
        right = torch.searchsorted(rising, wanted.clamp(rising[0], rising[-1])).clamp(1, self.t_max)
        left = right - 1
        share = ((wanted - rising[left]) / (rising[right] - rising[left])).clamp(0, 1)
        return left + torch.where(wanted == rising[right], torch.ones_like(share), share)

    def _lookup(self, index: Tensor) -> Tensor:
        if index.device.type == "cpu" and not torch.compiler.is_compiling():
            outside = index[(index < -1) | (index >= self.num_steps)]
            if outside.numel():
                raise InputError(f"step index must lie in -1 ... {self.t_max}, got {int(outside[0])}")
        if index.device not in self._tables:
            self._tables[index.device] = self._tables[self.alphas_cumprod.device].to(index.device)
        return self._tables[index.device][index + 1]

    def _time(self, t: Time) -> Tensor:
        return t if isinstance(t, Tensor) else _as_time(t, self.alphas_cumprod.device)


@dataclass(frozen=True, eq=False)
class ContinuousSchedule:
    """A schedule over a continuous time.

    Attributes:
        kind: Name of the family.
        level_at: float64 time -> `Level`.
        time_at: float64 log signal-to-noise ratio -> time, the exact inverse.
        t_min: The least time that sampling should visit.
        t_max: The greatest time.
    """

    kind: str
    level_at: Callable[[Tensor], Level]
    time_at: Callable[[Tensor], Tensor]
    t_min: float = 0.0
    t_max: float = 1.0

    def level(self, t: Time) -> Level:
        """Return (α, σ) at times of any shape."""
        return self.level_at(_as_time(t).double())

    def alpha(self, t: Time) -> Tensor:
        """Return α at times of any shape."""
        return self.level(t).alpha

    def sigma(self, t: Time) -> Tensor:
        """Return σ at times of any shape."""
        return self.level(t).sigma

    def log_snr(self, t: Time) -> Tensor:
        """Return log α²/σ² at times of any shape."""
        return self.level(t).log_snr

    def t_of_log_snr(self, log_snr: Tensor | float) -> Tensor:
        """Return the time of a log signal-to-noise ratio."""
        return self.time_at(_as_time(log_snr).double())


Schedule = TableSchedule | ContinuousSchedule


def beta_table(
    kind: str,
    num_steps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    *,
    rescale: bool = False,
) -> Tensor:
    """Return β_1 ... β_N of a family, float64, (N,).

    `linear` (Ho et al. 2020), `scaled_linear` (linear in √β; Stable Diffusion: 0.00085 to 0.012), `cosine`
    (Nichol and Dhariwal 2021, eq. 17, β capped at 0.999), `sigmoid` (sigmoid-shaped *β*), `sigmoid_alpha`
    (sigmoid-shaped *ᾱ*, Jabri et al. 2022, with start −3, end 3, τ = 1).

    Args:
        kind: One of `BETA_KINDS`.
        num_steps: N.
        beta_start: First β; read by linear, scaled_linear and sigmoid only.
        beta_end: Last β; likewise.
        rescale: Multiply β by 1000/N, so that another N ends at about the same level.

    Raises:
        InputError: On an unknown family or a β outside (0, 1).
    """
    check_choice("kind", kind, BETA_KINDS)
    check_number("num_steps", num_steps, low=1, integer=True)
    check_number("beta_start", beta_start, low=0, high=1, low_open=True, high_open=True)
    check_number("beta_end", beta_end, low=0, high=1, low_open=True, high_open=True)
    u = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    if kind == "linear":
        betas = torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64)
    elif kind == "scaled_linear":
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_steps, dtype=torch.float64) ** 2
    elif kind == "sigmoid":
        ramp = torch.sigmoid(torch.linspace(-6, 6, num_steps, dtype=torch.float64))
        betas = ramp * (beta_end - beta_start) + beta_start
    else:
        if kind == "cosine":
            curve = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        else:
            ramp = torch.sigmoid(6 * u - 3)
            curve = ramp[-1] - ramp
        betas = (1 - curve[1:] / curve[:-1]).clamp(max=0.999)
    if rescale:
        betas = betas * 1000 / num_steps
    if not bool(((betas > 0) & (betas < 1)).all()):
        raise InputError(f"betas must lie in (0, 1), got {betas.min():.4g} ... {betas.max():.4g}")
    return betas


def from_betas(betas: Tensor, kind: str = "custom") -> TableSchedule:
    """Return the schedule `ᾱ = ∏ (1 − β)` of given β in (0, 1); the last may be 1."""
    betas = torch.as_tensor(betas).double().cpu()
    if betas.ndim != 1 or not bool(((betas > 0) & (betas <= 1)).all()):
        raise InputError("betas must be a vector within (0, 1)")
    return TableSchedule(kind, torch.cumprod(1 - betas, 0))


def table_schedule(
    kind: str,
    num_steps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    *,
    rescale: bool = False,
) -> TableSchedule:
    """Return a discrete schedule of a family; the arguments are those of `beta_table`."""
    return from_betas(beta_table(kind, num_steps, beta_start, beta_end, rescale=rescale), kind)


def stable_diffusion() -> TableSchedule:
    """Return the schedule of Stable Diffusion: scaled_linear from 0.00085 to 0.012 in 1000 steps."""
    return table_schedule("scaled_linear", 1000, 0.00085, 0.012)


def zero_terminal(schedule: TableSchedule) -> TableSchedule:
    """Rescale a schedule so that its last level is pure noise, ᾱ_N = 0 (Lin et al. 2024, algorithm 1)."""
    root = schedule.alphas_cumprod.sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return TableSchedule(f"{schedule.kind}_zero_terminal", root**2)


def vp(beta_min: float = 0.1, beta_d: float = 19.9) -> ContinuousSchedule:
    """Return the variance-preserving SDE (Song et al. 2021): `log α = −¼ t² β_d − ½ t β_min`, t in [0, 1]."""

    def level(t: Tensor) -> Level:
        log_alpha = -0.25 * t**2 * beta_d - 0.5 * t * beta_min
        return Level(log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt())

    def time(log_snr: Tensor) -> Tensor:
        c = -torch.nn.functional.logsigmoid(log_snr)
        return 2 * c / (beta_min + (beta_min**2 + 2 * beta_d * c).sqrt())

    return ContinuousSchedule("vp", level, time, t_min=1e-5)


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0) -> ContinuousSchedule:
    """Return the variance-exploding SDE (Song et al. 2021): α = 1, `σ = σ_min (σ_max/σ_min)^t`."""
    ratio = math.log(sigma_max / sigma_min)
    return ContinuousSchedule(
        "ve",
        lambda t: Level(torch.ones_like(t), sigma_min * torch.exp(ratio * t)),
        lambda log_snr: (-0.5 * log_snr - math.log(sigma_min)) / ratio,
    )


def ou(t_max: float = 10.0) -> ContinuousSchedule:
    """Return the Ornstein-Uhlenbeck process `dX = −½ X dt + dW`: `α = e^{−t/2}`, `σ² = 1 − e^{−t}`."""
    return ContinuousSchedule(
        "ou",
        lambda t: Level(torch.exp(-t / 2), (-torch.expm1(-t)).sqrt()),
        lambda log_snr: -torch.nn.functional.logsigmoid(log_snr),
        t_min=1e-5,
        t_max=t_max,
    )


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> ContinuousSchedule:
    """Return the EDM path (Karras et al. 2022): α = 1 and `σ^{1/ρ}` linear in t from σ_min to σ_max."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return ContinuousSchedule(
        "edm",
        lambda t: Level(torch.ones_like(t), (low + t * (high - low)) ** rho),
        lambda log_snr: (torch.exp(-0.5 * log_snr / rho) - low) / (high - low),
    )


def cosine(offset: float = 0.008) -> ContinuousSchedule:
    """Return the cosine schedule in continuous time, without the cap: `ᾱ = f(t)/f(0)`, t in [0, 1].

    `f(t) = cos²(a)`, `a = (t + s)/(1 + s) · π/2`; `1 − ᾱ` is written as a product, which is exact near t = 0.
    """
    scale = math.pi / 2 / (1 + offset)
    a0 = offset * scale
    f0 = math.cos(a0) ** 2

    def level(t: Tensor) -> Level:
        a = (t + offset) * scale
        variance = torch.sin(t * scale) * torch.sin(a + a0) / f0
        return Level(torch.cos(a).clamp(min=0) / math.sqrt(f0), variance.sqrt())

    def time(log_snr: Tensor) -> Tensor:
        sine = (math.sin(a0) ** 2 + torch.sigmoid(-log_snr) * f0).sqrt()
        cosine_of_a = (torch.sigmoid(log_snr) * f0).sqrt()
        return (torch.atan2(sine, cosine_of_a) - a0) / scale

    return ContinuousSchedule("cosine", level, time, t_min=1e-5)


def shift_time(t: Tensor | float, shift: float) -> Tensor | float:
    """Return the shifted flow time `s t / (1 + (s − 1) t)` (Esser et al. 2024, eq. 23); s > 1 is noisier."""
    return shift * t / (1 + (shift - 1) * t)


def dynamic_shift(sequence_length: int) -> float:
    """Return the shift `e^μ` of a latent of L tokens, μ linear in L with μ(256) = 0.5 and μ(4096) = 1.15."""
    return math.exp(0.5 + (1.15 - 0.5) * (sequence_length - 256) / (4096 - 256))


def flow(shift: float = 1.0, *, clean_at_one: bool = False) -> ContinuousSchedule:
    """Return the straight path of rectified flow, `α = 1 − σ`, `σ = shift_time(t)`, t in [0, 1].

    Args:
        shift: s of `shift_time`; 1 leaves the time as it is.
        clean_at_one: Whether t runs from noise (0) to clean (1), as papers on robot policies often have it.
    """
    check_number("shift", shift, low=0, low_open=True)

    def level(t: Tensor) -> Level:
        sigma = shift_time(1 - t if clean_at_one else t, shift)
        return Level(1 - sigma, sigma)

    def time(log_snr: Tensor) -> Tensor:
        t = shift_time(torch.sigmoid(-0.5 * log_snr), 1 / shift)
        return 1 - t if clean_at_one else t

    return ContinuousSchedule("flow", level, time)
