"""Masks without training (section 3.4): logits of one image's own, moved by rewards of the image that is predicted.

It is a hook on the denoiser: at each step the host asks once and gets the prediction of the last of R iterations, so
every pipeline, scheduler and guidance formula stays as it is.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.core.checks import check_finite
from noiseworks.core.errors import UnsupportedHostError
from noiseworks.core.noise import mix64
from noiseworks.kits.attachments import Wrap, attach
from noiseworks.kits.diffusers_hosts.drawing import Prompts, draw
from noiseworks.kits.diffusers_hosts.forecasts import decode_latents, forecast
from noiseworks.kits.diffusers_hosts.hooks import DenoiserCall, DenoiserHook, attach_hook
from noiseworks.kits.diffusers_hosts.layouts import denoiser_of
from noiseworks.kits.diffusers_hosts.options import Sampling
from noiseworks.kits.diffusers_hosts.rows import prediction_of, replace_prediction
from noiseworks.kits.weight_masks import linear_of
from noiseworks.maskunet.masked_linear import Draw, Logits, masked_linear
from noiseworks.maskunet.masking import NAME, masked_layers
from noiseworks.maskunet.options import RewardSchedule
from noiseworks.maskunet.rewarding import Weighted, total_reward
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True, eq=False)
class MaskRun:
    """What an optimised run gave.

    Attributes:
        images: [n, 3, H, W] in [0, 1].
        rewards: A tensor a denoising step, [R, n]: the total reward of every iteration.
        sparsity: Share of the weights that are off, a value a step.
        calls: Passes of the denoiser for a sample.
    """

    images: Tensor
    rewards: tuple[Tensor, ...]
    sparsity: tuple[float, ...]
    calls: int


@dataclass
class _Learned:
    """The logits of one run of B samples, and the optimiser that is not reset between steps."""

    logits: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    seeds: list[int]
    rewards: list[Tensor] = field(default_factory=list)
    sparsity: list[float] = field(default_factory=list)


class _Optimiser(DenoiserHook):
    """Optimises the masks of each step before the host gets its prediction."""

    batch_rows = "any"

    def __init__(self, pipe: "DiffusionPipeline", scorers: Weighted, schedule: RewardSchedule) -> None:
        super().__init__(pipe)
        self.scorers, self.schedule = scorers, schedule
        self.prompts: Sequence[str] = ()
        self.seeds: Sequence[int] = ()
        self.paths = [path for paths in masked_layers(self.denoiser).values() for path in paths]
        self.runs: list[_Learned] = []
        self._current: _Learned | None = None
        self._iteration = 0

    def begin_run(self, call: DenoiserCall) -> _Learned:
        """Make the logits, all at their start, one set a sample."""
        logits = {}
        for path in self.paths:
            shape = linear_of(self.denoiser, path).weight.shape
            start = torch.full((call.run.batch, *shape), self.schedule.start_logit, device=call.sample.device)
            logits[path] = start.requires_grad_()
        rate, decay = self.schedule.mask_rate, self.schedule.mask_decay
        optimizer = torch.optim.AdamW(list(logits.values()), lr=rate, weight_decay=decay)
        made = _Learned(logits, optimizer, list(self.seeds))
        self.runs.append(made)
        return made

    def denoise(self, call: DenoiserCall) -> Any:
        """Evaluate R times, learn from each, and give the host the last."""
        state, step, plan = call.run.state, call.run.step, self.schedule
        if plan.solver_state == "released" and hasattr(call.run.scheduler, "model_outputs"):
            # every pass of the released code sets the timesteps anew, which empties the history
            call.run.scheduler.model_outputs = [None] * len(call.run.scheduler.model_outputs)
            call.run.scheduler.lower_order_nums = 0
        warm = step < plan.warm_steps
        rewards = []
        for iteration in range(1 if warm else plan.iterations):
            # a step after which the logits begin anew never uses its last update
            learns = not warm and (iteration < plan.iterations - 1 or plan.reuse_last == "after-update")
            with self._masked(state, step, iteration), torch.set_grad_enabled(learns):
                output = self.evaluate(call)
                reward = self._reward(call, output)
            rewards.append(reward.detach())
            if learns:
                self._learn(state, reward, step)
        if plan.reuse_last == "after-update" and not warm:
            with self._masked(state, step, plan.iterations), torch.no_grad():
                output = self.evaluate(call)
        state.rewards.append(torch.stack(rewards).cpu())
        state.sparsity.append(self._sparsity(state))
        with torch.no_grad():
            for values in state.logits.values():
                values.fill_(plan.start_logit)
        return _detached(output)

    def _reward(self, call: DenoiserCall, output: Any) -> Tensor:
        images = decode_latents(call.run.pipe, forecast(call, output)).float()
        reward = total_reward(self.scorers, images, self.prompts)
        check_finite("the reward", reward.detach(), call.run.step)
        return reward

    def _learn(self, state: _Learned, reward: Tensor, step: int) -> None:
        values = list(state.logits.values())
        found = torch.autograd.grad(reward, values, -torch.ones_like(reward))
        for one, gradient in zip(values, found, strict=True):
            one.grad = gradient
        state.optimizer.step()

    @contextmanager
    def _masked(self, state: _Learned, step: int, iteration: int) -> Iterator[None]:
        self._current, self._iteration = state, mix64(step, iteration)
        try:
            yield
        finally:
            self._current = None

    def _sparsity(self, state: _Learned) -> float:
        with torch.no_grad():
            kept = [-torch.expm1(-values.exp()) for values in state.logits.values()]
            return 1 - float(torch.cat([one.flatten() for one in kept]).mean())

    def layer(self, number: int, path: str) -> Callable[..., Tensor]:
        """Return what takes the place of a layer's forward: masks of the sample that each batch row belongs to."""
        layer = linear_of(self.denoiser, path)

        def forward(beneath: Callable[..., Tensor], x: Tensor) -> Tensor:
            state = self._current
            if state is None:
                return beneath(x)
            samples = len(state.seeds)
            times = len(x) // samples  # the roles of guidance stand one behind the other
            keys = [mix64(seed, self._iteration, number) >> 2 for seed in state.seeds]
            draw = Draw(seed=0, first_row=keys)
            if times == 1:
                return masked_linear(x, layer.weight, layer.bias, Logits(state.logits[path]), draw)
            # both halves of a sample share its mask, so they are looked at as one longer row
            own = x.reshape(times, samples, *x.shape[1:]).transpose(0, 1)
            out = masked_linear(own, layer.weight, layer.bias, Logits(state.logits[path]), draw)
            return out.transpose(0, 1).reshape(*x.shape[:-1], len(layer.weight))

        return forward


def _detached(output: Any) -> Any:
    return replace_prediction(output, prediction_of(output).detach())


def optimise_masks(
    pipe: "DiffusionPipeline",
    prompts: Prompts,
    scorers: Weighted,
    schedule: RewardSchedule = RewardSchedule(),
    sampling: Sampling = Sampling(num_inference_steps=15),
    progress: Callable[[int, int], None] | None = None,
) -> MaskRun:
    """Draw prompts with masks that are optimised for each image while it is drawn.

    Args:
        pipe: A text-to-image pipeline.
        prompts: The prompts; each image has masks of its own, also where several are drawn at once.
        scorers: What images are optimised for, with weights.
        schedule: How.
        sampling: How images are drawn.
        progress: Called with (samples done, samples in all).

    Returns:
        The images, and the rewards on the way.

    Raises:
        UnsupportedHostError: When the pipeline calls its denoiser once for each role of guidance (FLUX).
        NonFiniteError: When a reward is NaN or infinite, naming the step.
    """
    hook = _Optimiser(pipe, scorers, schedule)
    if hook.layout.calls == "contexts":
        raise UnsupportedHostError(
            "masks are optimised where one call holds all roles of guidance, which FLUX does not do"
        )
    denoiser_of(pipe).requires_grad_(False)
    parts = [Wrap(linear_of(hook.denoiser, path), hook.layer(k, path)) for k, path in enumerate(hook.paths)]
    images, size = [], sampling.batch_size
    with attach_hook(hook, f"{NAME} rewards"), attach(NAME, parts):
        drawing = draw(pipe, prompts, sampling, "pt", progress)
        for first in range(0, len(prompts), size):
            hook.prompts = list(prompts[first : first + size])
            numbers = range(first, first + len(hook.prompts))
            hook.seeds = [mix64(schedule.optimise_seed + number) for number in numbers]
            images.append(next(drawing).float().cpu())
    rewards = tuple(
        torch.cat(parts, dim=1) for parts in zip(*(run.rewards for run in hook.runs), strict=True)
    )
    sparsity = torch.tensor([run.sparsity for run in hook.runs]).mean(0)
    calls = schedule.passes(sampling.num_inference_steps)
    return MaskRun(torch.cat(images), rewards, tuple(sparsity.tolist()), calls)
