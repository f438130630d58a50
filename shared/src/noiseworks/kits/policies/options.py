"""Options that the commands of policies share; nothing heavy is imported."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from noiseworks.core.errors import InputError
from noiseworks.core.options import Hardware, Options, Wholes, at_least, at_most, below
from noiseworks.core.output import check_file

if TYPE_CHECKING:
    import torch

TABLETOP, SHIPPED = "tabletop", "testbed:"
GRIPPER_TASKS = (0, 1, 2, 3, 4, 5, 11)
_ENVIRONMENTS = (TABLETOP, "metaworld", "pusht")


@dataclass(frozen=True)
class Trials(Options):
    """The episodes that a policy acts in, and where it computes.

    Attributes:
        env: tabletop; metaworld:TASK such as metaworld:reach-v3 (extra [metaworld]); or pusht, pusht:keypoints,
            pusht:pixels (extra [pusht] of noiseworks-bench).
        tasks: Task ids of the table, 0 to 11 with commas between; by default those with a gripper.
        episodes: Episodes of each task.
        seed: First seed of the episodes.
        disturb: Whether free discs on the table, or the T, jump now and then.
        latency: Steps by which an action acts late on the table.
        device: Where the policy computes: auto, cpu, cuda or cuda:N.
    """

    env: str = TABLETOP
    tasks: Annotated[Wholes, at_least(0), at_most(11)] = GRIPPER_TASKS
    episodes: Annotated[int, at_least(1)] = 5
    seed: Annotated[int, at_least(0), below(2**31)] = 0
    disturb: bool = False
    latency: Annotated[int, at_least(0), at_most(4)] = 0
    device: str = "auto"

    def check(self) -> None:
        """Refuse an environment or a device that nobody has.

        Raises:
            InputError: Naming it.
        """
        kind, _, rest = self.env.partition(":")
        if kind not in _ENVIRONMENTS or (kind == TABLETOP and rest):
            raise InputError(f"env must be tabletop, metaworld:TASK or pusht, got {self.env!r}")
        if self.latency and kind != TABLETOP:
            raise InputError(f"latency is the table's; leave it out for {self.env}")
        Hardware(self.device)

    @property
    def task_ids(self) -> tuple[int, ...]:
        """The tasks; other environments than the table have one, 0."""
        return self.tasks if self.env == TABLETOP else (0,)

    def torch_device(self) -> "torch.device":
        """Return the device.

        Raises:
            InputError: When it is not present on this machine.
        """
        return Hardware(self.device).torch_device()


@dataclass(frozen=True)
class Keep(Options):
    """What is kept of the episodes.

    Attributes:
        video: Animated WebP file of the first episode of each task, on the table.
        record: npz file of observations and actions.
        dataset: Folder to make for the episodes in LeRobot's format; LeRobotDataset(name, root=folder) reads it.
    """

    video: Path | None = None
    record: Path | None = None
    dataset: Path | None = None

    def check(self) -> None:
        """Refuse what cannot be written.

        Raises:
            InputError: Naming the file or folder.
        """
        if self.video is not None:
            from noiseworks.kits.policies.video import check_video

            check_video(self.video)
        if self.record is not None:
            check_file(self.record, (".npz",))
        if self.dataset is not None:
            from noiseworks.kits.policies.hosts.lerobot_dataset import check_dataset

            check_dataset(self.dataset)
