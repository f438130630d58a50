"""Fine-tuning on the better of two images of one's own: the cheapest alternative where a reward is at hand."""

from collections.abc import Mapping

import torch
from noiseworks.kits.image_tuning.denoising import DenoisingError
from noiseworks.kits.image_tuning.tuner import Losses, Tuner
from torch import Tensor

_TARGETS = 9  # stream of random numbers


class BestOfTwo(Tuner):
    """Draws two images of each prompt, from noise of their own, and trains the denoising error of the better one."""

    def round(self, step: int) -> Mapping[str, float]:
        """Draw pairs and go through the better ones, each as often as a rollout has steps, at random timesteps."""
        prompts = self.draw_prompts(self.options.batch_size)
        drawn = self.roll_out(prompts.repeat_interleave(2))
        better = 2 * torch.arange(len(prompts)) + drawn.rewards[:, 0].view(-1, 2).argmax(1)
        error, generator = DenoisingError(self.policy), torch.Generator().manual_seed(self.seed(_TARGETS))
        steps, shape = drawn.log_probs.shape[1], drawn.latents.shape[2:]
        # For all rows at once, so that several processes draw what one would.
        timesteps = error.draw_timesteps(len(drawn) * steps, generator).view(-1, steps)
        noise = torch.randn(len(drawn), steps, *shape, generator=generator)

        def losses(rows: Tensor, places: Tensor) -> Losses:
            x0, ids = drawn.latents[rows, -1], drawn.prompt_ids[rows]
            return Losses(error(x0, ids, timesteps[rows, places], noise[rows, places]))

        return self.optimise(losses, better) | self.reward_figures(drawn)
