"""What `noiseworks-d3po` runs: each verb is one of these functions."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from noiseworks.core.artifacts import FolderKind, check_folder
from noiseworks.core.checks import check_number
from noiseworks.core.options import Seed, Spread, Whole
from noiseworks.core.output import check_file, progress_bar, results
from noiseworks.d3po.answers import SUFFIX
from noiseworks.d3po.labels import agreement, merged, read_labels, read_samples
from noiseworks.d3po.options import Preference, Source, Training
from noiseworks.kits.diffusers_hosts.options import Hardware
from noiseworks.kits.image_tuning.evaluating import evaluate_adapter
from noiseworks.kits.image_tuning.options import Control, RewardChoice, Rollout, Subject, Trial
from noiseworks.kits.training import check_run, open_run

SAMPLES = FolderKind("d3po/samples", ("*.png", "samples.json", "trajectories/*"), "samples.json")
TRIAL = FolderKind("d3po/trial", ("*.png", "trial.json"), "trial.json")


def train(
    *,
    model: str,
    out: Path,
    source: Spread[Source | None] = None,
    choice: Spread[RewardChoice] = RewardChoice(),
    preference: Spread[Preference] = Preference(),
    rollout: Spread[Rollout] = Rollout(),
    training: Spread[Training] = Training(),
) -> dict[str, Any]:
    """Tune a pipeline, by the order that a reward gives or by labels; the same command goes on with a stopped run.

    Args:
        model: A text-to-image pipeline (Stable Diffusion 1, 2, XL, 3, FLUX): a directory, a hub id or testbed:<name>.
        out: Folder for config.json, metrics.csv, checkpoints and the adapter, a LoRA directory `lora`.
        source: Where preferences come from; it has to be given.
        choice: What orders new images.
        preference: What is compared.
        rollout: How the pipeline draws, or drew.
        training: The training.

    Returns:
        Rounds done, mean reward of the last one, images scored, the adapter, between which values a loss can lie, and
        of labels how often people agree who prefer one image of a pair.
    """
    source = source or Source()
    settings = {"model": model, "source": source, "choice": choice, "preference": preference}
    settings |= {"rollout": rollout, "training": training}
    check_run(out, settings)
    given = None
    if source.prompts is not None:
        texts = Subject(model, source.prompts).texts()
    else:
        texts, _ = read_samples(source.data / SAMPLES.mark)
        Subject(model, texts[0]).texts()
        given = read_labels(source.labels, len(texts), preference.copies)
    from noiseworks.d3po.objective import loss_bounds
    from noiseworks.d3po.training import D3PO, LabelledD3PO
    from noiseworks.kits.image_tuning import Policy, Trajectories, named_reward

    judge = named_reward(choice.reward, "d3po") if given is None else None
    pipe = training.pipeline(model)
    if given is None:
        trainer = D3PO(pipe, texts, judge, training, rollout, preference)
    else:
        fits = Policy(pipe, texts, rollout).fingerprint
        drawn = Trajectories.load(source.data / "trajectories", fits)
        trainer = LabelledD3PO(pipe, drawn, merged(given), training, rollout, preference)
    with open_run(out, settings) as run:
        found = trainer.fit(run)
    said = {"loss_bounds": loss_bounds(preference.beta, preference.clamp_eps)}
    return asdict(found) | said | ({} if given is None else {"agreement": agreement(given)})


def sample(
    *,
    subject: Spread[Subject],
    out: Path,
    preference: Spread[Preference] = Preference(copies=7),
    rollout: Spread[Rollout] = Rollout(),
    hardware: Spread[Hardware] = Hardware(),
    seed: Seed = 0,
) -> dict[str, Any]:
    """Draw several images of each prompt and keep how they came about, so that they can be labelled and trained on.

    Args:
        subject: What is drawn, and from which model.
        out: Folder for the images (numbered prompt by prompt), `samples.json` and the trajectories.
        preference: How many images, and whether they start from the same noise.
        rollout: How the pipeline draws.
        hardware: Where the model runs.
        seed: Of all noise.

    Returns:
        The folder, number of prompts and of images.
    """
    check_folder(out, SAMPLES, sources=(subject.model, subject.prompts))
    texts = subject.texts()
    from noiseworks.core.noise import mix64
    from noiseworks.kits.diffusers_hosts import load_pipeline
    from noiseworks.kits.image_tuning import Policy
    from noiseworks.kits.image_tuning.options import FAMILIES
    from noiseworks.kits.pictures import to_pixels, write_picture
    from torch import arange

    pipe = load_pipeline(subject.model, hardware.torch_device(), hardware.torch_dtype(), FAMILIES)
    policy, K = Policy(pipe, texts, rollout), preference.copies
    count = len(texts) * K
    starts = [mix64(seed, i // K if preference.shared_start else i, 0) >> 2 for i in range(count)]
    drawn = policy.roll_out(
        arange(len(texts)).repeat_interleave(K), starts, [mix64(seed, i, 1) >> 2 for i in range(count)]
    )
    settings = {
        "prompts": texts,
        "copies": K,
        "rollout": asdict(rollout),
        "model": subject.model,
        "seed": seed,
    }
    with results(out, SAMPLES, settings) as folder:
        for number, pixels in enumerate(to_pixels(policy.decode(drawn.latents[:, -1]))):
            write_picture(pixels, folder / f"{number:05d}.png")
        drawn.save(folder / "trajectories", policy.fingerprint)
    return {"out": str(out), "prompts": len(texts), "images": count}


def label(*, data: Path, out: Path, port: Whole = 8765, browser: bool = True) -> dict[str, Any]:
    """Show pairs of drawn images on a page of this machine, and write which is better; the same command goes on.

    Args:
        data: Folder of sample.
        out: File (.jsonl) of the answers, which train reads as labels; every answer is in it at once.
        port: Of the page, at 127.0.0.1; 0 takes a free one.
        browser: Whether to open the page.

    Returns:
        The file, and how many questions were answered of how many.
    """
    check_file(out, (SUFFIX,))
    check_number("port", port, low=0, high=65535, integer=True)
    mark = data / SAMPLES.mark
    texts, copies = read_samples(mark, images=True)
    from noiseworks.d3po.label.page import label_images

    with progress_bar("label") as show:
        found = label_images(data, texts, copies, out, mark, port, show, browser)
    return {"labels": str(out), "answered": len(found.better), "questions": found.total}


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
    out: Path,
    choice: Spread[RewardChoice] = RewardChoice(),
    preference: Spread[Preference] = Preference(),
    rollout: Spread[Rollout] = Rollout(),
    training: Spread[Training] = Training(max_steps=20),
    trial: Spread[Trial] = Trial(),
    control: Spread[Control] = Control(),
) -> dict[str, Any]:
    """Try it on your own model: D3PO beside DDPO, which is given the reward itself, at equal images and updates.

    Args:
        subject: The model, and the prompts to train on and to try.
        out: Folder for `trial.json` and `images.png`, a row of images a method, the untuned model first.
        choice: What images are scored by.
        preference: What D3PO compares.
        rollout: How the pipeline draws.
        training: Both trainings.
        trial: How many images are tried.
        control: Whether D3PO on rewards in random order is tried too; nothing should be gained by it.

    Returns:
        For each method mean reward, and the share of images that became better, with its 95 % interval.
    """
    check_folder(out, TRIAL, sources=(subject.model, subject.prompts))
    texts = subject.texts()
    from noiseworks.d3po.training import D3PO
    from noiseworks.kits.image_tuning import DDPO, DDPOSettings, InRandomOrder, named_reward
    from noiseworks.kits.image_tuning.reports import report, tried

    reward, draws = named_reward(choice.reward, "d3po"), {}
    ddpo = replace(training, minibatch=training.minibatch * preference.copies)
    for name in ("D3PO", "DDPO", *(["control"] if control.control else [])):
        told = InRandomOrder(reward, training.seed) if name == "control" else reward
        start = (training.pipeline(subject.model), texts, told)
        if name == "DDPO":
            trainer = DDPO(*start, ddpo, rollout, DDPOSettings(copies=preference.copies))
        else:
            trainer = D3PO(*start, training, rollout, preference)
        trainer.fit()
        found = tried(trainer.policy, reward, trial)
        draws |= {"before": found["before"], name: found["after"]}
    return report(draws, out, TRIAL, {"subject": asdict(subject), "training": asdict(training)})
