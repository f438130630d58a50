"""Recordings as training windows: which frames and poses belong to a start, and the mixture with video."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from noiseworks.core.errors import InputError
from noiseworks.kits.training import Rows
from noiseworks.kits.training.batches import Transform
from noiseworks.pad.options import Window
from torch import Tensor
from torch.utils.data import Dataset

ARRAYS = ("frames", "poses", "goals", "ends", "depth")
PICTURES = ("image", "frames", "depth", "depths")  # of a batch


@dataclass(frozen=True)
class Recording:
    """Episodes one after the other.

    Attributes:
        frames: uint8 [M, C, S, S], or float latents.
        goals: Text embedding of each episode, float32 [E, G].
        ends: Where each episode ends (one past its last step), int64 [E].
        poses: Robot poses, float32 [M + E, D]: those of each episode's steps, then the one that its last step leads to;
            None for video.
        depth: uint8 [M, 1, S, S], or None.
    """

    frames: np.ndarray
    goals: np.ndarray
    ends: np.ndarray
    poses: np.ndarray | None = None
    depth: np.ndarray | None = None

    def __post_init__(self) -> None:
        steps, episodes = len(self.frames), len(self.ends)
        if not episodes or (np.diff(self.ends, prepend=0) < 1).any() or self.ends[-1] != steps:
            raise InputError(f"ends must rise to the number of frames, {steps}, got {self.ends[-3:]}")
        wanted = {"goals": episodes, "poses": steps + episodes, "depth": steps}
        for name, length in wanted.items():
            value = getattr(self, name)
            if value is not None and len(value) != length:
                raise InputError(f"{name} must have {length} rows, got {len(value)}")
        if self.frames.ndim != 4 or self.frames.shape[2] != self.frames.shape[3]:
            raise InputError(f"frames must be square, [M, C, S, S], got {list(self.frames.shape)}")
        if self.poses is not None and not np.isfinite(self.poses).all():
            raise InputError("poses hold NaN or infinity")

    def save(self, folder: str | Path) -> None:
        """Write the arrays to a folder, which is made."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ARRAYS:
            if (value := getattr(self, name)) is not None:
                np.save(folder / f"{name}.npy", value)

    @classmethod
    def load(cls, folder: str | Path) -> "Recording":
        """Read a folder's arrays, of which images stay on disk.

        Raises:
            InputError: When one is missing, unreadable or does not fit the others.
        """
        found = {}
        for name in ARRAYS:
            path = Path(folder) / f"{name}.npy"
            if not path.is_file():
                if name in ("poses", "depth"):
                    continue
                raise InputError(
                    f"{folder} lacks {path.name}: a recording has frames, goals, ends and perhaps poses"
                )
            try:
                found[name] = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise InputError(f"{path} is no array: {error}") from error
        return cls(**found)


def window_starts(ends: np.ndarray, stride: int, keep_ends: bool) -> np.ndarray:
    """Return the steps at which windows begin, int64 [W].

    Args:
        ends: Of the episodes.
        stride: Steps to the first future frame.
        keep_ends: Whether a start whose first future frame leaves the episode is kept; the reference drops it.
    """
    firsts = np.concatenate(([0], ends[:-1]))
    last = ends - (0 if keep_ends else stride)
    return np.concatenate(
        [np.arange(a, b) for a, b in zip(firsts, last, strict=True)] or [np.zeros(0, np.int64)]
    )


def future(starts: np.ndarray, ends: np.ndarray, offsets: Sequence[int]) -> np.ndarray:
    """Return the steps that many after each start, int64 [W, len(offsets)]; past an episode its last step."""
    last = ends[np.searchsorted(ends, starts, side="right")] - 1
    return np.minimum(starts[:, None] + np.asarray(offsets), last[:, None])


class Windows(Dataset):
    """Training windows of a recording, cut out when a batch asks for them.

    An item is a mapping of tensors with the rows first: `image`, `goal`, `frames` [B, k C, S, S], and `pose`, `poses`
    [B, poses D], which are zeros where the recording has none, `labelled` bool [B], and `depth`, `depths`.

    Args:
        recording: The episodes.
        window: What of the future a sample holds.
        pose_dim: Entries D of a pose.
        labelled: Whether poses are used.
        stride: Steps between frames; by default the window's.
        depth: Side of depth maps, zeros where the recording has none; None for a model without depth.

    Raises:
        InputError: When no window fits, or poses are missing.
    """

    def __init__(
        self,
        recording: Recording,
        window: Window,
        pose_dim: int,
        *,
        labelled: bool = True,
        stride: int | None = None,
        depth: int | None = None,
    ) -> None:
        if labelled and (recording.poses is None or recording.poses.shape[1] != pose_dim):
            raise InputError(f"the demonstrations need poses of {pose_dim} entries")
        self.recording, self.window, self.pose_dim = recording, window, pose_dim
        self.labelled, self.depth = labelled, depth
        step = stride or window.stride
        self.starts = window_starts(recording.ends, step, window.keep_ends)
        if not len(self.starts):
            raise InputError(f"no episode is longer than the stride of {step} steps")
        self.frames = future(self.starts, recording.ends, [step * (i + 1) for i in range(window.frames)])
        self.episode = np.searchsorted(recording.ends, self.starts, side="right")

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one window, without the dimension of the rows."""
        return {name: value[0] for name, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return windows as one mapping."""
        rows = np.asarray(indices)
        recording, starts = self.recording, self.starts[rows]
        found = {
            "image": as_values(recording.frames[starts]),
            "frames": as_values(recording.frames[self.frames[rows]]).flatten(1, 2),
            "goal": torch.from_numpy(np.asarray(recording.goals[self.episode[rows]], np.float32)),
            "labelled": torch.full((len(rows),), self.labelled),
        }
        found |= self.poses_of(rows)
        if self.depth is not None:
            seen = self.recording.depth is not None
            for name, steps in (("depth", starts[:, None]), ("depths", self.frames[rows])):
                shape = (*steps.shape, self.depth, self.depth)
                found[name] = as_values(recording.depth[steps][:, :, 0]) if seen else torch.zeros(shape)
            found["measured"] = torch.full((len(rows),), seen)
        return found

    def poses_of(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Return `pose` and `poses` of windows, without reading images."""
        window, dim = self.window, self.pose_dim
        if not self.labelled:
            shape = (len(rows), window.poses * dim)
            return {"pose": torch.zeros(len(rows), dim), "poses": torch.zeros(shape)}
        every = 1 if window.dense else window.stride
        # Poses of an episode have one row more than its frames.
        ends = self.recording.ends + np.arange(1, len(self.recording.ends) + 1)
        starts = self.starts[rows] + self.episode[rows]
        steps = future(starts, ends, [every * (i + 1) for i in range(window.poses)])
        # Rows are drawn before they become tensors, which may not share memory with a file.
        pose, poses = (
            torch.from_numpy(np.asarray(self.recording.poses[rows], np.float32)) for rows in (starts, steps)
        )
        return {"pose": pose, "poses": poses.flatten(1)}


def as_values(images: np.ndarray) -> Tensor:
    """Return uint8 images as float32 in [-1, 1]; latents as float32."""
    found = torch.from_numpy(np.ascontiguousarray(images))
    return found.float().div_(127.5).sub_(1) if found.dtype == torch.uint8 else found.float()


def shifted(reach: int) -> Transform | None:
    """Return a transform that moves each sample's pictures, all alike, by up to `reach` pixels along both axes.

    Edges are repeated (Kostrikov et al. 2021). Poses stay: motions from the present one are the same wherever the
    camera looks. None for a reach of 0.
    """
    if not reach:
        return None

    def transform(batch: dict, generator: torch.Generator) -> dict:
        own = Rows.of(len(batch["goal"]))
        moves = own.draw(lambda rows: torch.randint(2 * reach + 1, (rows, 2), generator=generator))
        return batch | {name: _cut(batch[name], reach, moves) for name in PICTURES if name in batch}

    return transform


def _cut(pictures: Tensor, reach: int, moves: Tensor) -> Tensor:
    """Return pictures [B, C, S, S] whose corners lie at moves [B, 2], 0 to 2 reach, of themselves with wider edges."""
    wide, side = F.pad(pictures, (reach,) * 4, mode="replicate"), pictures.shape[-1]
    return torch.stack(
        [one[:, y : y + side, x : x + side] for one, (y, x) in zip(wide, moves.tolist(), strict=True)]
    )


class Mixed(Dataset):
    """Two sets of windows as one, of which a share of the samples is the second's; the shorter one is repeated.

    Args:
        first: Demonstrations.
        second: Video.
        share: Share of the second, in (0, 1).
    """

    def __init__(self, first: Windows, second: Windows, share: float) -> None:
        self.parts = (first, second)
        self.total = int(np.ceil(max(len(first) / (1 - share), len(second) / share)))
        self.of_second = round(share * self.total)

    def __len__(self) -> int:
        """Return the number of samples of an epoch."""
        return self.total

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one sample, without the dimension of the rows."""
        return {name: value[0] for name, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> Mapping[str, Tensor]:
        """Return samples as one mapping, the first set's before the second's."""
        rows = np.asarray(indices)
        chosen = (rows[rows >= self.of_second] - self.of_second, rows[rows < self.of_second])
        made = [
            part.__getitems__(own % len(part))
            for part, own in zip(self.parts, chosen, strict=True)
            if len(own)
        ]
        return {name: torch.cat([one[name] for one in made]) for name in made[0]}
