"""The trajectory optimiser (section 3.2): diffusion over states, entered late with a draft, or from noise."""

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.core.grids import timesteps
from noiseworks.core.params import guide, to_x0
from noiseworks.core.schedules import TableSchedule, add_noise, from_betas, table_schedule
from noiseworks.core.steps import ddim_step, ddpm_step
from noiseworks.kits.policies.unet import ConditionalUnet1D
from noiseworks.trajectory_diffuser.options import Architecture, Planning
from torch import Tensor, nn

DROP_RETURN = 0.5  # share of the training windows whose return is hidden


def make_schedule(kind: str, num_steps: int) -> TableSchedule:
    """Return the noise schedule: `linear` from 0.001 to 0.02, `cosine`, or `vp` from 0.1 to 10."""
    if kind == "vp":
        t = torch.arange(1, num_steps + 1, dtype=torch.float64)
        betas = 1 - torch.exp(-0.1 / num_steps - 0.5 * 9.9 * (2 * t - 1) / num_steps**2)
        return from_betas(betas, "vp")
    return table_schedule(kind, num_steps, 1e-3, 2e-2)


class Refiner(nn.Module):
    """ε(x, t, R): the noise of states [B, H, Do], given the wished return or none.

    Args:
        obs_dim: Width of a state.
        architecture: Sizes and schedule.
    """

    def __init__(self, obs_dim: int, architecture: Architecture) -> None:
        super().__init__()
        width = architecture.features
        self.schedule = make_schedule(architecture.schedule, architecture.num_steps)
        self.net = ConditionalUnet1D(
            obs_dim,
            global_cond_dim=width,
            diffusion_step_embed_dim=width,
            down_dims=[width * 2**level for level in range(architecture.levels)],
            cond_predict_scale=False,
        )
        self.embed = nn.Sequential(nn.Linear(1, 2 * width), nn.Mish(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, t: Tensor, returns: Tensor, shown: Tensor) -> Tensor:
        """Return the noise [B, H, Do] of x [B, H, Do] at indices t [B] for returns [B], hidden where shown [B] is 0."""
        return self.net(x, t, global_cond=self.embed(returns[:, None]) * shown[:, None])

    def epsilon(self, x: Tensor, t: int, returns: Tensor, guidance: float) -> Tensor:
        """Return the guided noise ε_u + w (ε_c - ε_u) of candidates, both branches in one batch.

        Args:
            x: [B, K, H, Do], K candidates of each of B plans.
            t: Index.
            returns: [B].
            guidance: w.
        """
        shown = {0.0: (0.0,), 1.0: (1.0,)}.get(guidance, (0.0, 1.0))
        rows, each = x.flatten(0, 1), x.shape[1]
        cond = torch.cat([self.embed(returns[:, None]) * weight for weight in shown])
        index = torch.full((len(cond),), t, device=x.device)
        # The modulations do not depend on x: candidates share them.
        films = self.net.films(self.net.global_feature(index, cond))
        films = [film.repeat_interleave(each, 0) for film in films] if each > 1 else films
        found = self.net.trunk(rows.repeat(len(shown), 1, 1), films).unflatten(0, (len(shown), *x.shape[:2]))
        return found[0] if len(shown) == 1 else guide(found[0], found[1], guidance)


def refiner_loss(
    refiner: Refiner,
    states: Tensor,
    condition: tuple[Tensor, Tensor],
    t: Tensor,
    noise: Tensor,
    *,
    clean_start: bool = False,
) -> Tensor:
    """Return the squared error of the noise, whose first state has none (eq. 5).

    Args:
        refiner: ε.
        states: Windows [B, H, Do].
        condition: Return of each window's first step, and 1 where it is given, [B] each.
        t: Indices [B].
        noise: Standard normal, as the states; its first state's part is not used.
        clean_start: Whether the first state is shown as it is, and not scaled with the level.
    """
    noise = torch.cat((torch.zeros_like(noise[:, :1]), noise[:, 1:]), 1)
    noisy = add_noise(states, noise, refiner.schedule.level(t))
    if clean_start:
        noisy = torch.cat((states[:, :1], noisy[:, 1:]), 1)
    return (refiner(noisy, t, *condition) - noise).square().mean()


@torch.no_grad()
def refine(
    refiner: Refiner,
    draft: Tensor,
    returns: Tensor,
    planning: Planning | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return refined plans [B, K, H, Do] of any draft [B, H, Do], whose first state is the current one (alg. 1).

    The draft is taken for a sample at index steps - 1; the current state is put back after every step.

    Args:
        refiner: ε.
        draft: In the planner's units.
        returns: Wished return of each, scaled, [B].
        planning: Steps, guidance, candidates K, and whether the draft gets noise first; 0 steps return the draft.
        generator: Of the noise.

    Raises:
        InputError: When there are more steps than the schedule has, or a wished return is not finite.
    """
    planning = planning or Planning()
    steps = _checked(refiner, planning, returns)
    shape = (len(draft), planning.candidates, *draft.shape[1:])
    if steps == 0:
        return draft[:, None].expand(shape)
    current, x = draft[:, None, :1], draft[:, None]
    if planning.noisy_draft:
        noise = torch.randn(shape, generator=generator).to(draft)
        x = _put(add_noise(x.expand(shape), noise, refiner.schedule.level(steps - 1)), current)
    for t in range(steps - 1, -1, -1):
        x0 = to_x0(refiner.epsilon(x, t, returns, planning.guidance), x, refiner.schedule.level(t), "epsilon")
        # Until the first noise all candidates of a plan are one.
        noise = torch.randn(shape, generator=generator).to(draft) if t else None
        x = ddpm_step(x, x0, refiner.schedule.level(t), refiner.schedule.level(t - 1), noise=noise).sample
        x = _put(x, current)
    return x.expand(shape)


@torch.no_grad()
def from_noise(
    refiner: Refiner,
    current: Tensor,
    returns: Tensor,
    horizon: int,
    planning: Planning | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return plans [B, K, H, Do] from noise, as planners without a draft make them.

    Args:
        refiner: ε.
        current: Current states [B, Do].
        returns: Wished returns, scaled, [B].
        horizon: H.
        planning: Guidance, candidates K and DDIM steps; without steps all of the schedule's own (ancestral) ones.
        generator: Of the noise.

    Raises:
        InputError: As `refine`.
    """
    planning = planning or Planning(start="noise", steps=None)
    schedule, steps = refiner.schedule, _checked(refiner, planning, returns)
    shape, first = (len(current), planning.candidates, horizon, current.shape[1]), current[:, None, None]
    x = _put(torch.randn(shape, generator=generator).to(current), first)
    grid = timesteps("trailing", schedule.num_steps, steps).tolist()
    for t, after in zip(grid, [*grid[1:], -1], strict=True):
        epsilon = refiner.epsilon(x, t, returns, planning.guidance)
        x0, levels = (
            to_x0(epsilon, x, schedule.level(t), "epsilon"),
            (schedule.level(t), schedule.level(after)),
        )
        if planning.steps is None:
            noise = torch.randn(shape, generator=generator).to(current) if t else None
            x = ddpm_step(x, x0, *levels, noise=noise).sample
        else:
            x = ddim_step(x, x0, *levels).sample
        x = _put(x, first)
    return x


def _checked(refiner: Refiner, planning: Planning, returns: Tensor) -> int:
    """Return the steps of a plan."""
    total = refiner.schedule.num_steps
    steps = total if planning.steps is None else planning.steps
    check_number("steps", steps, low=0, high=total, integer=True)
    if not bool(returns.isfinite().all()):
        raise InputError("a wished return is NaN or infinite; give a finite target")
    return steps


def _put(x: Tensor, current: Tensor) -> Tensor:
    """Return x [B, K, H, Do] with the current state [B, 1, 1, Do] as its first."""
    return torch.cat((current.expand(-1, x.shape[1], -1, -1), x[:, :, 1:]), 2)
