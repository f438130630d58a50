"""LinearAG: the unconditional prediction as a linear regression on past predictions (paper section 5).

Estimate: e_u(k) = sum_{i<=k} beta_c[k, i] e_c(i) + sum_{i<k} beta_u[k, i] e_u(i), with scalar coefficients
that all entries, samples and prompts share. The exact least-squares fit of every step comes from one Gram
matrix of size 2T, so no trajectory is stored, and Gram matrices of several workers add up.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from noiseworks.core.artifacts import load_artifact, save_artifact
from noiseworks.core.checks import check_finite, check_number
from noiseworks.core.errors import ArtifactError, InputError
from noiseworks.linear_ag.guidance import GuidanceState
from noiseworks.linear_ag.policies import GuidancePolicy, RunSettings
from torch import Tensor

KIND = "linear-ag/coefficients"
_TENSORS = ("beta_cond", "beta_uncond", "intercept", "r2", "r2_copy")


@dataclass(frozen=True, eq=False)
class LinearCoefficients:
    """The coefficients of LinearAG and what they were fitted on.

    Attributes:
        beta_cond: beta_c, float64 `[T, T]`, lower triangular.
        beta_uncond: beta_u, float64 `[T, T]`, strictly lower triangular.
        intercept: One constant a step, float64 `[T]`, zero unless fitted with one.
        r2: Coefficient of determination of each step's regression, `[T]`.
        r2_copy: The same for the trivial copy e_u := e_c, `[T]`.
        settings: The run that the coefficients hold for; `check` refuses others.
    """

    beta_cond: Tensor
    beta_uncond: Tensor
    intercept: Tensor
    r2: Tensor
    r2_copy: Tensor
    settings: RunSettings | None = None

    def __post_init__(self):
        for name in ("beta_cond", "beta_uncond", "intercept"):
            check_finite(name, getattr(self, name))

    @property
    def num_steps(self) -> int:
        """T."""
        return self.beta_cond.shape[0]

    def check(self, found: RunSettings) -> None:
        """Refuse a run that differs from the one that the coefficients were fitted on.

        Raises:
            InputError: Naming the first thing that differs.
        """
        if found.num_steps != self.num_steps:
            raise InputError(
                f"coefficients are for {self.num_steps} steps, this run has {found.num_steps}: fit again"
            )
        if self.settings is None:
            return
        for name in ("model", "scheduler", "sample_shape", "guidance_scale"):
            fitted, here = getattr(self.settings, name), getattr(found, name)
            if fitted is not None and here is not None and fitted != here:
                raise InputError(
                    f"coefficients were fitted with {name} {fitted}, this run has {here}: fit again"
                )
        if abs(found.checksum - self.settings.checksum) > 0.01 * abs(self.settings.checksum):
            raise InputError("coefficients were fitted on other weights than this model's: fit again")
        _check_uncond(self.settings.uncond, found.uncond)

    def save_pretrained(self, path: str | Path) -> None:
        """Write `config.json` and `model.safetensors` to a directory, atomically."""
        config, extra = settings_record(self.settings)
        save_artifact(path, KIND, config, {**{name: getattr(self, name) for name in _TENSORS}, **extra})

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "LinearCoefficients":
        """Read coefficients that `save_pretrained` wrote.

        Raises:
            ArtifactError: When the directory is missing, corrupt or of another kind.
        """
        config, tensors = load_artifact(path, KIND, loose=("r2",))
        if missing := [name for name in _TENSORS if name not in tensors]:
            raise ArtifactError(f"the coefficients in {path} lack {', '.join(missing)}; fit again")
        return cls(**{name: tensors[name] for name in _TENSORS}, settings=settings_from(config, tensors))


def settings_record(settings: RunSettings | None) -> tuple[dict, dict[str, Tensor]]:
    """Return the JSON part and the tensor part of a run's settings, for an artifact."""
    if settings is None:
        return {"settings": None}, {}
    config = {k: v for k, v in asdict(settings).items() if k != "uncond"}
    return {"settings": config}, {} if settings.uncond is None else {"uncond": settings.uncond}


def settings_from(config: dict, tensors: dict[str, Tensor]) -> RunSettings | None:
    """Return the settings that `settings_record` took apart."""
    if config.get("settings") is None:
        return None
    record = {**config["settings"], "sample_shape": tuple(config["settings"]["sample_shape"])}
    return RunSettings(**record, uncond=tensors.get("uncond"))


@dataclass(frozen=True)
class LinearGuidance(GuidancePolicy):
    """A fixed policy in which some unconditional predictions are regressed instead of evaluated.

    Attributes:
        coefficients: From `fit_linear` or `LinearCoefficients.from_pretrained`.
        actions: One digit a step of 1 (cond), 2 (CFG), 3 (regressed); by default `paper_policy(T)`.
    """

    coefficients: LinearCoefficients | None = None
    actions: str = ""

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.coefficients, LinearCoefficients):
            raise InputError(f"coefficients must be LinearCoefficients, got {self.coefficients!r}")
        steps = self.coefficients.num_steps
        if not self.actions:
            object.__setattr__(self, "actions", paper_policy(steps))
        if set(self.actions) - set("123"):
            raise InputError(f"a LinearAG policy has one digit of 1, 2 or 3 a step, got {self.actions!r}")
        if len(self.actions) != steps:
            raise InputError(f"the policy has {len(self.actions)} steps, the coefficients are for {steps}")

    @property
    def nfe(self) -> int:
        """Network evaluations of a run."""
        return sum(2 if digit == "2" else 1 for digit in self.actions)

    @property
    def history(self) -> int:
        """Steps up to the last regressed one; nothing is kept after it."""
        return self.actions.rfind("3") + 1

    def check_run(self, settings: RunSettings) -> None:
        """Refuse a run other than the coefficients'.

        Raises:
            InputError: Naming what differs.
        """
        self.coefficients.check(settings)

    def decide(self, step: int, state: GuidanceState) -> Tensor:
        """Return the action of a step for every sample."""
        return torch.full((state.batch,), int(self.actions[step]))

    def estimate(self, step: int, cond: Tensor, uncond: Tensor) -> Tensor:
        """Return the regression's unconditional prediction, `[B, ...]`."""
        return estimate_uncond(self.coefficients, step, cond, uncond)


def paper_policy(num_steps: int) -> str:
    """Return CFG and regressed steps in turn over the first half, then conditional ones (25 at T = 20)."""
    half = num_steps // 2
    return "".join("23"[k % 2] if k < half else "1" for k in range(num_steps))


def every_second_policy(num_steps: int) -> str:
    """Return CFG and regressed steps in turn to the end, without truncation (30 evaluations at T = 20)."""
    return "".join("23"[k % 2] for k in range(num_steps))


def estimate_uncond(coefficients: LinearCoefficients, step: int, cond: Tensor, uncond: Tensor) -> Tensor:
    """Return the regression at step k, in float32 where the predictions are of half precision.

    Past predictions are nearly collinear, so that their coefficients may be large and cancel: rounded to half
    precision they would add more error than the predictions' own rounding.

    Args:
        coefficients: The coefficients.
        step: k.
        cond: e_c(0..k), `[k + 1, B, ...]`.
        uncond: e_u(0..k-1) or what took its place, `[k, B, ...]`.
    """
    cond = cond.to(torch.promote_types(cond.dtype, torch.float32))
    beta_c = coefficients.beta_cond[step, : step + 1].to(cond)
    estimate = torch.tensordot(beta_c, cond, dims=1) + float(coefficients.intercept[step])
    if step:
        beta_u = coefficients.beta_uncond[step, :step].to(cond)
        estimate += torch.tensordot(beta_u, uncond.to(cond), dims=1)
    return estimate


def gram_matrix(cond: Tensor, uncond: Tensor, target: Tensor | None = None) -> Tensor:
    """Return the Gram matrix of a batch of runs, float64, of size 2 T + 1, or 3 T + 1 with targets.

    The stacked rows are e_c(0..T-1), e_u(0..T-1), optionally the true e_u(0..T-1) where `uncond` holds what a
    LinearAG run fed back, and a row of ones. Matrices of several batches or workers add up.

    Args:
        cond: `[T, B, ...]`.
        uncond: `[T, B, ...]`.
        target: `[T, B, ...]` or None when `uncond` itself is the target.
    """
    blocks = [cond, uncond] if target is None else [cond, uncond, target]
    rows = torch.cat([block.flatten(1) for block in blocks]).double()
    rows = torch.cat([rows, rows.new_ones(1, rows.shape[1])])
    return rows @ rows.T


def fit_from_gram(
    gram: Tensor,
    num_steps: int,
    ridge: float = 1e-7,
    intercept: bool = False,
    settings: RunSettings | None = None,
) -> LinearCoefficients:
    """Return the least-squares coefficients of every step: sub-blocks of the Gram matrix solve them.

    Args:
        gram: Sum of `gram_matrix` over batches.
        num_steps: T.
        ridge: Added to the diagonal of the normal equations scaled to unit diagonal.
        intercept: Whether to fit a constant.
        settings: Kept with the coefficients.

    Raises:
        InputError: When the ridge is negative or the matrix is of another size.
    """
    check_number("ridge", ridge, low=0.0)
    T = num_steps
    if gram.shape[0] not in (2 * T + 1, 3 * T + 1):
        raise InputError(f"a Gram matrix of {gram.shape[0]} rows does not belong to {T} steps")
    beta = torch.zeros(T, 2 * T + 1, dtype=torch.float64)
    for k in range(T):
        index = _regressors(k, T, gram.shape[0] - 1 if intercept else None)
        solution = _solve(gram[index][:, index], gram[index, _target(k, T, gram)], ridge)
        slots = [*index[:-1], 2 * T] if intercept else index
        beta[k, slots] = solution
    copy = torch.zeros_like(beta)
    copy[:, :T] = torch.eye(T, dtype=torch.float64)
    return LinearCoefficients(
        beta_cond=beta[:, :T],
        beta_uncond=beta[:, T : 2 * T],
        intercept=beta[:, 2 * T],
        r2=r2_from_gram(gram, beta),
        r2_copy=r2_from_gram(gram, copy),
        settings=settings,
    )


def r2_of(coefficients: LinearCoefficients, gram: Tensor) -> Tensor:
    """Return R^2 of every step on runs with the given Gram matrix, for instance held-out ones; `[T]`."""
    parts = (coefficients.beta_cond, coefficients.beta_uncond, coefficients.intercept[:, None])
    return r2_from_gram(gram, torch.cat(parts, dim=1))


def r2_from_gram(gram: Tensor, beta: Tensor) -> Tensor:
    """Return 1 - RSS / TSS of every step, `[T]`; TSS is about 0, as there is no intercept by default.

    Args:
        gram: Gram matrix.
        beta: `[T, 2 T + 1]`: coefficients of e_c, of e_u and the constant.
    """
    T = beta.shape[0]
    index = [*range(2 * T), gram.shape[0] - 1]
    inner = gram[index][:, index]
    targets = [_target(k, T, gram) for k in range(T)]
    total = gram[targets, targets]
    cross = gram[index][:, targets]
    residual = total - 2 * (beta * cross.T).sum(dim=1) + torch.einsum("ki,ij,kj->k", beta, inner, beta)
    return 1.0 - residual / total


def _regressors(step: int, num_steps: int, constant: int | None) -> list[int]:
    index = [*range(step + 1), *range(num_steps, num_steps + step)]
    return index if constant is None else [*index, constant]


def _target(step: int, num_steps: int, gram: Tensor) -> int:
    return (num_steps if gram.shape[0] == 2 * num_steps + 1 else 2 * num_steps) + step


def _solve(matrix: Tensor, right: Tensor, ridge: float) -> Tensor:
    # Neighbouring steps are nearly collinear: scale to unit diagonal, then drop null directions.
    scale = matrix.diagonal().clamp_min(torch.finfo(matrix.dtype).tiny).rsqrt()
    values, vectors = torch.linalg.eigh(scale[:, None] * matrix * scale)
    keep = values > 1e-13 * values[-1]
    inverse = torch.where(keep, 1.0 / (values + ridge), torch.zeros_like(values))
    return scale * (vectors @ (inverse * (vectors.T @ (scale * right))))


def _check_uncond(fitted: Tensor | None, here: Tensor | None) -> None:
    if fitted is None or here is None:
        return
    if fitted.shape != here.shape or float((fitted - here).norm()) > 0.02 * float(fitted.norm()):
        raise InputError("coefficients were fitted with another negative prompt: fit again")
