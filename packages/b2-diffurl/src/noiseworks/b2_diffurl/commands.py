"""What `noiseworks-b2-diffurl` runs: each verb is one of these functions."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from noiseworks.b2_diffurl.options import Branching, Stages, Training
from noiseworks.core.artifacts import FolderKind, check_folder
from noiseworks.core.errors import InputError
from noiseworks.core.options import Spread, Whole
from noiseworks.kits.diffusers_hosts.options import Hardware
from noiseworks.kits.image_tuning.evaluating import evaluate_adapter
from noiseworks.kits.image_tuning.options import Control, RewardChoice, Rollout, Subject, Trial
from noiseworks.kits.training import check_run, open_run

TRIAL = FolderKind("b2-diffurl/trial", ("*.png", "trial.json"), "trial.json")


def train(
    *,
    subject: Spread[Subject],
    out: Path,
    choice: Spread[RewardChoice] = RewardChoice(),
    stages: Spread[Stages] = Stages(),
    branching: Spread[Branching] = Branching(),
    rollout: Spread[Rollout] = Rollout(),
    training: Spread[Training] = Training(),
) -> dict[str, Any]:
    """Tune a pipeline by a reward, the last denoising steps first; the same command goes on with a stopped run.

    Args:
        subject: The model, and the prompts to train on.
        out: Folder for config.json, metrics.csv, checkpoints and the adapter, a LoRA directory `lora`.
        choice: What images are scored by.
        stages: Which steps are trained when.
        branching: What is compared.
        rollout: How the pipeline draws.
        training: The training.

    Returns:
        Stages done, mean reward of the last one, images scored, and the adapter.
    """
    settings = {"subject": subject, "choice": choice, "stages": stages, "branching": branching}
    settings |= {"rollout": rollout, "training": training}
    stages.fits(rollout.num_inference_steps)
    check_run(out, settings)
    texts = subject.texts()
    from noiseworks.b2_diffurl.training import B2DiffuRL
    from noiseworks.kits.image_tuning import named_reward

    reward, pipe = named_reward(choice.reward, "b2-diffurl"), training.pipeline(subject.model)
    trainer = B2DiffuRL(pipe, texts, reward, training, rollout, stages, branching)
    with open_run(out, settings) as run:
        return asdict(trainer.fit(run))


def schedule(
    *,
    stages: Spread[Stages] = Stages(),
    rounds: Whole = 100,
    num_inference_steps: Whole = 20,
    branches: Whole = 5,
) -> dict[str, Any]:
    """Print which steps each stage trains, and the denoiser's calls of a group of branches.

    Args:
        stages: Which steps are trained when.
        rounds: Stages of the run.
        num_inference_steps: Denoising steps.
        branches: Rollouts of a prompt.

    Returns:
        For each number of trained steps its first and last stage, and the calls of a group; without branching they are
        steps times branches.
    """
    if min(rounds, num_inference_steps) < 1 or branches < 2:
        raise InputError("rounds and num_inference_steps must be at least 1, and branches at least 2")
    stages.fits(num_inference_steps)
    rows: dict[int, dict[str, int]] = {}
    for stage in range(rounds):
        interval = stages.interval(stage, rounds, num_inference_steps)
        shared = interval.start
        calls = shared + branches * (num_inference_steps - shared)
        new = {"trained": len(interval), "first": stage, "calls": calls}
        rows.setdefault(len(interval), new)["last"] = stage
    return {"stages": list(rows.values())}


def evaluate(
    *,
    subject: Spread[Subject],
    lora: Path,
    out: Path | None = None,
    choice: Spread[RewardChoice] = RewardChoice(),
    rollout: Spread[Rollout] = Rollout(),
    trial: Spread[Trial] = Trial(),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Compare a tuned pipeline with what it was, at a reward, from the same noise.

    Args:
        subject: The model that was tuned, and the prompts to try.
        lora: The adapter's folder.
        out: Folder for `trial.json` and `images.png`, the tuned images below those of before.
        choice: What images are scored by.
        rollout: How the pipeline draws.
        trial: How many images.
        hardware: Where the model runs.

    Returns:
        Mean reward and diversity before and after, and the share of images that became better (equal ones count half).
    """
    return evaluate_adapter(
        TRIAL, subject, lora, out, choice=choice, rollout=rollout, trial=trial, hardware=hardware
    )


def compare(
    *,
    subject: Spread[Subject],
    out: Path,
    choice: Spread[RewardChoice] = RewardChoice(),
    stages: Spread[Stages] = Stages(),
    branching: Spread[Branching] = Branching(),
    rollout: Spread[Rollout] = Rollout(),
    training: Spread[Training] = Training(max_steps=14, batch_size=16, accumulate=8),
    trial: Spread[Trial] = Trial(),
    control: Spread[Control] = Control(),
) -> dict[str, Any]:
    """Try it on your own model: B2-DiffuRL beside DDPO, at as many scored images.

    Args:
        subject: The model, and the prompts to train on and to try.
        out: Folder for `trial.json` and `images.png`, a row of images a method, the untuned model first.
        choice: What images are scored by.
        stages: Which steps are trained when.
        branching: What is compared.
        rollout: How the pipeline draws.
        training: Both trainings.
        trial: How many images are tried.
        control: Whether B2-DiffuRL on rewards in random order is tried too; nothing should be gained by it.

    Returns:
        For each method mean reward and diversity, and the share of images that became better, with its 95 % interval.
    """
    stages.fits(rollout.num_inference_steps)
    check_folder(out, TRIAL, sources=(subject.model, subject.prompts))
    texts = subject.texts()
    from noiseworks.b2_diffurl.training import B2DiffuRL
    from noiseworks.kits.image_tuning import DDPO, DDPOSettings, InRandomOrder, named_reward
    from noiseworks.kits.image_tuning.reports import report, tried

    reward, draws = named_reward(choice.reward, "b2-diffurl"), {}
    for name in ("B2-DiffuRL", "DDPO", *(["control"] if control.control else [])):
        told = InRandomOrder(reward, training.seed) if name == "control" else reward
        start = (training.pipeline(subject.model), texts, told, training, rollout)
        if name == "DDPO":
            trainer = DDPO(*start, DDPOSettings(copies=branching.branches, clip=branching.clip))
        else:
            trainer = B2DiffuRL(*start, stages, branching)
        trainer.fit()
        found = tried(trainer.policy, reward, trial)
        draws |= {"before": found["before"], name: found["after"]}
    return report(draws, out, TRIAL, {"subject": asdict(subject), "training": asdict(training)})
