"""Encoders of observations and goals: states with a table of goal embeddings, and texts."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.policies.normalizer import LinearNormalizer
from noiseworks.mode.network import Condition
from torch import Tensor, nn


class StateEncoder(nn.Module):
    """A state token, and the goal embedding of the task whose one-hot follows the state.

    Args:
        goals: Embeddings [N, W, G] of N tasks in W wordings. Training draws a wording, evaluation takes the first.
        normalizer: Of the state [S].
    """

    def __init__(self, goals: Tensor, normalizer: LinearNormalizer) -> None:
        super().__init__()
        if goals.ndim != 3 or not bool(goals.isfinite().all()):
            raise InputError(
                f"goals must be finite embeddings [tasks, wordings, width], got {list(goals.shape)}"
            )
        self.register_buffer("goals", goals.float())
        self.normalizer = normalizer

    @property
    def state_dim(self) -> int:
        """Width S of the state."""
        return len(self.normalizer.scale)

    def forward(self, obs: Mapping[str, Tensor]) -> Condition:
        """Return the condition of `obs["obs"]` [B, 1, S + N].

        Raises:
            InputError: When the observation is missing or of another shape.
        """
        state = obs.get("obs")
        width = self.state_dim + len(self.goals)
        if state is None or state.ndim != 3 or state.shape[1:] != (1, width):
            found = "none" if state is None else list(state.shape)
            raise InputError(f"observations need 'obs' of shape [B, 1, {width}], got {found}")
        state = state[:, 0].to(self.goals)
        onehot = state[:, self.state_dim :]
        wordings = self.goals.shape[1]
        word = torch.zeros(len(state), dtype=torch.int64, device=state.device)
        if self.training and wordings > 1:
            word = torch.randint(wordings, (len(state),), device=state.device)
        goal = self.goals[onehot.argmax(dim=-1), word]
        return Condition(goal, self.normalizer.normalize(state[:, : self.state_dim])[:, None])

    def record(self) -> dict[str, Any]:
        """Return what rebuilds the encoder, without its tensors."""
        return {"kind": "state", "goals": list(self.goals.shape), "normalizer": self.normalizer.record()}


class TextGoalEncoder(nn.Module):
    """Texts to goal embeddings, remembered so that an instruction is embedded once.

    Args:
        embed: Any callable from texts to embeddings [n, G]: a CLIP text model (`clip.clip_text_encoder`), or the
            `__getitem__` of a table. It stays as it is; nothing trains it.
        capacity: Texts that are remembered.
    """

    def __init__(self, embed: Any, capacity: int = 10_000) -> None:
        super().__init__()
        if not callable(embed):
            raise InputError(f"a goal encoder needs a callable from texts to embeddings, got {embed!r}")
        self.embed, self.capacity = embed, capacity
        self._known: dict[str, Tensor] = {}

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tensor:
        """Return embeddings [B, G] of B texts.

        Raises:
            InputError: When the callable does not return one embedding per text.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            made = torch.as_tensor(self.embed(new)).float()
            if made.ndim != 2 or len(made) != len(new):
                raise InputError(f"the goal encoder returned {list(made.shape)} for {len(new)} texts")
            found = {**self._known, **dict(zip(new, made, strict=True))}
            out = torch.stack([found[text] for text in texts])
            self._known = dict(list(found.items())[-self.capacity :])
            return out
        return torch.stack([self._known[text] for text in texts])


def table_of(texts: Mapping[str, Any]) -> Any:
    """Return a callable for `TextGoalEncoder` that looks texts up, and refuses unknown ones.

    Args:
        texts: Text -> embedding [G].
    """

    def look_up(names: Sequence[str]) -> Tensor:
        missing = [name for name in names if name not in texts]
        if missing:
            raise InputError(f"no embedding is known for the goal {missing[0]!r}")
        return torch.stack([torch.as_tensor(texts[name]) for name in names])

    return look_up
