"""What the claim trains and measures: people with tastes who choose among images that `shapes` drew for open captions.

The captions leave most of the scene open, so that there is something to have a taste in. The frozen reader of features
that people's utilities are made of stands in the place of the published vision-language model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from noiseworks.bench.claims import Context
from noiseworks.bench.testbeds import shapes
from noiseworks.bench.testbeds.shapes import tastes
from noiseworks.kits.diffusers_hosts import Sampling, load_pipeline
from noiseworks.kits.image_tuning import DiffusionDPO, LoraTuning, PairLoss, Policy, Rollout, win_rate
from noiseworks.ppd.encoders import describe_choices
from noiseworks.ppd.options import Support, Taste, Training
from noiseworks.ppd.personal import draw_for
from noiseworks.ppd.training import PPD
from noiseworks.ppd.users import Users, embed_users
from torch import Tensor

if TYPE_CHECKING:
    from noiseworks.ppd.branch import UserBranch

ROLLOUT = Rollout(num_inference_steps=10, guidance_scale=1.0, rollout_batch=32)
SAMPLING = Sampling(num_inference_steps=10, guidance_scale=1.0, batch_size=32)
SUPPORT = Support(choices_each=4, reserved=8, embeddings=8)
KAPPA, RATE, LORA_RATE = 200.0, 3e-3, 1e-3
PROMPTS = ("a circle", "a square", "a triangle", "a cross")


@dataclass(frozen=True, eq=False)
class Shared:
    """What the arms of a seed share: people, their choices and embeddings, and the trial without tuning."""

    seed: int
    model: str
    tastes: Tensor
    pairs: Tensor
    ids: Tensor
    who: Tensor
    users: Users
    seen: int
    prompts: Sequence[str]
    seeds: Sequence[int]
    base: Tensor
    branches: list["UserBranch"] = field(default_factory=list)


def prepare(seed: int, context: Context) -> Shared:
    """Draw a pool of images, let people choose, embed them, and draw the trial with the untuned pipeline."""
    sizes = {name: int(value) for name, value in context.settings.items()}
    model, generator = context.model or "testbed:shapes", torch.Generator().manual_seed(seed)
    pipe = load_pipeline(model, context.device)
    policy = Policy(pipe, PROMPTS, ROLLOUT)
    count = len(PROMPTS) * sizes["pool"]
    ids = torch.arange(len(PROMPTS)).repeat_interleave(sizes["pool"])
    drawn = policy.roll_out(
        ids, *(range(seed * 100_000 + k, seed * 100_000 + k + count) for k in (0, 50_000))
    )
    latents = drawn.latents[:, -1]
    images = policy.decode(latents)
    looks = tastes.features(images)
    people = tastes.tastes(sizes["seen"] + sizes["unseen"], seed)
    each = sizes["choices"]
    who = torch.arange(len(people)).repeat_interleave(each)
    prompt = torch.randint(len(PROMPTS), (len(who),), generator=generator)
    places = torch.stack([torch.randperm(sizes["pool"], generator=generator)[:2] for _ in who])
    two = prompt[:, None] * sizes["pool"] + places
    utility = (looks[two] * people[who][:, None]).sum(-1)
    first = tastes.prefers_first(utility[:, 0], utility[:, 1], generator)
    two = torch.where(first[:, None], two, two.flip(1))
    described = describe_choices(tastes.features, images[two[:, 0]], images[two[:, 1]])
    names, old = [f"{number:04d}" for number in who.tolist()], who < sizes["seen"]
    known = embed_users(
        [n for n, o in zip(names, old, strict=True) if o], described[old], "features", SUPPORT
    )
    users = embed_users(names, described, "features", SUPPORT, known)
    kept = old.clone()
    kept[[row for numbers in users.reserved for row in numbers]] = False
    trial = [text for text in PROMPTS for _ in range(sizes["per_prompt"])]
    seeds = range(seed * 1000, seed * 1000 + len(trial))
    base = draw_for(pipe, None, trial, None, SAMPLING, seeds)
    return Shared(
        seed,
        model,
        people,
        latents[two[kept]],
        prompt[kept],
        who[kept],
        users,
        sizes["seen"],
        trial,
        seeds,
        base,
    )


def drawn_by(arm: str, shared: Shared, context: Context) -> Tensor:
    """Return what an arm draws in the trial for each person [people, n, 3, H, W]."""
    people, n = len(shared.tastes), len(shared.prompts)
    if arm == "base":
        return shared.base.expand(people, *shared.base.shape)
    run = {"max_steps": int(context.settings["steps"]), "batch_size": int(context.settings["batch"])}
    run |= {"minibatch": run["batch_size"], "seed": shared.seed, "device": context.device}
    if arm == "pooled":
        options = LoraTuning(**run, learning_rate=LORA_RATE)
        pipe = options.pipeline(shared.model)
        parts = (shared.pairs, shared.ids)
        DiffusionDPO(pipe, PROMPTS, *parts, options, PairLoss(kappa=KAPPA)).fit(progress=False)
        images = draw_for(pipe, None, shared.prompts, None, SAMPLING, shared.seeds)
        return images.expand(people, *images.shape)
    branch = trained(shared, Training(**run, learning_rate=RATE))
    told = shared.users.standard[:, 0]
    if arm == "shuffled":  # the profiles of others, seen for seen and unseen for unseen
        seen, unseen = told[: shared.seen], told[shared.seen :]
        told = torch.cat([part.roll(1, 0) for part in (seen, unseen)])
    images = draw_for(
        branch.pipe,
        branch,
        list(shared.prompts) * people,
        told.repeat_interleave(n, 0),
        SAMPLING,
        list(shared.seeds) * people,
    )
    return images.view(people, n, *images.shape[1:])


def trained(shared: Shared, options: Training) -> "UserBranch":
    """Return the branch, trained once for the arms that use it."""
    if not shared.branches:
        pipe = options.pipeline(shared.model)
        parts = (shared.pairs, shared.ids, shared.who, shared.users)
        trainer = PPD(pipe, PROMPTS, *parts, options, Taste(kappa=KAPPA))
        trainer.fit(progress=False)
        shared.branches.append(trainer.branch)
    return shared.branches[0]


def measured(arm: str, shared: Shared, context: Context) -> tuple[dict[str, list[float]], Tensor]:
    """Return wins by people's true utility against the untuned pipeline, one number a person, and fidelity."""
    images = drawn_by(arm, shared, context)
    old = tastes.features(shared.base)
    wins, fidelity = [], []
    for taste, own in zip(shared.tastes, images, strict=True):
        wins.append(float(win_rate(tastes.features(own) @ taste, old @ taste).mean()))
        fidelity.append(float(shapes.caption_score(own, shared.prompts).mean()))
    return {"seen": wins[: shared.seen], "unseen": wins[shared.seen :], "fidelity": fidelity}, images
