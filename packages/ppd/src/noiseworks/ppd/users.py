"""Who somebody is: embeddings of a few of their choices, kept apart from those that are trained on."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from noiseworks.core.artifacts import load_artifact, save_artifact
from noiseworks.core.errors import ArtifactError, InputError
from noiseworks.ppd.options import Support
from torch import Tensor

KIND = "ppd/users"


@dataclass(frozen=True, eq=False)
class Users:
    """People and their embeddings; no image is kept.

    Attributes:
        names: Who they are.
        embeddings: Of each, from several sets of choices [people, sets, d].
        mean: Of the people who are trained on [d].
        std: Their spread [d].
        encoder: Name of the features.
        reserved: Of each, which of the choices (numbers of lines) their embeddings are made of.
    """

    names: tuple[str, ...]
    embeddings: Tensor
    mean: Tensor
    std: Tensor
    encoder: str
    reserved: tuple[tuple[int, ...], ...]

    @property
    def standard(self) -> Tensor:
        """The embeddings in units of the spread, as the denoiser is told them [people, sets, d]."""
        return (self.embeddings - self.mean) / self.std

    @property
    def width(self) -> int:
        """Numbers of an embedding, d."""
        return self.embeddings.shape[-1]

    def number(self, name: str) -> int:
        """Return somebody's place.

        Raises:
            InputError: When they are unknown.
        """
        if name not in self.names:
            raise InputError(f"unknown user {name!r}: {len(self.names)} are known, such as {self.names[0]!r}")
        return self.names.index(name)

    def profile(self, who: str | Mapping[str, float]) -> Tensor:
        """Return what the denoiser is told of somebody, or of a mixture of several [d].

        Args:
            who: A name, or name -> weight; weights are at least 0 and sum to 1.

        Raises:
            InputError: When somebody is unknown or the weights do not sum to 1.
        """
        weights = {who: 1.0} if isinstance(who, str) else dict(who)
        if not abs(sum(weights.values()) - 1) <= 1e-6 or min(weights.values()) < 0:  # NaN is no sum either
            raise InputError(f"the weights of a mixture are at least 0 and sum to 1, got {weights}")
        raw = sum(weight * self.embeddings[self.number(name), 0] for name, weight in weights.items())
        return (raw - self.mean) / self.std

    def profiles(self, names: Sequence[str]) -> Tensor:
        """Return what the denoiser is told of several people whose outputs are mixed [people, d]."""
        return torch.stack([self.profile(name) for name in names])

    def save(self, folder: str | Path) -> None:
        """Write them as an artifact."""
        tensors = {"embeddings": self.embeddings, "mean": self.mean, "std": self.std}
        config = {
            "names": list(self.names),
            "encoder": self.encoder,
            "reserved": [list(r) for r in self.reserved],
        }
        save_artifact(folder, KIND, config, tensors)

    @classmethod
    def load(cls, folder: str | Path) -> "Users":
        """Read what `save` wrote.

        Raises:
            ArtifactError: When the folder holds none, or its parts do not fit each other.
        """
        config, tensors = load_artifact(folder, KIND)
        try:
            reserved = tuple(tuple(numbers) for numbers in config["reserved"])
            found = cls(tuple(config["names"]), encoder=config["encoder"], reserved=reserved, **tensors)
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"the users in {folder} are corrupt ({error}): embed them again") from error
        if len(found.names) != len(found.embeddings) or len(reserved) != len(found.names):
            raise ArtifactError(f"the users in {folder} are corrupt: embed them again")
        return found


def embed_users(
    names: Sequence[str], described: Tensor, encoder: str, support: Support, like: Users | None = None
) -> Users:
    """Reserve choices of each person and make their embeddings: means of what `choices_each` of them say.

    The order of the choices does not matter. Who made fewer choices than are reserved is left out.

    Args:
        names: Who made each choice [n].
        described: What each choice says, from `describe_choices` [n, d].
        encoder: Name of the features, for later comparison.
        support: How many choices, and how many embeddings.
        like: People who were trained on, whose mean and spread are taken; by default these people's own.

    Raises:
        InputError: When nobody made enough choices, or `like` is of another encoder.
    """
    if like is not None and like.encoder != encoder:
        raise InputError(f"the encoder is {encoder}, that of the users who were trained on {like.encoder}")
    own: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(names):
        own[name].append(number)
    kept = sorted(name for name, numbers in own.items() if len(numbers) >= support.reserved)
    if not kept:
        raise InputError(f"nobody made {support.reserved} choices; lower reserved")
    rows, reserved = [], []
    for name in kept:
        seed = hashlib.sha256(f"{support.support_seed} {name}".encode()).digest()[:7]
        generator = torch.Generator().manual_seed(int.from_bytes(seed))
        mine = torch.tensor(own[name])[
            torch.randperm(len(own[name]), generator=generator)[: support.reserved]
        ]
        sets = [mine[: support.choices_each]]
        for _ in range(support.embeddings - 1):
            sets.append(mine[torch.randperm(len(mine), generator=generator)[: support.choices_each]])
        rows.append(torch.stack([described[one].mean(0) for one in sets]))
        reserved.append(tuple(sorted(mine.tolist())))
    embeddings = torch.stack(rows)
    flat = embeddings.flatten(0, 1)
    mean = flat.mean(0) if like is None else like.mean
    std = flat.std(0, correction=0).clamp(min=1e-6) if like is None else like.std
    if mean.shape != embeddings.shape[-1:]:
        raise InputError(f"embeddings have {embeddings.shape[-1]} numbers, those trained on {len(mean)}")
    return Users(tuple(kept), embeddings, mean, std, encoder, tuple(reserved))


def identified(names: Sequence[str], described: Tensor, choices_each: int, best: int) -> dict[str, float]:
    """Return how often somebody is recognised by an embedding of choices that were held out.

    Everybody's choices are cut into embeddings of `choices_each`; the last one is compared with the others' means.

    Args:
        names: Who made each choice [n].
        described: What each choice says [n, d].
        choices_each: Choices of an embedding.
        best: Within how many of the nearest people counts as well.

    Returns:
        `top1`, `top` (within the `best` nearest), what chance would give of each, and the number of people.

    Raises:
        InputError: When fewer than two people made twice as many choices.
    """
    own: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(names):
        own[name].append(number)
    sets = [
        torch.stack([described[part].mean(0) for part in torch.tensor(numbers).split(choices_each)][:count])
        for numbers in own.values()
        if (count := len(numbers) // choices_each) >= 2
    ]
    if len(sets) < 2:
        raise InputError(f"fewer than two people made {2 * choices_each} choices; lower choices_each")
    known, asked = torch.stack([one[:-1].mean(0) for one in sets]), torch.stack([one[-1] for one in sets])
    spread = torch.cat([one - one.mean(0) for one in sets]).std(0).clamp(min=1e-6)
    order = torch.cdist(asked / spread, known / spread).argsort(1)
    place = (order == torch.arange(len(sets))[:, None]).int().argmax(1)
    found = {"top1": float((place < 1).float().mean()), "top": float((place < best).float().mean())}
    return found | {"chance1": 1 / len(sets), "chance": min(1.0, best / len(sets)), "people": len(sets)}
