"""What commands and trainers return; nothing heavy is imported."""

from dataclasses import dataclass


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
