"""Training of policies on Lightning: one loss, one moving average, and a run that goes on after a kill.

Batches, noise, diffusion steps and dropout of step s are functions of (seed, s) alone, so a resumed run computes
the same numbers as one that was never stopped.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L  # noqa: TID253
import torch
from noiseworks.core.checks import check_finite, check_number
from noiseworks.core.devices import resolve_device
from noiseworks.core.errors import InputError
from noiseworks.core.noise import mix64
from noiseworks.kits.policies.ema import EMA
from noiseworks.kits.policies.hosts import trained_network
from noiseworks.kits.policies.transformer import optimizer_groups
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

if TYPE_CHECKING:
    from noiseworks.kits.policies.native import NativePolicy
    from noiseworks.kits.policies.protocols import DenoiserHost

CHECKPOINT = "checkpoints/last.ckpt"


def observations(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries of a batch of windows that are observations."""
    return {name: value for name, value in batch.items() if name not in ("action", "action_is_pad")}


def diffusion_loss(
    host: "DenoiserHost",
    batch: Mapping[str, Tensor],
    timesteps: Tensor,
    noise: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the mean squared error of the prediction (Chi et al. 2023, eq. 5).

    Args:
        host: The policy.
        batch: Observations [B, To, ...] under the host's names (a native policy's is `obs`) and `action`
            [B, Tp, Da] in environment units; `action_is_pad` bool [B, Tp], where given, leaves entries out.
        timesteps: Diffusion steps, int64 [B].
        noise: Standard normals [B, Tp, Da].
        weights: Weight of each diffusion step's error, [T]; 1 without them.
    """
    clean = host.normalizer.normalize(batch["action"])
    noisy = host.scheduler.add_noise(clean, noise, timesteps)
    predicted = host.denoise(noisy, timesteps, host.encode(observations(batch)))
    kind = host.scheduler.config.prediction_type
    if kind == "epsilon":
        target = noise
    elif kind == "sample":
        target = clean
    else:
        target = host.scheduler.get_velocity(clean, noise, timesteps)
    error = (predicted.float() - target).square()
    if weights is not None:
        error = error * weights[timesteps][:, None, None]
    if "action_is_pad" in batch:
        kept = (~batch["action_is_pad"])[..., None].expand_as(error)
        return error[kept].mean()
    return error.mean()


class PolicyTrainer(L.LightningModule):
    """The diffusion loss, AdamW and the moving average, whose weights are the ones to evaluate.

    Args:
        host: The policy that trains: a native one or another library's, whose encoders train as well.
        learning_rate: Peak rate.
        weight_decay: Of matrices.
        betas: Of AdamW.
        warmup_steps: Steps of linear warm-up.
        total_steps: Where the cosine of the rate ends; None for a constant rate after the warm-up.
        seed: Of noise, diffusion steps and dropout.
    """

    def __init__(
        self,
        host: "NativePolicy | DenoiserHost",
        *,
        learning_rate: float = 1e-4,
        weight_decay: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        warmup_steps: int = 500,
        total_steps: int | None = None,
        seed: int = 0,
        loss_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("loss_weights", loss_weights, persistent=False)
        network = trained_network(host)
        self.host, self.average = host, EMA(network)
        if not isinstance(host, nn.Module):  # an adapter, whose policy Lightning would not see
            self.policy = network
        self.learning_rate, self.weight_decay, self.betas = learning_rate, weight_decay, betas
        self.warmup_steps, self.total_steps, self.seed = warmup_steps, total_steps, seed

    def averaged_host(self) -> "NativePolicy | DenoiserHost":
        """Return the policy with the averaged weights.

        A native policy shares them with this trainer; into another library's they are written.
        """
        from noiseworks.kits.policies.native import NativePolicy

        host = self.host
        if not isinstance(host, NativePolicy):
            trained_network(host).load_state_dict(self.average.model.state_dict())
            trained_network(host).eval()
            return host
        return NativePolicy(host.config, self.average.model, host.normalizer, host.obs_normalizer).eval()

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the loss of a batch under the noise of the current step; methods override this."""
        generator = torch.Generator().manual_seed(mix64(self.seed, self.global_step, self.global_rank) >> 1)
        action, scheduler = batch["action"], self.host.scheduler
        noise = torch.randn(action.shape, generator=generator).to(action)
        steps = torch.randint(scheduler.config.num_train_timesteps, (len(action),), generator=generator).to(
            action.device
        )
        return diffusion_loss(self.host, batch, steps, noise, self.loss_weights)

    def training_step(self, batch: Mapping[str, Tensor], index: int) -> Tensor:
        """Return the loss; dropout is drawn from the step's own seed."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(mix64(self.seed, self.global_step, self.global_rank, 1) >> 1)
            loss = self.loss(batch)
        check_finite("loss", loss, self.global_step)
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then move the average."""
        super().optimizer_step(*args, **kwargs)
        self.average.update(trained_network(self.host))

    def configure_optimizers(self) -> Any:
        """Return AdamW with linear warm-up and, when `total_steps` is given, a cosine to 0."""
        groups = optimizer_groups(trained_network(self.host), self.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=self.betas)
        if self.warmup_steps == 0 and self.total_steps is None:
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _factor(self, step: int) -> float:
        rate = min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.total_steps is None:
            return rate
        share = min(1.0, max(0.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)))
        return rate * 0.5 * (1 + float(torch.cos(torch.tensor(share * torch.pi))))


class WindowBatches(IterableDataset):
    """Endless batches; epoch e of the windows is a permutation drawn from (seed, e), the short rest left out.

    Args:
        table: Named tensors of one length.
        batch_size: Rows of a batch.
        seed: Of the order.
        start: Number of batches that were used before.
        rank: This process's number.
        world_size: Number of processes; each gets its own part of an epoch's batches.
    """

    def __init__(
        self,
        table: Mapping[str, Tensor],
        batch_size: int,
        *,
        seed: int = 0,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        lengths = {len(tensor) for tensor in table.values()}
        if len(lengths) != 1 or next(iter(lengths)) < batch_size * world_size:
            raise InputError(
                f"need tensors of one length of at least {batch_size * world_size} rows, got {sorted(lengths)}"
            )
        self.table, self.batch_size, self.seed, self.start = dict(table), batch_size, seed, start
        self.rank, self.world_size, self.length = rank, world_size, next(iter(lengths))

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        stride = self.batch_size * self.world_size
        per_epoch = self.length // stride
        step = self.start
        while True:
            epoch, first = step // per_epoch, step % per_epoch
            generator = torch.Generator().manual_seed(mix64(self.seed, epoch, 2) >> 1)
            order = torch.randperm(self.length, generator=generator)
            for batch in range(first, per_epoch):
                begin = batch * stride + self.rank * self.batch_size
                rows = order[begin : begin + self.batch_size]
                yield {name: tensor[rows] for name, tensor in self.table.items()}
                step += 1


class _Batches(L.LightningDataModule):
    """Gives every process its own part of the batches."""

    def __init__(self, table: Mapping[str, Tensor], batch_size: int, seed: int, start: int) -> None:
        super().__init__()
        self.table, self.batch_size, self.seed, self.start = table, batch_size, seed, start

    def train_dataloader(self) -> DataLoader:
        """Return the endless loader."""
        world = self.trainer.world_size
        batches = WindowBatches(
            self.table,
            self.batch_size // world,
            seed=self.seed,
            start=self.start,
            rank=self.trainer.global_rank,
            world_size=world,
        )
        return DataLoader(batches, batch_size=None)


def fit(
    module: PolicyTrainer,
    table: Mapping[str, Tensor],
    folder: str | Path,
    *,
    max_steps: int,
    batch_size: int = 256,
    checkpoint_every: int = 500,
    resume: bool = True,
    device: str = "auto",
    devices: int = 1,
    strategy: str = "auto",
    precision: str = "32-true",
    progress: bool = True,
) -> None:
    """Train until `max_steps`; a run that was stopped goes on from its last checkpoint to the same numbers.

    Args:
        module: A `PolicyTrainer` or a subclass with its own `loss`.
        table: Windows from `chunking.windows`.
        folder: The run's folder: `checkpoints/last.ckpt` and `logs`.
        max_steps: Optimizer steps in all.
        batch_size: Rows of a batch, over all processes.
        checkpoint_every: Steps between checkpoints.
        resume: Whether to go on from the folder's checkpoint, or to refuse a used folder.
        device: `auto`, `cpu` or `cuda`.
        devices: Number of processes.
        strategy: Lightning's strategy.
        precision: Lightning's precision.
        progress: Whether to show a progress bar.

    Raises:
        InputError: When an argument is out of range or the folder is used and `resume` is false.
        NonFiniteError: When the loss is NaN or infinite; the last checkpoint stays.
    """
    from lightning.pytorch.callbacks import RichProgressBar
    from lightning.pytorch.loggers import CSVLogger

    check_number("max_steps", max_steps, low=1, integer=True)
    check_number("batch_size", batch_size, low=devices, integer=True)
    check_number("checkpoint_every", checkpoint_every, low=1, integer=True)
    folder = Path(folder)
    last, start = folder / CHECKPOINT, 0
    if last.exists():
        if not resume:
            raise InputError(f"{folder} holds a run already; resume it or name another folder")
        start = torch.load(last, weights_only=True, map_location="cpu")["global_step"]
    trainer = L.Trainer(
        accelerator=resolve_device(device).type,
        devices=devices,
        strategy=strategy,
        precision=precision,
        max_steps=max_steps,
        max_epochs=-1,
        gradient_clip_val=1.0,
        logger=CSVLogger(folder, name="logs"),
        log_every_n_steps=50,
        callbacks=[
            _SaveLast(last, checkpoint_every),
            *([RichProgressBar(refresh_rate=20)] if progress else []),
        ],
        enable_progress_bar=progress,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        enable_model_summary=False,
    )
    batches = _Batches(table, batch_size, module.seed, start)
    trainer.fit(module, datamodule=batches, ckpt_path=last if start else None, weights_only=True)


class _SaveLast(L.Callback):
    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps:
            part = self.path.with_suffix(".part")
            trainer.save_checkpoint(part, weights_only=False)
            if trainer.is_global_zero:
                part.rename(self.path)

    def on_train_end(self, trainer: L.Trainer, *args: Any) -> None:
        trainer.strategy.barrier()
