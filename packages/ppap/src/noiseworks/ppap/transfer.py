"""The transfer of what a guide knows to its experts: clean images for the guide, noisy ones for the expert."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from noiseworks.core.errors import InputError
from noiseworks.core.noise import mix64
from noiseworks.kits.training import Run, make_fabric, rounds
from noiseworks.ppap.experts import Experts
from noiseworks.ppap.guide import Guide
from noiseworks.ppap.options import Transfer
from noiseworks.ppap.routing import even_bounds
from noiseworks.ppap.tasks import Classification
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True, eq=False)
class Images:
    """What is learned from.

    Attributes:
        clean: Images that the guide sees, [n, 3, H, W] in [-1, 1].
        levels: alpha and sigma of each timestep, [2, T].
        samples: The same images as the diffusion model has them; None where it denoises pixels.
        seen: What the expert sees of noisy samples, as images around [-1, 1].
        labels: True classes [n], to learn from instead of the guide.
    """

    clean: Tensor
    levels: Tensor
    samples: Tensor | None = None
    seen: Callable[[Tensor], Tensor] = lambda x: x
    labels: Tensor | None = None


class ExpertTraining:
    """Trains the experts one after the other.

    Args:
        experts: They are trained in place.
        guide: The teacher, whose network the experts stand on.
        images: What is learned from.
        options: Length, rate, start.

    Raises:
        InputError: When an expert would get no step, timesteps have no owner, or labels have no use.
    """

    def __init__(self, experts: Experts, guide: Guide, images: Images, options: Transfer) -> None:
        if experts.bounds[-1] != images.levels.shape[1]:
            raise InputError(
                f"the experts own {experts.bounds[-1]} timesteps, the model has {images.levels.shape[1]}"
            )
        if options.max_steps < len(experts.parts):
            raise InputError(f"max_steps must be at least 1 for each of {len(experts.parts)} experts")
        if images.labels is not None and not isinstance(guide.task, Classification):
            raise InputError("labels are for classifiers; other guides teach by themselves")
        self.experts, self.guide, self.images, self.options = experts, guide, images, options
        self.spans = even_bounds(len(experts.parts), options.max_steps)
        self.fabric = make_fabric(options)
        self.device = self.fabric.device
        guide.model.to(self.device).eval()
        experts.to(self.device)
        self.optimizer = self._new_optimizer(0)
        self.flips = options.flip and images.samples is None
        self.known = (
            self._teach_all() if isinstance(guide.task, Classification) and images.labels is None else None
        )

    def train(self, run: Run | None = None, *, progress: bool = True) -> Experts:
        """Do the steps that are left and return the experts, ready to guide.

        Args:
            run: The open run, or None to keep nothing.
            progress: Whether to show a bar.
        """
        self.experts.train()
        rounds(self, run=run, options=self.options, fabric=self.fabric, progress=progress)
        self.experts.eval().forget()
        return self.experts

    def round(self, step: int) -> Mapping[str, float]:
        """Do one optimiser step of the expert whose turn it is."""
        n = next(i for i, end in enumerate(self.spans[1:]) if step < end)
        start, end = self.spans[n], self.spans[n + 1]
        if step == start and n:
            self._begin(n)
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate * (1 - (step - start) / (end - start))
        loss = self._loss(n, torch.Generator().manual_seed(mix64(self.options.seed, step, 3) >> 1))
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        self.optimizer.step()
        return {"loss": float(loss.detach()), "expert": float(n)}

    def state_dict(self) -> dict[str, Any]:
        """Return the experts, statistics included, and the optimiser's state."""
        return {
            "experts": self.experts.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "at": self._at,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.experts.load_state_dict(state["experts"])
        self.optimizer = self._new_optimizer(state["at"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _new_optimizer(self, n: int) -> torch.optim.Optimizer:
        self._at = n
        own = self.experts.parts[n].parameters()
        return torch.optim.AdamW(own, self.options.learning_rate, weight_decay=self.options.weight_decay)

    def _begin(self, n: int) -> None:
        """Go on to expert n: chained ones take over the weights and the optimiser's state of the one before."""
        before = self.optimizer
        self.optimizer = self._new_optimizer(n)
        if self.options.start == "chain":
            self.experts.parts[n].load_state_dict(self.experts.parts[n - 1].state_dict())
            self.optimizer.load_state_dict(before.state_dict())

    def _loss(self, n: int, generator: torch.Generator) -> Tensor:
        images, size = self.images, self.options.batch_size
        rows = torch.randint(len(images.clean), (size,), generator=generator)
        t = torch.randint(self.experts.bounds[n], self.experts.bounds[n + 1], (size,), generator=generator)
        mirrored = torch.rand(size, generator=generator) < (0.5 if self.flips else 0.0)
        clean = _mirror(images.clean[rows], mirrored)
        x0 = clean if images.samples is None else images.samples[rows]
        noise = torch.randn(x0.shape, generator=generator)
        alpha, sigma = images.levels[:, t].view(2, size, *[1] * (x0.ndim - 1))
        noisy = (alpha * x0 + sigma * noise).to(self.device)
        with torch.no_grad():
            seen = self.guide.inputs(images.seen(noisy))
        with self.fabric.autocast(), _batch_statistics(self.experts.base):
            student = self.experts(seen, t)
        if images.labels is not None:
            return self.guide.task.supervised(images.labels[rows].to(self.device), student)
        return self.guide.task.distil(self._teacher(clean, rows, mirrored), student)

    @torch.no_grad()
    def _teacher(self, clean: Tensor, rows: Tensor, mirrored: Tensor) -> Tensor:
        if self.known is None:  # maps are too many numbers to keep
            return self.guide(clean.to(self.device))
        return self.known[mirrored.long(), rows].to(self.device)

    @torch.no_grad()
    def _teach_all(self) -> Tensor:
        """Return the guide's logits of all images, [2, n, K], mirrored ones second: they do not depend on t."""
        versions = [self.images.clean, self.images.clean.flip(-1)] if self.flips else [self.images.clean]
        parts = [[self.guide(part.to(self.device)).cpu() for part in one.split(256)] for one in versions]
        return torch.stack([torch.cat(one) for one in parts])


class _batch_statistics:  # noqa: N801
    """Within a block batch norms take the batch's statistics and keep the running ones, as published."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.norms = [one for one in network.modules() if isinstance(one, _BatchNorm)]

    def __enter__(self) -> None:
        for one in self.norms:
            one.train()

    def __exit__(self, *error: object) -> None:
        for one in self.norms:
            one.eval()


def _mirror(images: Tensor, mirrored: Tensor) -> Tensor:
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
