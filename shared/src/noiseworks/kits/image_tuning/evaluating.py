"""What the verb `eval` of a tuning method does; nothing heavy is imported before input is checked."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from noiseworks.core.artifacts import FolderKind, check_folder
from noiseworks.kits.diffusers_hosts.options import Hardware
from noiseworks.kits.image_tuning.options import RewardChoice, Rollout, Subject, Trial


def evaluate_adapter(
    kind: FolderKind,
    subject: Subject,
    lora: Path,
    out: Path | None,
    *,
    choice: RewardChoice,
    rollout: Rollout,
    trial: Trial,
    hardware: Hardware,
) -> dict[str, Any]:
    """Compare a tuned pipeline with what it was, at a reward, from the same noise.

    Args:
        kind: What the folder of results is; its name begins with the method's.
        subject: The model that was tuned, and the prompts to try.
        lora: The adapter's folder.
        out: Folder of results, None to write none.
        choice: What images are scored by.
        rollout: How the pipeline draws.
        trial: How many images.
        hardware: Where the model runs.

    Returns:
        Reward (mean, median) and diversity before and after, and the share of images that became better (equal ones
        count half) with its 95 % interval.

    Raises:
        InputError: When model, prompts, adapter or reward cannot be loaded, or the folder holds something else.
    """
    if out is not None:
        check_folder(out, kind, sources=(subject.model, subject.prompts, lora))
    subject.texts()
    from noiseworks.kits.image_tuning import named_reward
    from noiseworks.kits.image_tuning.reports import adapted, report, tried

    reward = named_reward(choice.reward, kind.name.partition("/")[0])
    said = {"subject": asdict(subject), "lora": str(lora), "trial": asdict(trial)}
    return report(tried(adapted(subject, lora, rollout, hardware), reward, trial), out, kind, said)
