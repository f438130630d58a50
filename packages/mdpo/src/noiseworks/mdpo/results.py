"""What commands and trainers return; nothing heavy is imported."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Generated:
    """What `generate` returns.

    Attributes:
        completions: One text a prompt.
        calls: Network calls.
        trace: The trace file, if one was asked for.
    """

    completions: list[str]
    calls: int
    trace: str | None


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation measured.

    Attributes:
        accuracy: Share of right final answers.
        any_step: Share of prompts with a right prediction at some step.
        over_denoised: Share of prompts that were right at some step and wrong at the last one.
        reward: Mean final reward.
        prompts: Number of prompts.
        calls: Network calls a prompt.
    """

    accuracy: float
    any_step: float
    over_denoised: float
    reward: float
    prompts: int
    calls: int


@dataclass(frozen=True)
class SamplerRow:
    """What a sampler cost and wrote.

    Attributes:
        sampler: low_confidence, the standard one, or rcr.
        calls: Network calls.
        seconds: Median of three runs over all prompts.
        peak_mib: Most MiB of its tensors beside the weights.
        completions: One text a prompt.
    """

    sampler: str
    calls: int
    seconds: float
    peak_mib: float
    completions: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """What `compare` returns.

    Attributes:
        samplers: The standard sampler, then RCR.
    """

    samplers: tuple[SamplerRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the rows."""
        return asdict(self)

    def __rich__(self) -> "Table":
        """Return a table, one row for each sampler."""
        from rich.table import Table

        table = Table("sampler", "calls", "seconds", "MiB", "completions")
        for row in self.samplers:
            cost = (str(row.calls), f"{row.seconds:.3f}", f"{row.peak_mib:.1f}")
            table.add_row(row.sampler, *cost, "\n".join(row.completions))
        return table


@dataclass(frozen=True)
class TrainResult:
    """What `MDPOTrainer.fit` returns.

    Attributes:
        steps: Rounds done over the whole run.
        reward: Mean final reward of the last round's rollouts; None of supervised training.
        evaluation: The last evaluation, if there was one.
        model: Folder of the trained model (or adapter), if the run has a folder.
    """

    steps: int
    reward: float | None
    evaluation: Evaluation | None
    model: str | None
