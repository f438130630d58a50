"""Protecting files one after the other: a folder that the same command goes on with after a stop at any step."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from noiseworks.core.artifacts import atomic_write
from noiseworks.core.errors import InputError
from noiseworks.core.output import write_rows
from noiseworks.kits.pictures import grid, to_pixels, write_picture
from noiseworks.kits.protection.engine import Protected, State, streams
from noiseworks.kits.protection.files import (
    Picture,
    change_at_full_size,
    fit_in,
    list_pictures,
    read_mask,
    read_picture,
    to_tensor,
    upright_copy,
    within_budget,
)
from noiseworks.kits.protection.metrics import visibility
from noiseworks.kits.protection.options import Budget
from noiseworks.kits.training.folder import open_run
from noiseworks.kits.training.progress import Bar
from safetensors.torch import load, save
from torch import Tensor

SAVE_EVERY = 20.0  # seconds between two saved states of a picture
METRICS, PICTURE = "metrics.csv", "before_after.png"
Observe = Callable[[State], None]
# images [1, 3, H, W], mask [1, 1, H, W] or None (1: repainted), generators, state, observe
Protect = Callable[[Tensor, Tensor | None, Sequence[torch.Generator], State | None, Observe], Protected]


@dataclass(frozen=True, eq=False)
class Job:
    """A picture to protect.

    Attributes:
        path: Its file; the protected one is called the same, as a PNG.
        picture: What was read.
        keep: bool [H, W], True where editors keep it; None for all of it.
    """

    path: Path
    picture: Picture
    keep: np.ndarray | None = None


def jobs_of(images: Path, masks: Path | None = None, white: str = "keep") -> list[Job]:
    """Return the pictures of a file or folder with their masks.

    Args:
        images: A picture, or a folder of pictures.
        masks: One mask for all, or a folder with a mask a picture, called like it.
        white: Whether white is what editors keep or what they repaint.

    Raises:
        InputError: When a picture or mask is missing or cannot be used.
    """
    jobs = []
    named = {} if masks is None or not masks.is_dir() else {path.stem: path for path in list_pictures(masks)}
    for path in list_pictures(images):
        picture, keep = read_picture(path), None
        if masks is not None:
            if named and path.stem not in named:
                raise InputError(f"no mask for {path.name} in {masks}; call it {path.stem}.png")
            keep = read_mask(named.get(path.stem, masks), picture.pixels.shape[:2], white)
        jobs.append(Job(path, picture, keep))
    return jobs


def protect_one(
    job: Job, protect: Protect, budget: Budget, factor: int, side: int, index: int = 0, state: State | None = None,
    observe: Observe = lambda state: None,
) -> tuple[Picture, Protected]:  # fmt: skip
    """Return a protected picture, within the budget after rounding, and what the run found.

    Args:
        job: The picture.
        protect: The protection.
        budget: Its budget.
        factor: What sides must be divisible by for the model.
        side: Largest side at which the change is computed; a larger picture's change is enlarged.
        index: Of the picture, for its seed.
        state: Where an earlier run stopped.
        observe: Called after each step.
    """
    whole = to_tensor(job.picture.pixels)
    inner, fit = fit_in(whole, factor, side)
    mask = None
    if job.keep is not None:
        repaint = torch.from_numpy(~job.keep)[None, None].float()
        mask = (fit_in(repaint, factor, side)[0] >= 0.5).float()
    found = protect(inner, mask, streams(budget, 1, index), state, observe)
    eps = budget.eps_255 / 255
    change = change_at_full_size(inner, found.images, fit, eps)
    if job.keep is not None:
        change = change * torch.from_numpy(job.keep)
    limit = budget.eps_255 if budget.norm == "linf" else 255.0
    pixels = within_budget((whole + change).clamp(0, 1), job.picture.pixels[None], limit)[0]
    return upright_copy(job.picture, pixels), found


def protect_files(
    jobs: Sequence[Job],
    out: Path,
    settings: Mapping[str, Any],
    protect: Protect,
    budget: Budget,
    *,
    factor: int,
    side: int,
) -> list[dict[str, Any]]:
    """Protect pictures into a folder; a stopped run goes on at the step where it was.

    The folder gets `<name>.png` of each picture, `metrics.csv` with a row each, and `before_after.png`.

    Args:
        jobs: The pictures.
        out: The folder: new, empty, or of the same run.
        settings: What the run is, as for `kits.training.open_run`.
        protect: The protection.
        budget: Its budget.
        factor: What sides must be divisible by for the model.
        side: Largest side at which the change is computed.

    Returns:
        The rows: file, size, seconds, how visible the change is, and the share of gradients that were exactly zero (of
        pictures that an earlier call finished neither seconds nor that share).

    Raises:
        InputError: When the folder holds something else or a run with other settings.
    """
    with (
        open_run(out, settings) as run,
        Bar("protecting", len(jobs) * budget.steps) as bar,
    ):
        kept = load(run.last.read_bytes()) if run.checkpoint else {}
        begun = int(kept["index"]) if kept else 0
        state = (
            State(*(kept[n] if n != "step" else int(kept[n]) for n in State.__dataclass_fields__))
            if kept
            else None
        )
        if kept:
            bar.say(f"resumed at picture {begun + 1} of {len(jobs)}, step {state.step if state else 0}")
        rows = []
        for index, job in enumerate(jobs):
            target = out / f"{job.path.stem}.png"
            seconds, silent = 0.0, None
            if not (index < begun and target.is_file()):
                watch = _Watch(run.last, index, bar, budget.steps)
                start = time.perf_counter()
                try:
                    picture, found = protect_one(
                        job, protect, budget, factor, side, index, state if index == begun else None, watch
                    )
                except KeyboardInterrupt:
                    watch.save()
                    raise KeyboardInterrupt(
                        f"stopped at picture {index + 1} of {len(jobs)}; the same command goes on"
                    ) from None
                seconds = time.perf_counter() - start
                silent = round(found.silent, 4)
                picture.write(target)
            rows.append(_row(job, read_picture(target), seconds) | {"zero_gradients": silent})
        write_rows(out / METRICS, rows)
        shown = jobs[:8]
        write_picture(
            before_after(shown, [read_picture(out / f"{j.path.stem}.png") for j in shown]), out / PICTURE
        )
    return rows


class _Watch:
    """Shows and keeps the state of the picture at work."""

    def __init__(self, path: Path, index: int, bar: Bar, steps: int) -> None:
        self.path, self.index, self.bar, self.steps = path, index, bar, steps
        self.state: State | None = None
        self.saved = time.monotonic()

    def __call__(self, state: State) -> None:
        self.state = state
        self.bar.update(self.index * self.steps + state.step, {"objective": float(state.history[-1])})
        if time.monotonic() - self.saved >= SAVE_EVERY or state.step == self.steps:
            self.save()

    def save(self) -> None:
        if self.state is None:
            return
        tensors = {
            "delta": self.state.delta.cpu().contiguous(),
            "step": torch.tensor(self.state.step),
            "streams": self.state.streams,
            "history": self.state.history,
            "index": torch.tensor(self.index),
        }
        atomic_write(self.path, save(tensors))
        self.saved = time.monotonic()


def _row(job: Job, protected: Picture, seconds: float) -> dict[str, Any]:
    before, after = to_tensor(job.picture.pixels), to_tensor(protected.pixels)
    height, width = job.picture.pixels.shape[:2]
    figures = {name: round(float(value[0]), 5) for name, value in visibility(before, after).items()}
    return {
        "file": job.path.name,
        "width": width,
        "height": height,
        **figures,
        "seconds": round(seconds, 2),
        "notes": "; ".join(job.picture.notes),
    }


def thumbnails(pictures: Sequence[np.ndarray], side: int = 128) -> np.ndarray:
    """Return pictures uint8 [H, W, 3] of any sizes as squares [n, side, side, 3], small ones enlarged by pixels."""
    from PIL import Image, ImageOps

    made = [
        ImageOps.pad(Image.fromarray(p), (side, side), method=Image.Resampling.NEAREST if max(p.shape) < side
                     else Image.Resampling.LANCZOS, color="white")
        for p in pictures
    ]  # fmt: skip
    return np.stack([np.asarray(one) for one in made])


def before_after(jobs: Sequence[Job], protected: Sequence[Picture]) -> np.ndarray:
    """Return originals, protected pictures and ten times their difference as one picture."""
    originals = [job.picture.pixels for job in jobs]
    changed = [picture.pixels for picture in protected]
    differences = [
        np.clip(127.5 + 10 * (b.astype(float) - a), 0, 255).astype(np.uint8)
        for a, b in zip(originals, changed, strict=True)
    ]
    rows = {"original": originals, "protected": changed, "10 x change": differences}
    return grid({name: thumbnails(row) for name, row in rows.items()})


@dataclass(frozen=True, eq=False)
class Assessment:
    """What editing did to originals and protected pictures.

    Attributes:
        rows: One a picture and purifier.
        table: One a purifier, and the worst case: means.
        picture: Originals, their edits, protected pictures and their edits.
    """

    rows: list[dict[str, Any]]
    table: list[dict[str, Any]]
    picture: np.ndarray


def assess(
    names: Sequence[str],
    originals: np.ndarray,
    protected: np.ndarray,
    edit: Callable[[Tensor, str], Tensor],
    purifiers: Sequence[str],
) -> Assessment:
    """Edit originals and protected pictures from the same noise, the latter after each purifier too.

    The distance of an original's edit after the purifier to that before it is what purifying alone does.

    Args:
        names: Of the pictures.
        originals: uint8 [n, H, W, 3].
        protected: The same, protected.
        edit: Images [n, 3, H, W] in [0, 1] and the purifier that they went through, which masks have to follow
            (`purifiers.follow`) -> edited ones, picture i from its own seed.
        purifiers: Names as `purifiers.purifier` takes; "none" is always first.
    """
    from noiseworks.kits.protection.metrics import feature_distance, psnr
    from noiseworks.kits.protection.purifiers import purify

    clean = edit(to_tensor(originals), "none")
    rows, pictures = [], {}
    for purifier in dict.fromkeys(("none", *purifiers)):
        edits = edit(to_tensor(purify(purifier, protected)), purifier)
        control = clean
        if purifier != "none":
            control = edit(to_tensor(purify(purifier, originals)), purifier)
        figures = {
            "psnr": psnr(clean, edits),
            "feature_distance": feature_distance(clean, edits),
            "psnr_purified_original": psnr(clean, control),
            "feature_distance_purified_original": feature_distance(clean, control),
        }
        for index, name in enumerate(names):
            own = {key: round(float(values[index]), 4) for key, values in figures.items()}
            rows.append({"file": name, "purifier": purifier, **own})
        if purifier == "none":
            pictures = {
                "original": originals[:8],
                "edited": to_pixels(clean[:8]),
                "protected": protected[:8],
                "protected, edited": to_pixels(edits[:8]),
            }
    picture = grid({name: thumbnails(list(row)) for name, row in pictures.items()})
    return Assessment(rows, _table(rows), picture)


def _table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    figures = ("psnr", "feature_distance")
    table = []
    for purifier in dict.fromkeys(row["purifier"] for row in rows):
        mine = [row for row in rows if row["purifier"] == purifier]
        table.append({"purifier": purifier, **{f: float(np.mean([row[f] for row in mine])) for f in figures}})
    files = dict.fromkeys(row["file"] for row in rows)
    worst = {
        "psnr": float(np.mean([max(r["psnr"] for r in rows if r["file"] == f) for f in files])),
        "feature_distance": float(
            np.mean([min(r["feature_distance"] for r in rows if r["file"] == f) for f in files])
        ),
    }
    return [*table, {"purifier": "worst case", **worst}]


def stacked(pictures: Sequence[Picture], factor: int) -> np.ndarray:
    """Return pictures of one size as uint8 [n, H, W, 3] whose sides a model takes; odd rows and columns are cut.

    Raises:
        InputError: When sizes differ.
    """
    sizes = {picture.pixels.shape[:2] for picture in pictures}
    if len(sizes) != 1:
        listed = ", ".join(f"{w}x{h}" for h, w in sorted(sizes))
        raise InputError(f"pictures that are edited together need one size, got {listed}")
    ((height, width),) = sizes
    rows, columns = height - height % factor, width - width % factor
    return np.stack([picture.pixels[:rows, :columns] for picture in pictures])
