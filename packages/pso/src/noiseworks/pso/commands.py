"""What `noiseworks-pso` runs: each verb is one of these functions."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from noiseworks.core.artifacts import FolderKind, check_folder
from noiseworks.core.errors import InputError
from noiseworks.core.options import Spread
from noiseworks.kits.diffusers_hosts.options import Hardware
from noiseworks.kits.image_tuning.choices import read_choices
from noiseworks.kits.image_tuning.options import Control, LoraTuning, RewardChoice, Subject, Trial, Tuning
from noiseworks.kits.training import check_run, open_run
from noiseworks.pso.options import (
    FAMILIES,
    OFFLINE,
    ONLINE,
    PERSONAL,
    Pairing,
    Personal,
    Preference,
    Sampler,
    Steps,
)

TRIAL = FolderKind("pso/trial", ("*.png", "trial.json"), "trial.json")
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def train(
    *,
    subject: Spread[Subject],
    out: Path,
    choice: Spread[RewardChoice] = RewardChoice(),
    sampler: Spread[Sampler] = Sampler(),
    preference: Spread[Preference] = Preference(),
    training: Spread[Tuning] = ONLINE,
) -> dict[str, Any]:
    """Tune a few-step pipeline online, on pairs of its images that a reward orders; the same command goes on.

    Args:
        subject: The model, and the prompts to train on.
        out: Folder for config.json, metrics.csv, checkpoints and the adapter, a LoRA directory `lora`.
        choice: What orders the images.
        sampler: The few-step sampler.
        preference: What is compared.
        training: The training; a round is of `batch_size` prompts.

    Returns:
        Rounds done, mean reward of the last one, images scored, and the adapter.
    """
    settings = {"subject": subject, "choice": choice, "sampler": sampler, "preference": preference}
    settings |= {"training": training}
    check_run(out, settings)
    texts = subject.texts()
    from noiseworks.kits.image_tuning import named_reward
    from noiseworks.pso.training import OnlinePSO

    reward, pipe = named_reward(choice.reward, "pso"), training.pipeline(subject.model, FAMILIES)
    trainer = OnlinePSO(pipe, texts, reward, training, sampler, preference)
    with open_run(out, settings) as run:
        return asdict(trainer.fit(run))


def offline(
    *,
    model: str,
    data: Path,
    out: Path,
    sampler: Spread[Sampler] = Sampler(),
    pairing: Spread[Pairing] = Pairing(),
    training: Spread[LoraTuning] = OFFLINE,
) -> dict[str, Any]:
    """Tune a few-step pipeline on given images: preferred ones against others, or a style against its own images.

    Args:
        model: A pipeline of a distilled model (Stable Diffusion 1, 2, XL): a directory, a hub id or testbed:<name>.
        data: Folder with `choices.jsonl`, one object a line: prompt, winner, and loser where a file is the reference
            image. Without losers the untuned model draws the reference images.
        out: Folder for config.json, metrics.csv, checkpoints and the adapter, a LoRA directory `lora`.
        sampler: The few-step sampler.
        pairing: What is compared.
        training: The training.

    Returns:
        Steps done, and the adapter.
    """
    settings = {
        "model": model,
        "data": str(data),
        "sampler": sampler,
        "pairing": pairing,
        "training": training,
    }
    check_run(out, settings)
    choices = read_choices(data, needs=())
    losers = [one.loser for one in choices if one.loser is not None]
    if losers and len(losers) != len(choices):
        raise InputError(
            f"{len(losers)} of {len(choices)} lines of {data} have a loser; give one in all, or in none"
        )
    from noiseworks.kits.image_tuning import encode_files
    from noiseworks.pso.training import OfflinePSO
    from torch import tensor

    pipe, texts = training.pipeline(model, FAMILIES), list(dict.fromkeys(one.prompt for one in choices))
    ids = tensor([texts.index(one.prompt) for one in choices])
    targets = encode_files(pipe, [one.winner for one in choices], sampler.size)
    references = encode_files(pipe, losers, sampler.size) if losers else None
    trainer = OfflinePSO(pipe, texts, targets, ids, references, training, sampler, pairing)
    with open_run(out, settings) as run:
        return asdict(trainer.fit(run))


def customize(
    *,
    model: str,
    images: Path,
    instance: str,
    class_prompt: str,
    out: Path,
    sampler: Spread[Sampler] = Sampler(),
    personal: Spread[Personal] = Personal(),
    training: Spread[LoraTuning] = PERSONAL,
) -> dict[str, Any]:
    """Teach a few-step pipeline a subject from a few pictures, against images of its class that it draws itself.

    Args:
        model: A pipeline of a distilled model (Stable Diffusion 1, 2, XL): a directory, a hub id or testbed:<name>.
        images: Folder with the pictures.
        instance: Prompt of the subject, with a word of its own: "a photo of sks dog".
        class_prompt: Prompt of its class: "a photo of a dog".
        out: Folder for config.json, metrics.csv, checkpoints and the adapter, a LoRA directory `lora`.
        sampler: The few-step sampler.
        personal: What is compared.
        training: The training.

    Returns:
        Steps done, and the adapter.
    """
    settings = {"model": model, "images": str(images), "instance": instance, "class_prompt": class_prompt}
    settings |= {"sampler": sampler, "personal": personal, "training": training}
    if personal.negatives < training.batch_size:
        raise InputError(
            f"{personal.negatives} negatives are fewer than the {training.batch_size} rows of a step"
        )
    check_run(out, settings)
    Subject(model, instance).texts()
    found = (
        sorted(one for one in images.iterdir() if one.suffix.lower() in PICTURES) if images.is_dir() else []
    )
    if not found or not class_prompt.strip():
        raise InputError(
            f"no pictures ({', '.join(PICTURES)}) in {images}" if not found else "class_prompt is empty"
        )
    from noiseworks.kits.image_tuning import encode_files
    from noiseworks.pso.training import PersonalPSO

    pipe = training.pipeline(model, FAMILIES)
    pictures = encode_files(pipe, found, sampler.size)
    trainer = PersonalPSO(pipe, (instance, class_prompt), pictures, training, sampler, personal)
    with open_run(out, settings) as run:
        return asdict(trainer.fit(run))


def evaluate(
    *,
    subject: Spread[Subject],
    lora: Path,
    out: Path | None = None,
    choice: Spread[RewardChoice] = RewardChoice(),
    steps: Spread[Steps] = Steps(),
    trial: Spread[Trial] = Trial(),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Compare a tuned pipeline with what it was, at a reward and at several numbers of steps, from the same noise.

    Args:
        subject: The model that was tuned, and the prompts to try.
        lora: The adapter's folder.
        out: Folder for `trial.json` and `images.png`, for each number of steps the images before and after.
        choice: What images are scored by.
        steps: At how many steps.
        trial: How many images.
        hardware: Where the model runs.

    Returns:
        For each number of steps mean reward and diversity before and after, and the share of images that became better.
    """
    if out is not None:
        check_folder(out, TRIAL, sources=(subject.model, subject.prompts, lora))
    texts = subject.texts()
    from noiseworks.kits.diffusers_hosts import load_pipeline
    from noiseworks.kits.image_tuning import Policy, load_lora, named_reward
    from noiseworks.kits.image_tuning.reports import report, tried
    from noiseworks.pso.samplers import few_step

    reward = named_reward(choice.reward, "pso")
    pipe = load_pipeline(subject.model, hardware.torch_device(), hardware.torch_dtype(), FAMILIES)
    load_lora(pipe, lora)
    draws, figures = {}, {}
    for sampler in steps.samplers():
        found = tried(Policy(few_step(pipe, sampler), texts, sampler.rollout()), reward, trial)
        figures |= {f"{sampler.num_inference_steps} steps": report(found, None, TRIAL, {})}
        draws |= {f"{sampler.num_inference_steps} steps, {name}": one for name, one in found.items()}
    if out is not None:
        said = {"subject": asdict(subject), "lora": str(lora), "trial": asdict(trial), "at_steps": figures}
        report(draws, out, TRIAL, said)
    return figures


def compare(
    *,
    subject: Spread[Subject],
    out: Path,
    choice: Spread[RewardChoice] = RewardChoice(),
    sampler: Spread[Sampler] = Sampler(),
    preference: Spread[Preference] = Preference(),
    training: Spread[Tuning] = replace(ONLINE, max_steps=20),
    trial: Spread[Trial] = Trial(),
    control: Spread[Control] = Control(),
) -> dict[str, Any]:
    """Try it on your own model: PSO beside DDPO and the denoising loss, at equal images and updates.

    The denoising loss is given the better image of each pair. All are tried at the sampler's number of steps.

    Args:
        subject: A pipeline of a distilled model, and the prompts to train on and to try.
        out: Folder for `trial.json` and `images.png`, a row of images a method, the untuned model first.
        choice: What orders and scores the images.
        sampler: The few-step sampler.
        preference: What PSO compares.
        training: All trainings; a round is of `batch_size` prompts.
        trial: How many images are tried.
        control: Whether PSO on rewards in random order is tried too; nothing should be gained by it.

    Returns:
        For each method mean reward and diversity, and the share of images that became better, with its 95 % interval.
    """
    check_folder(out, TRIAL, sources=(subject.model, subject.prompts))
    texts = subject.texts()
    from noiseworks.kits.image_tuning import DDPO, BestOfTwo, DDPOSettings, InRandomOrder, named_reward
    from noiseworks.kits.image_tuning.reports import report, tried
    from noiseworks.pso.samplers import few_step
    from noiseworks.pso.training import OnlinePSO

    reward, draws = named_reward(choice.reward, "pso"), {}
    single = replace(training, minibatch=2 * training.minibatch)  # rows are images, not pairs
    for name in ("PSO", "DDPO", "denoising loss", *(["control"] if control.control else [])):
        pipe = training.pipeline(subject.model, FAMILIES)
        if name in ("PSO", "control"):
            told = reward if name == "PSO" else InRandomOrder(reward, training.seed)
            trainer = OnlinePSO(pipe, texts, told, training, sampler, preference)
        else:
            start = few_step(pipe, sampler), texts, reward
            if name == "DDPO":
                trainer = DDPO(*start, single, sampler.rollout(), DDPOSettings(copies=2))
            else:
                trainer = BestOfTwo(*start, training, sampler.rollout())
        trainer.fit()
        found = tried(trainer.policy, reward, trial)
        draws |= {"before": found["before"], name: found["after"]}
    return report(draws, out, TRIAL, {"subject": asdict(subject), "training": asdict(training)})
