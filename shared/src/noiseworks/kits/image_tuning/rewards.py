"""What images are worth: the interface, rewards that need nothing else, and rewards by name."""

import io
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol

import torch
from noiseworks.core.errors import InputError, NonFiniteError, first_line
from noiseworks.core.models import resolve_model, testbed
from noiseworks.kits.image_tuning.options import REWARDS
from torch import Tensor


class Reward(Protocol):
    """Scores finished images; deterministic, and without gradients. A plain function is one."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return one number an image, or several for dominance.

        Args:
            images: On the CPU, float32 [B, 3, H, W] in [0, 1].
            prompts: What each was asked to show.

        Returns:
            [B] or [B, m].
        """
        ...


@torch.inference_mode()
def score(reward: Reward, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return a reward's scores, float32 [B, m].

    Raises:
        InputError: When it returns another number of scores than there are images.
        NonFiniteError: When a score is NaN or infinite, naming the prompt.
    """
    found = torch.as_tensor(reward(images, list(prompts))).detach().float().cpu()
    if found.ndim not in (1, 2) or len(found) != len(images):
        raise InputError(
            f"the reward returned shape {tuple(found.shape)} for {len(images)} images; it returns [B] or [B, m]"
        )
    found = found.reshape(len(images), -1).clone()
    finite = found.isfinite().all(1)
    if not bool(finite.all()):
        index = int((~finite).nonzero()[0])
        raise NonFiniteError(f"the reward is {found[index].tolist()} for the prompt {prompts[index]!r}")
    return found


class JPEGSize:
    """Kilobytes of the image as JPEG at quality 95 (as in DDPO); `compressible` prefers small ones.

    Args:
        compressible: Whether fewer bytes are better.
    """

    def __init__(self, compressible: bool = False) -> None:
        self.sign = -1.0 if compressible else 1.0

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the signed sizes [B]."""
        from noiseworks.kits.pictures import to_pixels
        from PIL import Image

        sizes = []
        for pixels in to_pixels(images):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
            sizes.append(self.sign * buffer.tell() / 1000)
        return torch.tensor(sizes)


def brightness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return the mean of all pixels [B]."""
    return images.flatten(1).mean(1)


class Channel:
    """Mean of one colour minus the mean of the others.

    Args:
        index: 0 red, 1 green, 2 blue.
    """

    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the excess of the colour [B]."""
        means = images.flatten(2).mean(2)
        return means[:, self.index] - (means.sum(1) - means[:, self.index]) / 2


class Weighted:
    """Several rewards as one: their weighted sum, or side by side for dominance.

    Args:
        parts: The rewards.
        weights: One a reward; None keeps all as columns.

    Raises:
        InputError: When there are other numbers of weights and rewards.
    """

    def __init__(self, parts: Sequence[Reward], weights: Sequence[float] | None = None) -> None:
        if not parts or (weights is not None and len(weights) != len(parts)):
            raise InputError(f"{len(parts)} rewards need as many weights, got {weights}")
        self.parts, self.weights = list(parts), weights

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return [B], or [B, m] without weights."""
        columns = torch.cat([score(part, images, prompts) for part in self.parts], 1)
        return columns if self.weights is None else columns @ torch.tensor(self.weights, dtype=columns.dtype)


class InRandomOrder:
    """A reward's scores, each given to another image of its call: the control, from which nothing can be learned.

    Args:
        reward: The reward.
        seed: Of the orders; each call has the next one.
    """

    def __init__(self, reward: Reward, seed: int) -> None:
        self.reward, self.generator = reward, torch.Generator().manual_seed(seed)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the scores in random order [B] or [B, m]."""
        return self.reward(images, prompts)[torch.randperm(len(images), generator=self.generator)]


class ClipScore:
    """Cosine of image and prompt under a CLIP model, times 100 (also PickScore's formula, with its weights).

    Args:
        model: A directory of transformers' `CLIPModel` and its processor, or a hub id.

    Raises:
        InputError: When it cannot be loaded.
    """

    def __init__(self, model: str | Path) -> None:
        from transformers import AutoProcessor, CLIPModel

        try:
            path = resolve_model(model)
            self.model = CLIPModel.from_pretrained(path).eval()
            self.processor = AutoProcessor.from_pretrained(path)
        except (OSError, ValueError, KeyError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"no CLIP model can be loaded from {model}: {first_line(error)}") from error

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the scores [B]."""
        inputs = self.processor(
            text=list(prompts),
            images=list(images),
            return_tensors="pt",
            padding=True,
            truncation=True,
            do_rescale=False,
        )
        found = self.model(**inputs)
        cosines = torch.cosine_similarity(found.image_embeds, found.text_embeds)
        return 100 * cosines


_NAMED: dict[str, Callable[[], Reward]] = {
    "incompressibility": JPEGSize,
    "compressibility": lambda: JPEGSize(compressible=True),
    "brightness": lambda: brightness,
    "redness": lambda: Channel(0),
    "greenness": lambda: Channel(1),
    "blueness": lambda: Channel(2),
}


def named_reward(name: str, needs: str) -> Reward:
    """Return a reward by its name, see `RewardChoice`.

    Args:
        name: The name.
        needs: The method that asks for it, for the message where a testbed is not installed.

    Raises:
        InputError: When there is none of this name, or what it needs is not there.
    """
    if name == "shapes":
        return testbed("shapes", needs=needs).caption_score
    if name in _NAMED:
        return _NAMED[name]()
    kind, _, rest = name.partition(":")
    if kind == "clip" and rest:
        return ClipScore(rest)
    known = f"{', '.join(REWARDS)}, clip:FOLDER or module:function"
    return imported(kind, rest, f"reward {name!r}", known)


def imported(module: str, name: str, what: str, known: str) -> Callable[..., Tensor]:
    """Return a function of images and prompts that a module of the user's has, or an object of its class.

    Args:
        module: Name of the module.
        name: Of the function or class.
        what: What is asked for, such as "reward 'mine:score'", for the message.
        known: What there is, for the message.

    Raises:
        InputError: When there is none, or it cannot be called.
    """
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"no {what} ({error}); use {known}") from error
    if not callable(found):
        raise InputError(f"{what} is no function of (images, prompts)")
    return found() if isinstance(found, type) else found
