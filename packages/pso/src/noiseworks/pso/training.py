"""Training online on the model's own few-step rollouts, on given pairs of images, and on pictures of a subject."""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.core.errors import InputError
from noiseworks.core.noise import mix64
from noiseworks.kits.image_tuning.offline import DiffusionDPO, OfflineTuner
from noiseworks.kits.image_tuning.options import LoraTuning, Tuning
from noiseworks.kits.image_tuning.policy import Policy
from noiseworks.kits.image_tuning.preferences import implicit_accuracy, step_ratio_loss
from noiseworks.kits.image_tuning.rewards import Reward
from noiseworks.kits.image_tuning.tuner import Losses, Tuner
from noiseworks.pso.objective import margins, offline_loss, pair_labels, personal_loss
from noiseworks.pso.options import OFFLINE, ONLINE, PERSONAL, Pairing, Personal, Preference, Sampler
from noiseworks.pso.samplers import few_step, trained_timesteps
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_LABELS, _REFERENCES = 20, 21  # streams of random numbers


class OnlinePSO(Tuner):
    """Two images of a prompt, drawn by the sampler as it will be used, and ordered by a reward.

    Args:
        pipe: A pipeline of a distilled model, which gets the sampler and adapters.
        prompts: What is trained on.
        reward: Scores images, larger is better; one number or several.
        options: The run; a round has `batch_size` prompts, and each minibatch n - 1 passes, one a step that draws.
        sampler: The few-step sampler.
        preference: What is compared, and how strongly it counts.
    """

    def __init__(
        self,
        pipe: "DiffusionPipeline",
        prompts: Sequence[str],
        reward: Reward,
        options: Tuning = ONLINE,
        sampler: Sampler = Sampler(),
        preference: Preference = Preference(),
    ) -> None:
        super().__init__(few_step(pipe, sampler), prompts, reward, options, sampler.rollout())
        self.preference = preference

    def round(self, step: int) -> Mapping[str, float]:
        """Draw two images of some prompts, order them, and go through all steps that draw."""
        prompts, settings = self.draw_prompts(self.options.batch_size), self.preference
        starts = torch.arange(len(prompts)).repeat_interleave(2).tolist() if settings.shared_start else None
        drawn = self.roll_out(prompts.repeat_interleave(2), starts)
        generator = torch.Generator().manual_seed(self.seed(_LABELS))
        h = pair_labels(drawn.rewards.view(len(prompts), 2, -1), settings.rule, generator)
        decided = (h != 0).any(1).nonzero().flatten()
        figures = self.reward_figures(drawn) | {"ties": 1 - len(decided) / len(h)}
        if not len(decided):
            return figures
        reference = self.reference_log_probs(drawn)

        def losses(rows: Tensor, places: Tensor) -> Losses:
            members = (2 * rows[:, None] + torch.arange(2)).flatten()
            each = places.repeat_interleave(2)
            found = self.log_prob(drawn, members, each)
            d = (found - reference[members, each].to(found)).view(-1, 2)
            signs = h[rows].to(d)
            z = (signs * d).sum(1)
            values = step_ratio_loss(d, signs, settings.beta, settings.clamp_eps)
            return Losses(values, {"accuracy": implicit_accuracy(z), "log_ratio": d.detach().abs().mean(1)})

        return figures | self.optimise(losses, decided)


class OfflinePSO(DiffusionDPO):
    """Pairs of a target and a reference image of one prompt, compared at the sampler's own timesteps.

    A pair shares timestep and noise. The untuned model is the same network with the adapter switched off.

    Args:
        pipe: A pipeline of a distilled model, which gets the sampler and adapters.
        prompts: The prompts that `ids` number, without repetition.
        targets: Latents of the images to go to [N, ...].
        ids: Each target's prompt, int64 [N].
        references: Latents of the images to go from [N, ...]; by default the untuned model draws one a target.
        options: The run.
        sampler: The few-step sampler.
        pairing: What is compared, and how strongly it counts.

    Raises:
        InputError: When targets and references differ in shape, or given references are to be refreshed.
    """

    def __init__(
        self,
        pipe: "DiffusionPipeline",
        prompts: Sequence[str],
        targets: Tensor,
        ids: Tensor,
        references: Tensor | None = None,
        options: LoraTuning = OFFLINE,
        sampler: Sampler = Sampler(),
        pairing: Pairing = Pairing(),
    ) -> None:
        if references is not None and pairing.refresh:
            raise InputError("refresh draws the model's own reference images anew: give none, or refresh 0")
        few_step(pipe, sampler)
        timesteps = trained_timesteps(pipe, sampler, pairing.timesteps)
        if references is None:
            seed = mix64(options.seed, _REFERENCES) >> 2
            references = own_images(Policy(pipe, prompts, sampler.rollout()), ids, seed)
        if references.shape != targets.shape:
            raise InputError(
                f"targets {list(targets.shape)} and reference images {list(references.shape)} differ; use one size"
            )
        pairs = torch.stack([targets.to(references), references], 1)
        super().__init__(pipe, prompts, pairs, ids, options, pairing, timesteps)
        self.sampler = sampler

    def loss(self, errors: Tensor, reference_errors: Tensor) -> Losses:
        """Return the losses of errors under policy and untuned model, both [n, 2]."""
        one = self.settings
        z = margins(errors, reference_errors, one.gamma)
        values = offline_loss(
            errors, reference_errors, kappa=one.kappa, gamma=one.gamma, anchor=one.anchor, link=one.link
        )
        figures = {"accuracy": implicit_accuracy(z), "margin": z, "target_error": errors[:, 0]}
        return Losses(values, figures)

    def round(self, step: int) -> Mapping[str, float]:
        """Draw the reference images anew where that is due, and do one optimiser step."""
        every = self.settings.refresh
        if every and step and step % every == 0:
            policy = Policy(self.pipe, self.policy.prompts, self.sampler.rollout())
            self.latents[:, 1] = own_images(policy, self.ids, self.seed(_REFERENCES))
        return super().round(step)

    def method_state(self) -> dict[str, Any]:
        """Return the reference images where they change."""
        return {"references": self.latents[:, 1].clone()} if self.settings.refresh else {}

    def load_method_state(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        if self.settings.refresh:
            self.latents[:, 1] = state["references"]
        else:
            super().load_method_state(state)


class PersonalPSO(OfflineTuner):
    """Pictures of a subject against images of its class from the untuned model, both under the subject's prompt.

    Args:
        pipe: A pipeline of a distilled model, which gets the sampler and adapters.
        prompts: The subject's prompt ("a photo of sks dog") and that of its class ("a photo of a dog").
        pictures: Latents of the pictures [N, ...].
        options: The run; each step takes as many class images as pictures, all different.
        sampler: The few-step sampler.
        personal: What is compared, and how strongly it counts.

    Raises:
        InputError: When there are fewer class images than pictures a step.
    """

    def __init__(
        self,
        pipe: "DiffusionPipeline",
        prompts: tuple[str, str],
        pictures: Tensor,
        options: LoraTuning = PERSONAL,
        sampler: Sampler = Sampler(),
        personal: Personal = Personal(),
    ) -> None:
        if personal.negatives < options.batch_size:
            raise InputError(
                f"{personal.negatives} negatives are fewer than the {options.batch_size} of a step; raise negatives"
            )
        if personal.degenerate:
            warnings.warn(
                f"hold {personal.hold:g} equals strength times down_weight: class images have no effect, and this is "
                "fine-tuning on the pictures alone",
                stacklevel=2,
            )
        few_step(pipe, sampler)
        timesteps = trained_timesteps(pipe, sampler, personal.timesteps)
        drawing = Policy(pipe, [prompts[1]], sampler.rollout())
        zeros = torch.zeros(personal.negatives, dtype=torch.long)
        self.negatives = own_images(drawing, zeros, mix64(options.seed, _REFERENCES) >> 2)
        ids = torch.zeros(len(pictures), dtype=torch.long)
        super().__init__(pipe, [prompts[0]], pictures.to(self.negatives), ids, options, timesteps)
        self.personal = personal

    def round(self, step: int) -> Mapping[str, float]:
        """Do one optimiser step."""
        rows, timesteps, noise, generator = self.draw()
        others = torch.randperm(len(self.negatives), generator=generator)[: len(rows)]
        pairs, one = torch.stack([self.latents[rows], self.negatives[others]], 1), self.personal

        def losses(own: Tensor) -> Losses:
            errors = self.error.of_groups(pairs[own], self.ids[rows[own]], timesteps[own], noise[own])
            weights = {"strength": one.strength, "down_weight": one.down_weight, "hold": one.hold}
            return Losses(
                personal_loss(errors, **weights), {"error": errors[:, 0], "class_error": errors[:, 1]}
            )

        return self.figures(self.descend(losses, len(rows)))


def own_images(policy: Policy, ids: Tensor, seed: int) -> Tensor:
    """Return latents of images that a policy draws with the weights it has now, one a prompt number [n, ...]."""
    starts, noise = ([mix64(seed, row, k) >> 2 for row in range(len(ids))] for k in (0, 1))
    return policy.roll_out(ids, starts, noise).latents[:, -1]
