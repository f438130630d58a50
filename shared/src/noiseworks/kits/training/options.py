"""The options that every training command shares."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, at_least

Precision = Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true"]
Strategy = Literal["auto", "ddp", "fsdp"]


@dataclass(frozen=True)
class Fit(Options):
    """Length, seed, hardware and bookkeeping of a training run; a method's own options may extend it.

    Attributes:
        max_steps: Optimiser steps of the whole run.
        batch_size: Rows of a batch, over all processes.
        seed: Of the initial weights, the order of the data and all noise.
        precision: 32-true, bf16-mixed, 16-mixed, bf16-true or 64-true.
        device: auto (the GPU if there is one), cpu, cuda or mps.
        devices: Number of processes, each with a device of its own.
        strategy: How they share the work; auto is ddp for several processes.
        checkpoint_every: Minutes between two checkpoints; 0 writes one after every step.
        log_every: Steps between two rows of metrics.csv.
    """

    # What may differ when a run goes on: it changes no number, or only in which order numbers are added.
    FREE: ClassVar[frozenset[str]] = frozenset(
        {"device", "devices", "strategy", "checkpoint_every", "log_every"}
    )

    max_steps: Annotated[int, at_least(1)] = 1000
    batch_size: Annotated[int, at_least(1)] = 32
    seed: Annotated[int, at_least(0)] = 0
    precision: Precision = "32-true"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: Annotated[int, at_least(1)] = 1
    strategy: Strategy = "auto"
    checkpoint_every: Annotated[float, at_least(0)] = 5.0
    log_every: Annotated[int, at_least(1)] = 10

    def check(self) -> None:
        """Refuse a batch that its processes cannot share, and hardware that this machine lacks.

        Raises:
            InputError: Naming the option.
        """
        if self.batch_size % self.devices:
            raise InputError(
                f"batch_size must be a multiple of devices ({self.devices}), got {self.batch_size}"
            )
        # Importing torch takes seconds, so that only options that need a look at the machine pay for it.
        if self.device != "auto" or self.devices > 1 or self.precision == "16-mixed":
            self._check_machine()

    def _check_machine(self) -> None:
        import torch
        from noiseworks.core.devices import resolve_device

        kind = resolve_device(self.device).type
        if kind == "mps" and self.device == "mps" and not torch.backends.mps.is_available():
            raise InputError("device mps is not present; use auto or cpu")
        if kind == "cuda" and self.devices > torch.cuda.device_count():
            raise InputError(
                f"devices must be at most {torch.cuda.device_count()}, the GPUs found, got {self.devices}"
            )
        if kind == "cpu" and self.precision == "16-mixed":
            raise InputError("precision 16-mixed needs a GPU; use bf16-mixed or 32-true on the CPU")
