"""Pre-training: one representation along a whole trajectory, another one for another image.

Two terms of equal weight. Views of an image are told from those of others at the cleanest level, through a projector
and against a slowly moving target network; and the encoder gives the point t_i of a trajectory what it gives the next
cleaner point t_{i+1} of the same one.
"""

import copy
from typing import Any

import lightning as L  # noqa: TID253
import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from noiseworks.core.noise import mix64
from noiseworks.kits.training import Average, Batches, Rows, Run, fit
from noiseworks.rrcm.contrast import gathered, info_nce
from noiseworks.rrcm.encoder import RrcmEncoder, projector
from noiseworks.rrcm.options import Network, Pretraining
from noiseworks.rrcm.trajectory import CLEANEST, levels, scale_curriculum, target_decay
from noiseworks.rrcm.views import with_views
from torch import Tensor, nn


class RrcmPretrain(L.LightningModule):
    """The loss, its optimiser, the target network θ⁻ and the average that comes out.

    Args:
        encoder: The encoder.
        network: Sizes of the projector.
        options: How it is trained.
    """

    def __init__(self, encoder: RrcmEncoder, network: Network, options: Pretraining) -> None:
        super().__init__()
        self.options = options
        self.online = nn.ModuleDict({"encoder": encoder, "projector": projector(network)})
        self.target = copy.deepcopy(self.online).requires_grad_(
            False
        )  # in training mode: statistics of the batch
        self.average = Average(encoder, lambda _: options.kept)

    def represent(self, network: nn.ModuleDict, x: Tensor) -> Tensor:
        """Return g(f(x)) at the cleanest level."""
        return network["projector"](network["encoder"](x, torch.tensor(CLEANEST, device=x.device)))

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """Return the loss of images `x` and their views `a` and `b`, (B, C, H, W) in [-1, 1]."""
        o, noise = self.options, Rows.of(len(batch["x"])).noise_like(batch["x"])
        parts = []
        if o.parts != "consistency":
            parts.append(self.contrastive(batch["a"] + CLEANEST * noise, batch["b"] + CLEANEST * noise))
        if o.parts != "contrastive":
            grid = levels(scale_curriculum(self.global_step, o.max_steps, o.scales, o.most_scales))
            # One level for the whole batch of all processes, of the step alone.
            drawn = torch.Generator().manual_seed(mix64(o.seed, self.global_step, 1) >> 1)
            place = int(torch.randint(len(grid) - 1, (), generator=drawn))
            high, low = grid[place : place + 2].to(noise)
            parts.append(self.consistency(batch["x"] + high * noise, high, batch["x"] + low * noise, low))
        loss = torch.stack([part.mean() for part in parts]).sum()
        self.log("loss", loss, prog_bar=True)
        return loss

    def contrastive(self, first: Tensor, second: Tensor) -> Tensor:
        """Return L_c of two noisy views, (B,)."""
        tau, total = self.options.temperature, torch.zeros(len(first), device=first.device)
        for one, other in ((first, second), (second, first)):
            with torch.no_grad():
                wanted = gathered(self.represent(self.target, other))
            total = total + info_nce(self.represent(self.online, one), wanted, tau)
        return total

    def consistency(self, noisy: Tensor, high: Tensor, cleaner: Tensor, low: Tensor) -> Tensor:
        """Return L_t of two points of a trajectory, (B,), without the projector."""
        network = self.online if self.options.target == "online" else self.target
        with torch.no_grad():
            wanted = gathered(network["encoder"](cleaner, low))
        return info_nce(self.online["encoder"](noisy, high), wanted, self.options.temperature)

    def configure_optimizers(self) -> dict[str, Any]:
        """Return AdamW with its schedule."""
        o = self.options
        optimizer = torch.optim.AdamW(self.online.parameters(), o.lr, weight_decay=o.weight_decay, fused=True)
        schedule = get_cosine_schedule_with_warmup(optimizer, o.warmup, o.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then move target and average: before the checkpoint of the step is written."""
        o = self.options
        super().optimizer_step(*args, **kwargs)
        decay = target_decay(self.global_step, o.max_steps, o.decay, o.last_decay, o.sharpness)
        with torch.no_grad():
            pairs = list(zip(self.target.parameters(), self.online.parameters(), strict=True))
            torch._foreach_lerp_([a for a, _ in pairs], [b.detach() for _, b in pairs], 1 - decay)
        self.average.update(self.online["encoder"])


def pretrain(
    images: Tensor, network: Network, options: Pretraining, *, run: Run | None = None, progress: bool = True
) -> RrcmEncoder:
    """Pre-train an encoder on images without labels and return its average, in evaluation mode.

    Args:
        images: (n, C, H, H) in [-1, 1].
        network: Sizes.
        options: How it is trained.
        run: The open run, None to keep nothing.
        progress: Whether to show a bar.

    Raises:
        InputError: When the patch does not divide the images, or there are fewer than a batch.
        NonFiniteError: When the loss is not finite.
    """

    def transform(batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        return with_views(batch, options, generator)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        encoder = RrcmEncoder(network, image_size=images.shape[-1], channels=images.shape[1])
        module = RrcmPretrain(encoder, network, options)
        batches = Batches({"x": images}, options.batch_size, seed=options.seed, transform=transform)
        unused = options.parts == "consistency"
        fit(
            module,
            batches,
            run=run,
            options=options,
            clip=options.clip,
            unused_parameters=unused,
            progress=progress,
        )
    return module.average.model.requires_grad_(True)
