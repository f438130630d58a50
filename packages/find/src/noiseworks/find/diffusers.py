"""A diffusers pipeline as the black box: from unit noise to images of one prompt, without gradients."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from noiseworks.kits.diffusers_hosts import sample_generators
from noiseworks.kits.image_tuning import Policy, Reward, Rollout, score
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class PipelineDrawing:
    """Draws images of one prompt from given noise, by the pipeline's stochastic chain.

    Args:
        pipe: A text-to-image pipeline, on its device; it is left as it is.
        prompt: The prompt, which is encoded once.
        rollout: How it draws.

    Attributes:
        shape: Of one sample's noise.
        text: The prompt's feature, the mean of its tokens [d].

    Raises:
        InputError: When the prompt is empty or the pipeline does not fit.
    """

    def __init__(self, pipe: "DiffusionPipeline", prompt: str, rollout: Rollout) -> None:
        self.policy, self.prompt = Policy(pipe, [prompt], rollout), prompt
        self.shape = self.policy.conditions.shape
        self.text = self.policy.conditions.cond["encoder_hidden_states"][0].float().mean(0)

    @torch.inference_mode()
    def __call__(self, z: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return images on the CPU [n, 3, H, W] in [0, 1].

        Args:
            z: Unit noise [n, ...]; the scheduler's scale is applied here, once.
            seeds: Of each chain's own noise.
        """
        ids = torch.zeros(len(z), dtype=torch.long)
        parts = []
        for rows in torch.arange(len(z)).split(self.policy.rollout.rollout_batch):
            x = (z[rows] * self.policy.chain.start_scale).to(self.policy.device, self.policy.stored_dtype)
            latents, _ = self.policy.walk(x, ids[rows], sample_generators([seeds[i] for i in rows]))
            parts.append(latents[:, -1])
        return self.policy.decode(torch.cat(parts))

    def worth(self, reward: Reward) -> Callable[[Tensor, Sequence[int]], Tensor]:
        """Return a function (noise, seeds) -> rewards [n]."""
        return lambda z, seeds: score(reward, self(z, seeds), [self.prompt] * len(z))[:, 0].clone()
