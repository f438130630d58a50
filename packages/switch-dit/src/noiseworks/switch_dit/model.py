"""A DiT with experts before every block: `z + Block(z ⊙ M) - z ⊙ M`, `M = 1 + Σ_j g_j (z W_j + c_j)`.

With `h = z ⊙ (M - 1)` that is `Block(z + h) - h`, which is how it is computed.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Self

import torch
from noiseworks.core.noise import mix64
from noiseworks.kits.attachments import Attachment
from noiseworks.kits.backbones import AffineExperts, DiT, DiTConfig, around_blocks, load_dit, save_dit
from noiseworks.switch_dit.gating import TimestepGate, choose
from noiseworks.switch_dit.options import Switch
from noiseworks.switch_dit.prior import match, prior_loss, prior_table
from torch import Tensor, nn

NAME = "switch-dit"


class SwitchLayers(nn.Module):
    """Gates and experts of all blocks, and the matching of their units with the prior.

    Args:
        depth: Blocks.
        width: Channels.
        switch: The experts.
    """

    def __init__(self, depth: int, width: int, switch: Switch) -> None:
        super().__init__()
        self.gates = nn.ModuleList(TimestepGate(width, switch.num_experts) for _ in range(depth))
        self.experts = nn.ModuleList(AffineExperts(switch.num_experts, width) for _ in range(depth))
        # The number of losses so far: ties are broken alike by all processes, and by a run that goes on.
        self.register_buffer("losses", torch.zeros((), dtype=torch.int64))
        self.register_buffer("columns", torch.arange(depth * switch.num_experts))


class SwitchDiT(DiT):
    """The network. Fresh experts are zero, so that it computes what the plain DiT does, bit for bit.

    Args:
        config: Sizes of the DiT.
        switch: The experts.
    """

    def __init__(self, config: DiTConfig, switch: Switch | None = None) -> None:
        super().__init__(config)
        self.switch = switch or Switch()
        # Under the method's name, which is what tells its tensors from the DiT's in a saved model.
        self.register_module(NAME, SwitchLayers(config.depth, config.width, self.switch))
        prior = prior_table(
            self.switch.num_tasks,
            config.depth,
            self.switch.num_experts,
            self.switch.top_k,
            self.switch.prior_alpha,
        )
        self.register_buffer("prior", prior, persistent=False)

    @property
    def layers(self) -> SwitchLayers:
        """Gates and experts."""
        return self.get_submodule(NAME)

    @classmethod
    def from_dit(cls, dit: DiT, switch: Switch | None = None) -> Self:
        """Return a model with the weights of a plain DiT, and its outputs ("upcycling")."""
        made = cls(dit.config, switch)
        made.load_state_dict(dit.state_dict(), strict=False)
        return made.train(dit.training)

    def plain(self) -> DiT:
        """Return a DiT of the same weights without the experts, for `attach_to` on a host that is made from it."""
        made = DiT(self.config)
        own = made.state_dict().keys()
        made.load_state_dict({key: value for key, value in self.state_dict().items() if key in own})
        return made.train(self.training)

    def run_block(self, number: int, x: Tensor, c: Tensor, e: Tensor) -> Tensor:
        """Return the tokens after a block and the experts before it."""
        return self._switched(number, x, e, lambda tokens: self.blocks[number](tokens, c))

    def _switched(self, number: int, x: Tensor, e: Tensor, block: Callable[[Tensor], Tensor]) -> Tensor:
        added = x * self._experts(number, x, e)
        return block(x + added) - added

    def _experts(self, number: int, x: Tensor, e: Tensor) -> Tensor:
        experts = self.layers.experts[number]
        # In a sampler all samples are at one timestep, and affine maps with one gate are one affine map.
        if not torch.is_grad_enabled() and bool((e == e[:1]).all()):
            chosen, gates = self._choice(number, e[:1])
            weight, bias = experts.fold(chosen[0], gates[0])
            return torch.nn.functional.linear(x, weight.mT.to(x.dtype), bias.to(x.dtype))
        return experts(x, *self._choice(number, e))

    def _choice(self, number: int, e: Tensor) -> tuple[Tensor, Tensor]:
        return choose(self.layers.gates[number](e), self.switch.top_k, self.switch.renormalize)

    def probs(self, t: Tensor) -> Tensor:
        """Return the gate probabilities of all blocks (B, L, E) at timesteps (B,)."""
        e = self.t_embedder(t)
        return torch.stack([gate(e) for gate in self.layers.gates], dim=1)

    @torch.no_grad()
    def routing_table(self) -> Tensor:
        """Return which experts which timesteps use, bool (T, L, E)."""
        every = torch.arange(self.switch.num_tasks, device=self.pos_embed.device)
        probs = self.probs(every)
        chosen, _ = choose(probs, self.switch.top_k)
        return torch.zeros_like(probs, dtype=torch.bool).scatter(2, chosen, True)

    def prior_loss(self, t: Tensor) -> Tensor:
        """Return the diffusion prior loss at timesteps (B,), times its weight; a training step calls it once."""
        layers, switch = self.layers, self.switch
        if int(layers.losses) % switch.match_every == 0:
            generator = torch.Generator().manual_seed(mix64(int(layers.losses)) >> 1)
            columns, _ = match(self.routing_table().flatten(1).float(), self.prior, generator)
            layers.columns.copy_(columns)
        layers.losses += 1
        return switch.prior_weight * prior_loss(self.probs(t), self.prior[t][:, layers.columns])

    def agreement(self) -> float:
        """Return the share of (timestep, expert) pairs on which gates and matched prior agree."""
        return match(self.routing_table().flatten(1).float(), self.prior)[1]

    def attach_to(self, host: nn.Module) -> Attachment:
        """Attach gates and experts to another model of the same weights, such as diffusers' in a pipeline.

        Args:
            host: A DiT of the same depth and width, for example `to_diffusers(model.plain())`.

        Returns:
            A handle with `detach()`, which is also a context manager.
        """

        def switched(number: int, block: Callable[[Tensor], Tensor], x: Tensor, timesteps: Tensor) -> Tensor:
            return self._switched(number, x, self.t_embedder(timesteps), block)

        return around_blocks(host, switched, NAME)

    def save_pretrained(self, path: str | Path, schedule: str = "cosine") -> None:
        """Write the model; a loader that does not know its experts refuses it.

        Args:
            path: The folder.
            schedule: Kind of the noise schedule that it was trained with.
        """
        save_dit(path, self, schedule=schedule, methods={NAME: asdict(self.switch)})

    @classmethod
    def from_pretrained(cls, path: str | Path) -> tuple[Self, str]:
        """Return a saved model in evaluation mode, and the kind of its noise schedule.

        A plain DiT comes back with fresh experts.

        Raises:
            ArtifactError: When the folder holds no such model.
        """
        dit, config, rest = load_dit(path, knows=(NAME,))
        known = config["methods"].get(NAME)
        made = cls.from_dit(dit, Switch(**known) if known else None)
        if known:
            made.layers.load_state_dict({key.removeprefix(f"{NAME}."): value for key, value in rest.items()})
        return made.eval(), config["schedule"]
