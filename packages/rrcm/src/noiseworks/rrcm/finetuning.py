"""Fine-tuning: a classifier that is right under noise, and says the same for every draw of it."""

import copy
from typing import Any

import lightning as L  # noqa: TID253
import torch
import torch.nn.functional as F
from diffusers.optimization import get_cosine_schedule_with_warmup
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.kits.training import Batches, Rows, Run, fit
from noiseworks.rrcm.contrast import consistency_regulariser
from noiseworks.rrcm.encoder import NoisyClassifier, RrcmEncoder
from noiseworks.rrcm.options import Finetuning
from torch import Tensor


class RrcmFinetune(L.LightningModule):
    """The loss of a task, its optimiser and rates by depth.

    Args:
        model: The classifier.
        options: How it is trained.
    """

    def __init__(self, model: NoisyClassifier, options: Finetuning) -> None:
        super().__init__()
        self.model, self.options = model, options
        model.encoder.requires_grad_(options.task != "linear")
        model.head.requires_grad_(not options.freeze_head)
        if not options.normed:
            model.encoder.norm.requires_grad_(False)  # no part of what the head reads

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """Return the loss of images `x` (B, C, H, W) in [0, 1] with labels `y`: cross-entropy and agreement."""
        o, images, labels = self.options, batch["x"], batch["y"]
        draws = o.draws if o.task == "consistency" else 1
        own, images = Rows.of(len(images)), images.repeat(draws, 1, 1, 1)
        noise = torch.cat([own.noise_like(images) for _ in range(draws)])
        logits = self.model(images + self.model.sigma * noise).unflatten(0, (draws, -1))
        loss = F.cross_entropy(logits.flatten(0, 1), labels.repeat(draws))
        if o.task == "consistency":
            extra = consistency_regulariser(logits, o.agreement, o.confidence, o.form)
        else:
            extra = consistency_regulariser(logits, 0.0, 1.0)
        loss = loss + extra.mean()
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        """Return AdamW without weight decay, a rate for each depth, and its schedule."""
        o = self.options
        groups = [
            {"params": trained, "lr": o.lr * o.layer_decay**below}
            for below, part in enumerate(layers_from_the_top(self.model))
            if (trained := [p for p in part if p.requires_grad])
        ]
        optimizer = torch.optim.AdamW(groups, o.lr, weight_decay=0.0, fused=True)
        schedule = get_cosine_schedule_with_warmup(optimizer, o.warmup, o.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def layers_from_the_top(model: NoisyClassifier) -> list[list[Tensor]]:
    """Return the parameters of head and last norm, last block, ..., first block, and the embeddings."""
    encoder = model.encoder
    top = [*model.head.parameters(), *encoder.norm.parameters()]
    blocks = [list(block.parameters()) for block in reversed(encoder.blocks)]
    first = [encoder.cls_token, encoder.pos_embed, *encoder.patch_embed.parameters()]
    return [top, *blocks, first]


def finetune(
    encoder: RrcmEncoder,
    images: Tensor,
    labels: Tensor,
    sigma: float,
    options: Finetuning,
    *,
    head: NoisyClassifier | None = None,
    run: Run | None = None,
    progress: bool = True,
) -> NoisyClassifier:
    """Return a classifier made of a copy of the encoder, in evaluation mode.

    Args:
        encoder: Pre-trained, or new for training from scratch.
        images: (n, C, H, W) in [0, 1].
        labels: (n,).
        sigma: Noise that it is to stand, for the task consistency; the other tasks are clean.
        options: Task and lengths.
        head: A classifier whose head it starts from, by default a new one.
        run: The open run, None to keep nothing.
        progress: Whether to show a bar.

    Raises:
        InputError: On a task and sigma that do not fit each other, or fewer images than a batch.
        NonFiniteError: When the loss is not finite.
    """
    check_task(options, sigma, head is not None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        sigma = sigma if options.task == "consistency" else 0.0
        model = NoisyClassifier(
            copy.deepcopy(encoder).train(), int(labels.max()) + 1, sigma=sigma, normed=options.normed
        )
        if head is not None:
            model.head.load_state_dict(head.head.state_dict())
        batches = Batches({"x": images, "y": labels}, options.batch_size, seed=options.seed)
        fit(RrcmFinetune(model, options), batches, run=run, options=options, progress=progress)
    return model.eval().requires_grad_(False)


def check_task(options: Finetuning, sigma: float, headed: bool) -> None:
    """Refuse a task that does not fit the noise, or that would train nothing that can learn.

    Raises:
        InputError: Naming the option.
    """
    check_number("sigma", sigma, low=0)
    if (options.task == "consistency") == (sigma == 0):
        wanted = "above 0" if options.task == "consistency" else "0: the task trains on clean images"
        raise InputError(f"sigma must be {wanted}, got {sigma}")
    if options.freeze_head and not headed:
        raise InputError("freeze_head keeps the head of a classifier; name one as the model")
    if options.freeze_head and options.task == "linear":
        raise InputError("task linear trains the head alone; leave out freeze_head")
