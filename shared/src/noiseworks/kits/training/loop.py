"""Training in rounds on Lightning's `Fabric`: reinforcement and preference loops, which draw their own data."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from lightning.fabric import Fabric  # noqa: TID253
from noiseworks.core.devices import resolve_device
from noiseworks.core.errors import ArtifactError
from noiseworks.kits.training.folder import Run
from noiseworks.kits.training.interrupts import Aborted, Interrupts, stopped_at
from noiseworks.kits.training.metrics import MetricsFile
from noiseworks.kits.training.options import Fit
from noiseworks.kits.training.progress import Bar
from noiseworks.kits.training.quiet import refusals
from noiseworks.kits.training.state import (
    kept_sentence,
    load_checkpoint,
    random_state,
    refuse_non_finite,
    restore_random_state,
    save_checkpoint,
    tensors_of,
)


class Loop(Protocol):
    """What `rounds` runs. Its state is everything that the next round depends on, besides the random state."""

    def round(self, step: int) -> Mapping[str, float]:
        """Do round `step`, counted from 0, and return its figures; one of the name `loss` must be finite."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; its tensors are on the CPU."""
        ...


def make_fabric(options: Fit) -> Fabric:
    """Return a `Fabric` of the options' hardware; with several processes it has been launched.

    Raises:
        InputError: With the first line of what Lightning refuses.
    """
    with refusals():
        strategy = "ddp" if options.devices > 1 and options.strategy == "auto" else options.strategy
        fabric = Fabric(
            accelerator=resolve_device(options.device).type,
            devices=options.devices,
            strategy=strategy,
            precision=options.precision,
        )
        if options.devices > 1:
            fabric.launch()
    return fabric


def rounds(
    loop: Loop,
    *,
    run: Run | None,
    options: Fit,
    fabric: Fabric,
    total: Callable[[], int] | None = None,
    progress: bool = True,
) -> int:
    """Do the rounds that are left; a run that was stopped goes on to the same numbers.

    Args:
        loop: What is trained.
        run: The open run, or None to keep nothing.
        options: `max_steps` rounds, and how often a checkpoint is written.
        fabric: From `make_fabric`.
        total: Asked before each round how many there are, instead of `options.max_steps`.
        progress: Whether to show a bar.

    Returns:
        The step that the run went on from, 0 for a new one.

    Raises:
        ArtifactError: When the checkpoint cannot be read or is not this loop's.
        NonFiniteError: When a round's `loss` or a tensor of the state is NaN or infinite; the last checkpoint stays.
        Stopped: On Ctrl-C or termination, after a checkpoint of the round at hand.
    """
    rounds_in_all = (lambda: options.max_steps) if total is None else total
    start = _resume(loop, run, fabric)
    saved, step, written = start or None, start, time.monotonic()
    metrics = MetricsFile(run.folder, start) if run is not None and fabric.is_global_zero else None
    with (
        Interrupts() as interrupts,
        Bar("training", rounds_in_all(), start, shown=progress and fabric.is_global_zero) as bar,
    ):
        if start and progress and fabric.is_global_zero:
            bar.say(f"resumed at step {start}")
        try:
            while step < rounds_in_all():
                figures = loop.round(step)
                step += 1
                last = step >= rounds_in_all()
                kept = kept_sentence(saved, None if run is None else run.folder)
                if "loss" in figures:
                    refuse_non_finite(iter([("loss", torch.tensor(float(figures["loss"])))]), step, kept)
                if metrics is not None and (last or step % options.log_every == 0):
                    metrics.write(step, figures)
                    metrics.flush()  # a round is long
                bar.update(step, {name: figures[name] for name in ("reward", "loss") if name in figures})
                due = time.monotonic() - written >= 60 * options.checkpoint_every
                stop = interrupts.caught
                if fabric.world_size > 1:  # all processes save and stop together
                    due, stop = fabric.broadcast((due, stop), src=0)
                if due or stop or last:
                    _save(loop, run, fabric, step, kept)
                    saved, written = step if run is not None else None, time.monotonic()
                if stop and not last:
                    raise stopped_at(saved)
        except Aborted:
            raise stopped_at(saved) from None
        finally:
            if metrics is not None:
                metrics.close()
    return start


def _resume(loop: Loop, run: Run | None, fabric: Fabric) -> int:
    if run is None or run.checkpoint is None:
        return 0
    state = load_checkpoint(run.checkpoint)
    if not {"step", "loop", "random"} <= state.keys():
        raise ArtifactError(f"{run.checkpoint} is no checkpoint of this kind of run; name another folder")
    loop.load_state_dict(state["loop"])
    states = state["random"]
    restore_random_state(states[min(fabric.global_rank, len(states) - 1)], fabric.device)
    return state["step"]


def _save(loop: Loop, run: Run | None, fabric: Fabric, step: int, kept: str) -> None:
    state = loop.state_dict()
    refuse_non_finite(tensors_of(state), step, kept)
    if run is None:
        return
    own = random_state(fabric.device).to(fabric.device)
    states = fabric.all_gather(own).reshape(-1, len(own)).cpu()
    if fabric.is_global_zero:
        save_checkpoint(run.last, {"step": step, "loop": state, "random": states})
    fabric.barrier()
