"""What `noiseworks-ppd` runs: each verb is one of these functions."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from noiseworks.core.artifacts import FolderKind, check_folder
from noiseworks.core.models import resolve_model
from noiseworks.core.options import Spread, at_least
from noiseworks.core.output import results
from noiseworks.kits.diffusers_hosts.options import Hardware, Sampling, read_prompts
from noiseworks.kits.image_tuning.choices import read_choices
from noiseworks.kits.training import check_run, open_run
from noiseworks.ppd.options import FAMILIES, Addressee, Support, Taste, Training

IMAGES = FolderKind("ppd/images", ("*.png", "images.json"), "images.json")
USERS = "ppd/users"


def embed(
    *,
    choices: Path,
    out: Path,
    encoder: str = "latents",
    model: str | None = None,
    like: Path | None = None,
    support: Spread[Support] = Support(),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Make embeddings of people from a few of their choices; the other choices are left to train on.

    Args:
        choices: A file of JSON lines with prompt, winner, loser and user, or a folder with choices.jsonl.
        out: Folder for the embeddings; no image is kept in it.
        encoder: latents (of the pipeline's first stage), clip:FOLDER, or module:function of images [n, 3, H, W].
        model: The pipeline, for the encoder latents.
        like: Embeddings of people who were trained on; for new people, with whom it goes on.
        support: From which choices people are known.
        hardware: Where the encoder runs.

    Returns:
        The folder, number of people, and numbers of an embedding.
    """
    check_folder(out, USERS, sources=(choices, like, model))
    given = read_choices(choices, ("loser", "user"))
    from noiseworks.ppd.chosen import described_files
    from noiseworks.ppd.users import Users, embed_users

    known = None if like is None else Users.load(like)
    described = described_files(given, encoder, model, hardware)
    found = embed_users([one.user for one in given], described, encoder, support, known)
    found.save(out)
    return {"out": str(out), "people": len(found.names), "width": found.width}


def probe(
    *,
    choices: Path,
    encoder: str = "latents",
    model: str | None = None,
    choices_each: Annotated[int, at_least(1)] = 4,
    best: Annotated[int, at_least(1)] = 16,
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Measure how well people are recognised by embeddings of other choices of theirs: whether an encoder is of use.

    Args:
        choices: As for embed.
        encoder: As for embed.
        model: The pipeline, for the encoder latents.
        choices_each: Choices of an embedding.
        best: Within how many of the nearest people counts as well.
        hardware: Where the encoder runs.

    Returns:
        Shares recognised at once and within the nearest, and what chance would give.
    """
    given = read_choices(choices, ("loser", "user"))
    from noiseworks.ppd.chosen import described_files
    from noiseworks.ppd.users import identified

    names = [one.user for one in given]
    return identified(names, described_files(given, encoder, model, hardware), choices_each, best)


def train(
    *,
    model: str,
    choices: Path,
    users: Path,
    out: Path,
    taste: Spread[Taste] = Taste(),
    training: Spread[Training] = Training(),
) -> dict[str, Any]:
    """Tune a pipeline to everybody's choices at once; the same command goes on with a stopped run.

    Args:
        model: A pipeline (Stable Diffusion 1, 2, XL): a directory, a hub id or testbed:<name>.
        choices: The file or folder that users was embedded from.
        users: Folder of embed; the choices that it is made of are not trained on.
        out: Folder for config.json, metrics.csv, checkpoints and the branch, `user_branch`.
        taste: How strongly choices count.
        training: The training.

    Returns:
        Steps done and the branch's folder.
    """
    settings = {"model": model, "choices": choices, "users": users, "taste": taste, "training": training}
    check_run(out, settings)
    given = read_choices(choices, ("loser", "user"))
    resolve_model(model)
    from noiseworks.ppd.chosen import left_to_train
    from noiseworks.ppd.training import PPD
    from noiseworks.ppd.users import Users

    people = Users.load(users)
    pipe = training.pipeline(model, FAMILIES)
    prompts, latents, ids, who = left_to_train(pipe, given, people)
    trainer = PPD(pipe, prompts, latents, ids, who, people, training, taste)
    with open_run(out, settings) as run:
        found = trainer.fit(run)
    return {"steps": found.rounds, "user_branch": found.adapter}


def sample(
    *,
    model: str,
    branch: Path,
    users: Path,
    prompts: str,
    addressee: Spread[Addressee],
    out: Path,
    sampling: Spread[Sampling] = Sampling(),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Draw for somebody, or for a mixture of people.

    Args:
        model: The pipeline that was tuned.
        branch: The folder `user_branch` of a run.
        users: Folder of embed.
        prompts: A text file with one prompt a line, or one prompt.
        addressee: For whom.
        out: Folder for `images.json` and the images, numbered.
        sampling: How images are drawn.
        hardware: Where the model runs.

    Returns:
        The folder and the number of images.
    """
    check_folder(out, IMAGES, sources=(model, branch, users, prompts))
    texts, weights = read_prompts(prompts), addressee.weights()
    resolve_model(model)
    from noiseworks.kits.diffusers_hosts import load_pipeline
    from noiseworks.kits.pictures import to_pixels, write_picture
    from noiseworks.ppd.branch import UserBranch
    from noiseworks.ppd.personal import draw_for
    from noiseworks.ppd.users import Users

    people, apart = Users.load(users), addressee.mix == "output"
    told = people.profiles(list(weights)) if apart else people.profile(weights)
    pipe = load_pipeline(model, hardware.torch_device(), hardware.torch_dtype(), FAMILIES)
    put = UserBranch.load(pipe, branch, people, tuple(weights.values()) if apart else (1.0,))
    put.scale = addressee.user_scale
    images = draw_for(pipe, put, texts, told.expand(len(texts), *told.shape), sampling)
    settings = {"prompts": texts, "addressee": asdict(addressee), "sampling": asdict(sampling)}
    with results(out, IMAGES, settings) as folder:
        for number, pixels in enumerate(to_pixels(images)):
            write_picture(pixels, folder / f"{number:04d}.png")
    return {"out": str(out), "images": len(images)}


def evaluate(
    *,
    model: str,
    branch: Path,
    choices: Path,
    users: Path,
    draws: Annotated[int, at_least(1)] = 8,
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Measure how well held-out choices are foretold: with people's own embeddings, and with another's as a control.

    Args:
        model: The pipeline that was tuned.
        branch: The folder `user_branch` of a run.
        choices: Choices that were not trained on, of people in users.
        users: Folder of embed; the choices that it is made of are left out.
        draws: Noise levels at which the two images of a choice are compared.
        hardware: Where the model runs.

    Returns:
        Shares of choices foretold, `own` and `other`, and the number of choices.
    """
    given = read_choices(choices, ("loser", "user"))
    resolve_model(model)
    from noiseworks.kits.diffusers_hosts import load_pipeline
    from noiseworks.kits.image_tuning import DenoisingError, Policy, implicit_accuracy
    from noiseworks.kits.image_tuning.tuner import UNGUIDED
    from noiseworks.ppd.branch import UserBranch
    from noiseworks.ppd.chosen import left_to_train
    from noiseworks.ppd.personal import preferred
    from noiseworks.ppd.users import Users

    people = Users.load(users)
    pipe = load_pipeline(model, hardware.torch_device(), hardware.torch_dtype(), FAMILIES)
    prompts, latents, ids, who = left_to_train(pipe, given, people)
    error = DenoisingError(Policy(pipe, prompts, UNGUIDED))
    put, told = UserBranch.load(pipe, branch, people), people.standard[:, 0]
    found = {
        name: float(implicit_accuracy(preferred(error, put, latents, ids, told[numbers], draws)).mean())
        for name, numbers in (("own", who), ("other", (who + 1) % len(people.names)))
    }
    return found | {"choices": len(latents)}
