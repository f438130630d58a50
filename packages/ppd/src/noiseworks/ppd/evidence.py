"""What the claim trains and measures: people with tastes who choose among images that `shapes` drew for open captions.

The captions leave most of the scene open, so that there is something to have a taste in. The reader of the features
that people's utilities are made of stands in the place of the published vision-language model: a strong encoder, of
which four noisy choices still say little. The two ways without training use the same four choices of the same people.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from typing import TYPE_CHECKING

import torch
from noiseworks.bench.claims import Context
from noiseworks.bench.testbeds import shapes
from noiseworks.bench.testbeds.shapes import tastes
from noiseworks.bench.testbeds.shapes.scenes import BACKGROUNDS, COLORS, POSITIONS, RADII
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
# Where an image's layout and colours are decided; below, a pair's errors differ by its noise more than by its images.
TIMESTEPS = torch.arange(700, 1000)
KAPPA, RATE, LORA_RATE = 200.0, 1e-3, 1e-3
PROMPTS = ("a circle", "a square", "a triangle", "a cross")
# Images of which `rerank` shows the best: ten more cost as many rows as training PPD at laptop does.
CANDIDATES = 11


@dataclass(frozen=True, eq=False)
class Shared:
    """What the arms of a seed share: people, their choices and embeddings, and the trial without tuning.

    Attributes:
        seed: The seed.
        model: The pipeline.
        tastes: Directions of everybody's taste [people, 6].
        pairs: Latents of the choices that are trained on, winner first [N, 2, ...].
        ids: Their prompts [N].
        who: Who made them [N].
        users: Everybody's embeddings.
        seen: How many of the people are trained on; the others come after them.
        prompts: Of the trial, for each person the same.
        seeds: Of its images.
        candidates: What the untuned pipeline draws for it, several of each [CANDIDATES, n, 3, H, W].
        branches: The trained branch, once it is there.
    """

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
    candidates: Tensor
    branches: list["UserBranch"] = field(default_factory=list)

    @property
    def base(self) -> Tensor:
        """What the untuned pipeline draws in the trial [n, 3, H, W]."""
        return self.candidates[0]

    @property
    def liked(self) -> Tensor:
        """What four choices of each say they like: mean of f(winner) - f(loser) [people, 6]."""
        return self.users.embeddings[:, 0, : len(tastes.FEATURES)]


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
    more = [s + 100 * k for k in range(CANDIDATES) for s in seeds]
    candidates = draw_for(pipe, None, trial * CANDIDATES, None, SAMPLING, more).unflatten(0, (CANDIDATES, -1))
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
        candidates,
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
        DiffusionDPO(pipe, PROMPTS, *parts, options, PairLoss(kappa=KAPPA), TIMESTEPS).fit(progress=False)
        images = draw_for(pipe, None, shared.prompts, None, SAMPLING, shared.seeds)
        return images.expand(people, *images.shape)
    if arm == "rerank":
        looks = tastes.features(shared.candidates.flatten(0, 1)).unflatten(0, (CANDIDATES, n))
        best = torch.einsum("knf,pf->pkn", looks, shared.liked).argmax(1)
        return shared.candidates[best, torch.arange(n)]
    if arm == "words":
        texts = [text for liked in shared.liked for text in in_words(liked, shared.prompts)]
        pipe = load_pipeline(shared.model, context.device)
        images = draw_for(pipe, None, texts, None, SAMPLING, list(shared.seeds) * people)
        return images.view(people, n, *images.shape[1:])
    told = shared.users.standard[:, 0]
    if arm == "other":  # the choices of another, seen for seen and unseen for unseen
        told = torch.cat([part.roll(1, 0) for part in (told[: shared.seen], told[shared.seen :])])
    branch = trained(shared, Training(**run, learning_rate=RATE), by_coin=arm == "coin")
    images = draw_for(
        branch.pipe,
        branch,
        list(shared.prompts) * people,
        told.repeat_interleave(n, 0),
        SAMPLING,
        list(shared.seeds) * people,
    )
    return images.view(people, n, *images.shape[1:])


def in_words(liked: Tensor, prompts: Sequence[str]) -> list[str]:
    """Return captions that spell out a taste: of all complete ones with a prompt's shape, the one that is liked best.

    Args:
        liked: What is liked, by feature [6].
        prompts: What is asked for.
    """
    texts, looks = spelled_out()
    values = looks @ liked
    return [
        texts[max(range(len(texts)), key=lambda i: (prompt.split()[1] in texts[i], values[i]))]
        for prompt in prompts
    ]


@cache
def spelled_out() -> tuple[list[str], Tensor]:
    """Return every complete caption of one object, and the features of what it says."""
    noun = {text: text.split()[1] for text in PROMPTS}
    texts = [
        f"a {size} {color} {noun[prompt]} at the {place} on a {background} background"
        for prompt, size, color, place, background in product(PROMPTS, RADII, COLORS, POSITIONS, BACKGROUNDS)
    ]
    drawn = []
    for text in texts:
        scene, _ = shapes.read_caption(text)
        x, y = POSITIONS[scene.position]
        item = replace(scene.objects[0], x=x, y=y, radius=RADII[scene.size])
        drawn.append(replace(scene, objects=(item,)))
    return texts, tastes.features(torch.from_numpy(shapes.render(drawn)).permute(0, 3, 1, 2))


def trained(shared: Shared, options: Training, by_coin: bool = False) -> "UserBranch":
    """Return the branch, trained once for the arms that use it; `by_coin` throws a coin for who won each choice."""
    if by_coin:
        coin = torch.rand(len(shared.pairs), generator=torch.Generator().manual_seed(shared.seed)) < 0.5
        pairs = torch.where(coin.view(-1, *[1] * (shared.pairs.ndim - 1)), shared.pairs, shared.pairs.flip(1))
        shared = replace(shared, pairs=pairs, branches=[])
    if not shared.branches:
        pipe = options.pipeline(shared.model)
        parts = (shared.pairs, shared.ids, shared.who, shared.users)
        trainer = PPD(pipe, PROMPTS, *parts, options, Taste(kappa=KAPPA), TIMESTEPS)
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
