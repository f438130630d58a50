"""Training on winners against earlier checkpoints of the run."""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.core.errors import InputError
from noiseworks.core.noise import mix64
from noiseworks.kits.image_tuning.offline import OfflineTuner
from noiseworks.kits.image_tuning.options import Rollout
from noiseworks.kits.image_tuning.tuner import Losses
from noiseworks.seppo.objective import adaptive_flip, seppo_loss
from noiseworks.seppo.options import Objective, Opponents, Training
from noiseworks.seppo.pool import CheckpointPool, choose_opponent
from noiseworks.seppo.samples import KeptSamples
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

DRAWING = Rollout(guidance_scale=7.5)
POOL = "pool"  # folder of checkpoints in a run's folder, each a LoRA directory
KEPT = "opponents"  # folder of kept images in a run's folder
# Streams of random numbers, above those of the kit.
_OPPONENT, _STARTS, _STEPS = 10, 11, 12


class SePPO(OfflineTuner):
    """Semi-policy preference optimisation: winners only, and images of earlier checkpoints in the losers' place.

    Args:
        pipe: A text-to-image pipeline; its denoiser gets adapters and keeps them.
        prompts: The prompts that `ids` number, without repetition.
        latents: Winners, one a row, on the CPU [N, ...].
        ids: Each winner's prompt, int64 [N].
        options: The run.
        objective: The loss and the flip.
        opponents: Against whom.
        rollout: How opponents draw.

    Attributes:
        pool: The checkpoints.

    Raises:
        InputError: When winners and prompts do not fit together, or winners have another size than what is drawn.
    """

    def __init__(
        self,
        pipe: "DiffusionPipeline",
        prompts: Sequence[str],
        latents: Tensor,
        ids: Tensor,
        options: Training = Training(),
        objective: Objective = Objective(),
        opponents: Opponents = Opponents(),
        rollout: Rollout = DRAWING,
    ) -> None:
        super().__init__(pipe, prompts, latents, ids, options, rollout=rollout)
        given, drawn = list(latents.shape[1:]), list(self.policy.conditions.shape)
        if given != drawn:
            raise InputError(
                f"the winners' latents have shape {given}, the pipeline draws {drawn}: give size, to which winners "
                "are scaled and which is drawn"
            )
        self.objective, self.opponents = objective, opponents
        self.pool = CheckpointPool(self.denoiser)
        self._kept: KeptSamples | None = None
        self._lone = 0

    def opponent(self, step: int) -> int:
        """Return the checkpoint that a step plays against; the same throughout an iteration unless each update draws.

        Args:
            step: Steps done.
        """
        each = step if self.opponents.redraw == "update" else step // self.opponents.updates_per_checkpoint
        seed = mix64(self.options.seed, each, _OPPONENT)
        return choose_opponent(self.opponents.opponents, self.opponents.checkpoints(step), seed)

    def play(self, opponent: int, rows: Tensor) -> Tensor:
        """Return an opponent's images for winners' prompts, those of this process's rows [n, ...]; others are 0.

        Args:
            opponent: The checkpoint.
            rows: Winners [n].
        """
        places = self.own_rows(torch.arange(len(rows)))
        found = torch.zeros(len(rows), *self.latents.shape[1:])
        if not self.opponents.reuse:
            found[places] = self._drawn(opponent, rows[places], places.tolist(), self.done)
            return found
        if self._kept is None:
            self._kept = KeptSamples(
                None if self.run is None else self.run.folder / KEPT, self.fabric.global_rank
            )
        new = self._kept.missing(opponent, rows[places])
        if len(new):
            drawn = self._drawn(opponent, new, new.tolist(), opponent)
            self._kept.keep(opponent, new, drawn, self.done)
        found[places] = self._kept.of(opponent, rows[places])
        return found

    def _drawn(self, opponent: int, rows: Tensor, numbers: Sequence[int], group: int) -> Tensor:
        ids, batch = self.ids[rows], self.policy.rollout.rollout_batch
        starts, noise = (
            [mix64(self.options.seed, group, number, stream) >> 2 for number in numbers]
            for stream in (_STARTS, _STEPS)
        )
        found = [torch.zeros(0, *self.latents.shape[1:])]
        with self.fabric.autocast(), self.pool.playing(opponent):
            for first in range(0, len(rows), batch):  # of each part's chain only the end is kept
                own = slice(first, first + batch)
                found.append(self.policy.roll_out(ids[own], starts[own], noise[own]).latents[:, -1].float())
        return torch.cat(found)

    def round(self, step: int) -> Mapping[str, float]:
        """Do one optimiser step, after the checkpoint that is due."""
        while len(self.pool) < self.opponents.checkpoints(step):
            self._keep_checkpoint()
        opponent = self.opponent(step)
        rows, timesteps, noise, generator = self.draw()
        if not self.objective.shared_noise:
            noise = torch.stack([noise, torch.randn(noise.shape, generator=generator)], 1)
        anchors = [
            (
                self.error.draw_timesteps(len(rows), generator),
                torch.randn(self.latents[rows].shape, generator=generator),
            )
            for _ in range(self.objective.anchor_samples - 1)
        ]
        pairs = torch.stack([self.latents[rows], self.play(opponent, rows)], 1)

        def losses(own: Tensor) -> Losses:
            ids = self.ids[rows[own]]
            batch = (pairs[own], ids, timesteps[own], noise[own])
            further = [(pairs[own, 0], ids, t[own], n[own]) for t, n in anchors]
            with torch.no_grad():
                with self.pool.playing(opponent):
                    reference_errors = self.error.of_groups(*batch)
                    gains = [self.error(*one) for one in further]
                gains = [gain - self.error(*one) for gain, one in zip(gains, further, strict=True)]
            errors = self.error.of_groups(*batch)
            gains.append((reference_errors - errors.detach())[:, 0])
            g = adaptive_flip(torch.stack(gains).mean(0), self.objective)
            return seppo_loss(errors, reference_errors, g, self.objective.kappa)

        found = self.figures(self.descend(losses, len(rows))) | {"opponent": float(opponent)}
        self._watch(found["flipped"])
        return found

    def _keep_checkpoint(self) -> None:
        if self.run is not None and self.fabric.is_global_zero:
            self.save(self.run.folder / POOL / f"{len(self.pool):03d}")
        self.pool.add()

    def _watch(self, flipped: float) -> None:
        one_sided = self.objective.flip in ("sign", "soft") and not 0.02 <= flipped <= 0.9
        self._lone = self._lone + 1 if one_sided else 0
        if self._lone == 20:
            warnings.warn(
                f"{flipped:.0%} of the opponents' images counted as winners in each of 20 steps: the flip decides "
                "nothing; change the learning rate or updates_per_checkpoint",
                stacklevel=3,
            )

    def method_state(self) -> dict[str, Any]:
        """Return the pool."""
        return {"pool": self.pool.state()}

    def load_method_state(self, state: Mapping[str, Any]) -> None:
        """Restore the pool.

        Raises:
            ArtifactError: When it is another adapter's.
        """
        self.pool.load(state["pool"])
