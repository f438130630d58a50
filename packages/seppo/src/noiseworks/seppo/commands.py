"""What `noiseworks-seppo` runs: each verb is one of these functions."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noiseworks.core.artifacts import FolderKind, check_folder
from noiseworks.core.models import resolve_model
from noiseworks.core.options import Spread
from noiseworks.kits.diffusers_hosts.options import Hardware
from noiseworks.kits.image_tuning.choices import read_choices
from noiseworks.kits.image_tuning.evaluating import evaluate_adapter
from noiseworks.kits.image_tuning.options import RewardChoice, Rollout, Subject, Trial
from noiseworks.kits.training import check_run, open_run
from noiseworks.seppo.options import Objective, Opponents, Training

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from noiseworks.kits.image_tuning import Choice
    from noiseworks.seppo.rivals import Examples

TRIAL = FolderKind("seppo/trial", ("*.png", "trial.json"), "trial.json")


def train(
    *,
    model: str,
    data: Path,
    out: Path,
    objective: Spread[Objective] = Objective(),
    opponents: Spread[Opponents] = Opponents(),
    rollout: Spread[Rollout] = Rollout(guidance_scale=7.5),
    training: Spread[Training] = Training(),
) -> dict[str, Any]:
    """Tune a pipeline on good images and their prompts; the same command goes on with a stopped run.

    Args:
        model: A text-to-image pipeline (Stable Diffusion 1, 2, XL, 3, FLUX): a directory, a hub id or testbed:<name>.
        data: A file of JSON lines with prompt and winner, an image beside the file; or a folder with choices.jsonl.
        out: Folder for config.json, metrics.csv, checkpoints and the adapter, a LoRA directory `lora`; what was played
            against is kept as `pool/001`, `pool/002`, ..., LoRA directories too.
        objective: The loss and the flip.
        opponents: Against which of its earlier selves the model plays.
        rollout: How opponents draw.
        training: The training.

    Returns:
        Steps done, the adapter, and the figures of the last step.
    """
    settings = {"model": model, "data": str(data), "objective": objective, "opponents": opponents}
    settings |= {"rollout": rollout, "training": training}
    check_run(out, settings)
    winners = read_choices(data, needs=())
    resolve_model(model)
    from noiseworks.seppo.rivals import Plan, rival

    pipe = training.pipeline(model)
    plan = Plan(training, objective, opponents, rollout)
    trainer = rival("seppo", pipe, _examples(pipe, winners, rollout.size), plan)
    with open_run(out, settings) as run:
        found = trainer.fit(run)
    return {"steps": found.rounds, "adapter": found.adapter, **trainer.last}


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
        Mean reward before and after, and the share of images that became better (equal ones count half).
    """
    return evaluate_adapter(
        TRIAL, subject, lora, out, choice=choice, rollout=rollout, trial=trial, hardware=hardware
    )


def compare(
    *,
    subject: Spread[Subject],
    data: Path,
    out: Path,
    choice: Spread[RewardChoice] = RewardChoice(),
    objective: Spread[Objective] = Objective(),
    opponents: Spread[Opponents] = Opponents(updates_per_checkpoint=5),
    rollout: Spread[Rollout] = Rollout(),
    training: Spread[Training] = Training(max_steps=20, batch_size=8),
    trial: Spread[Trial] = Trial(),
) -> dict[str, Any]:
    """Try it on your own model: SePPO beside fine-tuning on the winners and SPIN, at equal updates.

    Args:
        subject: The model, and the prompts to try.
        data: Winners, as for train; where every line has a loser too, Diffusion-DPO takes part.
        out: Folder for `trial.json` and `images.png`, a row of images a method, the untuned model first.
        choice: What images are scored by.
        objective: SePPO's loss; all preference methods have its kappa.
        opponents: Against whom SePPO plays.
        rollout: How the pipeline draws, opponents too.
        training: All trainings.
        trial: How many images are tried.

    Returns:
        For each method mean reward, and the share of images that became better.
    """
    check_folder(out, TRIAL, sources=(subject.model, subject.prompts, data))
    winners, texts = read_choices(data, needs=()), subject.texts()
    from noiseworks.kits.image_tuning import Policy, named_reward
    from noiseworks.kits.image_tuning.reports import report, tried
    from noiseworks.seppo.rivals import METHODS, Plan, rival

    reward, draws = named_reward(choice.reward, "seppo"), {}
    pairs, plan = all(one.loser for one in winners), Plan(training, objective, opponents, rollout)
    for name in METHODS if pairs else [name for name in METHODS if name != "dpo"]:
        pipe = training.pipeline(subject.model)
        rival(name, pipe, _examples(pipe, winners, rollout.size, pairs), plan).fit()
        found = tried(Policy(pipe, texts, rollout), reward, trial)
        draws |= {"before": found["before"], name: found["after"]}
    return report(draws, out, TRIAL, {"subject": asdict(subject), "training": asdict(training)})


def _examples(
    pipe: "DiffusionPipeline", winners: "list[Choice]", size: int | None, pairs: bool = False
) -> "Examples":
    import torch
    from noiseworks.kits.image_tuning import encode_files
    from noiseworks.seppo.rivals import Examples

    prompts = list(dict.fromkeys(one.prompt for one in winners))
    place = {prompt: number for number, prompt in enumerate(prompts)}
    ids = torch.tensor([place[one.prompt] for one in winners])
    losers = encode_files(pipe, [one.loser for one in winners if one.loser], size) if pairs else None
    return Examples(prompts, encode_files(pipe, [one.winner for one in winners], size), ids, losers)
