"""Fitting the distribution of the initial noise, and what can be done with as many images instead."""

import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from noiseworks.core.checks import check_finite
from noiseworks.core.errors import InputError
from noiseworks.core.noise import mix64
from noiseworks.find.noise import NoisePolicy, RewardCalibrator
from noiseworks.find.objective import Weights, centred_ranks, find_policy_loss
from noiseworks.find.options import Fitting, Objective
from noiseworks.kits.training import Run, make_fabric, rounds
from torch import Tensor

# Turns unit noise [n, ...] and seeds of the chain's own noise into rewards [n].
Worth = Callable[[Tensor, Sequence[int]], Tensor]
WATCHED = 8  # iterations of one and the same reward, after which a fit says so


class Rollouts(NamedTuple):
    """Noise, what it was worth, and its log-probability when it was drawn."""

    z: Tensor
    rewards: Tensor
    log_probs: Tensor


class FIND:
    """Learns from which noise images of one prompt are worth most.

    Args:
        worth: Draws from noise and scores; a black box.
        shape: Of one sample's noise.
        text: The prompt's feature, for the calibrator [d].
        options: Length and step size.
        objective: The loss.

    Attributes:
        policy: The distribution.
        queries: Images scored so far.

    Raises:
        InputError: When pairs are wanted of an odd batch, or the cells do not divide the latents.
    """

    def __init__(
        self,
        worth: Worth,
        shape: Sequence[int],
        text: Tensor,
        options: Fitting = Fitting(),
        objective: Objective = Objective(),
    ) -> None:
        if objective.antithetic and options.batch_size % 2:
            raise InputError(f"antithetic noise needs an even batch_size, got {options.batch_size}")
        self.worth, self.options, self.objective = worth, options, objective
        self.fabric = make_fabric(options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            self.policy = NoisePolicy(shape, objective.cells).to(self.fabric.device)
            self.calibrator = RewardCalibrator(shape, len(text)).to(self.fabric.device)
        self.initial = NoisePolicy(shape).to(self.fabric.device).requires_grad_(False)
        self.text = text.detach().float().to(self.fabric.device)
        rate = options.learning_rate
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), rate, weight_decay=0)
        self.calibrator_optimizer = torch.optim.AdamW(self.calibrator.parameters(), objective.calibrator_rate)
        self.kept: deque[Rollouts] = deque(maxlen=objective.replay + 1)
        self.rewards: list[float] = []
        self.queries = 0
        self._said: set[str] = set()

    def fit(self, run: Run | None = None, *, progress: bool = True) -> NoisePolicy:
        """Do the iterations that are left and return the distribution.

        Args:
            run: The open run, or None to keep nothing.
            progress: Whether to show a bar.
        """
        rounds(self, run=run, options=self.options, fabric=self.fabric, progress=progress)
        return self.policy

    def round(self, step: int) -> Mapping[str, float]:
        """Draw, score, calibrate and move the distribution by one step."""
        numbers, pairs = range(self.options.batch_size), self.objective.antithetic
        z, chain = (
            [mix64(self.options.seed, step, stream, number) >> 2 for number in numbers] for stream in (0, 1)
        )
        noise = self.policy.sample(z[::2] if pairs else z, pairs)
        rewards = self.worth(noise, chain).to(noise)
        if rewards.shape != (len(noise),):
            raise InputError(
                f"{len(noise)} images and rewards of shape {tuple(rewards.shape)}: give one an image"
            )
        check_finite("the reward", rewards, step)
        rewards = rewards.clamp(min=0) if self.objective.positive else rewards
        self.queries += len(noise)
        self.kept.append(Rollouts(noise, rewards, self.policy.log_prob(noise).detach()))
        calibrated = self.objective.advantage == "calibrated"
        expected = self._calibrate(rewards) if calibrated else rewards.new_zeros(())
        figures = self._improve(expected)
        self.rewards.append(float(rewards.mean()))
        self._warn(step, figures)
        return figures | {
            "reward": self.rewards[-1],
            "expected": float(expected),
            "queries": float(self.queries),
        }

    def _calibrate(self, rewards: Tensor) -> Tensor:
        """Update the calibrator on the present distribution, and return what it then expects."""
        self.calibrator_optimizer.zero_grad()
        (self.calibrator(self.policy, self.text) - rewards).square().mean().backward()
        self.calibrator_optimizer.step()
        with torch.no_grad():
            return self.calibrator(self.policy, self.text)

    def _improve(self, expected: Tensor) -> dict[str, float]:
        settings = self.objective
        z, rewards, old = (torch.cat(parts) for parts in zip(*self.kept, strict=True))
        if settings.ratio_reference == "initial":
            old = self.initial.log_prob(z)
        ranks = settings.advantage == "ranks"
        advantages = (
            torch.cat([centred_ranks(one.rewards) for one in self.kept]) if ranks else rewards - expected
        )
        log_ratio = self.policy.log_prob(z) - old
        weights = Weights(settings.clip, settings.reward_weight, settings.penalty_weight)
        penalty = self.policy.penalty(settings.penalty)
        loss = find_policy_loss(log_ratio, advantages, penalty, weights, settings.surrogate)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.policy.clamp_std()
        outside = (log_ratio.detach().exp() - 1).abs() > settings.clip
        mean, std = self.policy.mean.detach(), self.policy.std.detach()
        return {
            "loss": float(loss.detach()),
            "clamped": float(outside.float().mean()),
            "mean_abs": float(mean.abs().mean()),
            "std": float(std.mean()),
            "std_min": float(std.min()),
        }

    def _warn(self, step: int, figures: Mapping[str, float]) -> None:
        same = step + 1 == WATCHED and len(set(self.rewards)) == 1
        far = figures["std_min"] < 0.2 or figures["mean_abs"] > 0.5
        found = {
            f"the reward was the same in all of {WATCHED} iterations; there is nothing to learn from": same,
            "the noise is far from standard normal: a sigma below 0.2, or a mean |mu| above 0.5": far,
            "a fifth of the ratios is clamped and teaches nothing; use ratio_reference behaviour": figures[
                "clamped"
            ]
            > 0.2,
        }
        for text, true in found.items():
            if true and text not in self._said:
                self._said.add(text)
                warnings.warn(f"iteration {step}: {text}", stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        """Return distribution, calibrator, optimisers, rollouts that are kept and counters."""
        return {
            "policy": self.policy.state_dict(),
            "calibrator": self.calibrator.state_dict(),
            "optimizers": [one.state_dict() for one in (self.optimizer, self.calibrator_optimizer)],
            "kept": [list(one) for one in self.kept],
            "rewards": self.rewards,
            "queries": self.queries,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.policy.load_state_dict(state["policy"])
        self.calibrator.load_state_dict(state["calibrator"])
        for one, saved in zip((self.optimizer, self.calibrator_optimizer), state["optimizers"], strict=True):
            one.load_state_dict(saved)
        device = self.fabric.device
        self.kept.extend(Rollouts(*(part.to(device) for part in one)) for one in state["kept"])
        self.rewards, self.queries = list(state["rewards"]), state["queries"]


def best_noise(worth: Worth, shape: Sequence[int], images: int, seed: int, each: int = 4) -> Tensor:
    """Return the best of `images // each` noises, each drawn from `each` times [...]: the plainest use of a budget."""
    policy, count = NoisePolicy(shape), max(1, images // each)
    z = policy.sample([mix64(seed, number, 0) >> 2 for number in range(count)])
    chain = [mix64(seed, number, 1) >> 2 for number in range(count * each)]
    rewards = worth(z.repeat_interleave(each, 0), chain).view(count, each).mean(1)
    return z[int(rewards.argmax())]


def cross_entropy(worth: Worth, shape: Sequence[int], images: int, seed: int, batch: int = 24) -> NoisePolicy:
    """Return a distribution whose mean follows the better third of each batch (the cross-entropy method)."""
    policy = NoisePolicy(shape)
    for turn in range(max(1, images // batch)):
        z = policy.sample([mix64(seed, turn, number, 0) >> 2 for number in range(batch)])
        rewards = worth(z, [mix64(seed, turn, number, 1) >> 2 for number in range(batch)])
        elite = z[rewards.argsort(descending=True)[: max(1, batch // 3)]]
        with torch.no_grad():
            policy.mean.lerp_(elite.mean(0, keepdim=True), 0.5)
    return policy
