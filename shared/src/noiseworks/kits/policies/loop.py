"""The denoising loop: a fixed list of steps in preallocated buffers.

Nothing but the network allocates memory in it: noise is drawn into a buffer, the steps' indices and coefficients
are tables, and a U-Net of the kit may get its FiLM modulations from a table as well.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.policies.native import NativePolicy
from noiseworks.kits.policies.protocols import DenoiserHost, Generators
from noiseworks.kits.policies.steps import StepTable, reverse_step_
from noiseworks.kits.policies.unet import ConditionalUnet1D
from torch import Tensor, nn

MAX_LISTS = 256  # lists of steps whose tensors are kept

Timesteps = tuple[int, ...] | tuple[tuple[int, ...], ...]


def randn(shape: Sequence[int], generator: Generators, like: Tensor | None = None) -> Tensor:
    """Return standard normals [B, ...] from one generator, or from one a row so that rows do not interact.

    Args:
        shape: Shape, first the batch.
        generator: One generator for the batch, one a row, or None for torch's own.
        like: A tensor whose device the result goes to.

    Raises:
        InputError: When the number of generators is not the batch size.
    """
    if generator is None or isinstance(generator, torch.Generator):
        device = generator.device if generator is not None else "cpu"
        drawn = torch.randn(tuple(shape), generator=generator, device=device)
    else:
        if len(generator) != shape[0]:
            raise InputError(f"need one generator per row: {shape[0]} rows, {len(generator)} generators")
        drawn = torch.stack([torch.randn(tuple(shape[1:]), generator=g, device=g.device) for g in generator])
    return drawn if like is None else drawn.to(like.device)


class DenoisingLoop:
    """Runs lists of steps on a host's network for up to `rows` environments.

    Samples are float32 whatever the network's type is.

    Args:
        host: The policy.
        rows: Environments that the buffers hold.
    """

    def __init__(self, host: DenoiserHost, rows: int) -> None:
        self.host, self.rows = host, rows
        self._allocate(*network_place(host))

    @torch.inference_mode(False)
    def _allocate(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        shape = (self.rows, self.host.horizon, self.host.action_dim)
        self._x, self._x0, self._noise = (torch.zeros(shape, device=device) for _ in range(3))
        self._input = None if dtype == torch.float32 else self._x.to(dtype)
        self._output = None if self._input is None else self._x.clone()
        # Noise is drawn where the generators are, in rows whose views are made once.
        self._drawn = self._noise if device.type == "cpu" else torch.zeros(shape)
        self._drawn_rows = list(self._drawn.unbind(0))
        self._indices: dict[Timesteps, list[Tensor]] = {}

    def start(self, rows: int) -> Tensor:
        """Return the buffer of a batch's samples, [rows, T, Da], to be filled before `run`."""
        place = network_place(self.host)
        if rows > self.rows or place != (self.device, self.dtype):
            self.rows = max(rows, self.rows)
            self._allocate(*place)
        return self._x[:rows]

    def draw_(self, into: Tensor, generator: Generators) -> Tensor:
        """Fill a buffer [B, T, Da] with standard normals; row i from generator i where there are several."""
        if generator is None:
            return into.normal_()
        if isinstance(generator, torch.Generator) and generator.device == into.device:
            return into.normal_(generator=generator)
        if isinstance(generator, torch.Generator) or len(generator) != len(into):
            return into.copy_(randn(into.shape, generator, like=into))
        for one, row in zip(generator, self._drawn_rows, strict=False):
            row.normal_(generator=one)
        return into if into.data_ptr() == self._drawn.data_ptr() else into.copy_(self._drawn[: len(into)])

    @torch.inference_mode()
    def run(
        self,
        table: StepTable,
        cond: Any,
        rows: int,
        generator: Generators,
        films: "FilmTable | None" = None,
        *,
        x: Tensor | None = None,
    ) -> Tensor:
        """Denoise what `start` returned, in place, and return it.

        A host that conditions by inpainting has a method `impose(x, cond)`, which overwrites known entries in place;
        it is called before every network call, and at the end of a list; positions with levels of their own are not
        clean then.

        Args:
            table: The steps.
            cond: Condition of the rows.
            rows: Batch size B.
            generator: Noise: one generator for the batch, one a row, or None.
            films: Modulations, for networks that have them.
            x: Other samples [B, T, Da] than those of `start`.
        """
        x = self._x[:rows] if x is None else x
        x0, noise = self._x0[:rows], self._noise[:rows]
        indices, impose = self._steps(table.timesteps), getattr(self.host, "impose", None)
        modulations = None if films is None else films.begin(table.timesteps, cond)
        for j, row in enumerate(table.coefficients):
            if impose is not None:
                impose(x, cond)
            source = x if self._input is None else self._input[:rows].copy_(x)
            if modulations is None:
                output = self.host.denoise(source, indices[j][:rows], cond)
            else:
                output = films.call(source, modulations[j])
            if self._output is not None:
                output = self._output[:rows].copy_(output)
            if row.of_noise is not None:
                self.draw_(noise, generator)
            reverse_step_(x, output, x0, noise, table, j)
        if impose is not None and not isinstance(table.timesteps[-1], tuple):
            impose(x, cond)
        return x

    def _steps(self, timesteps: Timesteps) -> list[Tensor]:
        if timesteps not in self._indices:
            if len(self._indices) >= MAX_LISTS:
                self._indices.clear()
            table = torch.tensor(timesteps, device=self.device).unsqueeze(1)
            self._indices[timesteps] = list(table.repeat(1, self.rows, *[1] * (table.ndim - 2)).unbind(0))
        return self._indices[timesteps]


class FilmTable:
    """FiLM modulations of a U-Net of the kit for fixed lists of steps.

    Each block's modulation is W mish(step embedding, condition) + b, and W acts on the two parts separately. So
    the steps' part is a table, computed once a list; the condition's part is computed once a replan; a step adds
    them.

    Args:
        net: The network; its weights are read now, so make a new table after training.
        trunk: Runs the trunk: by default the network's own; or a compiled one.
    """

    def __init__(self, net: ConditionalUnet1D, trunk: Callable[..., Tensor] | None = None) -> None:
        self.net, self.trunk = net, net.trunk if trunk is None else trunk
        linears = [block.cond_encoder[1] for block in net.residual_blocks()]
        self.sizes = [linear.out_features for linear in linears]
        weight = torch.cat([linear.weight for linear in linears]).detach()
        self.bias = torch.cat([linear.bias for linear in linears]).detach()
        width = net.diffusion_step_encoder[-1].out_features
        self.of_step, self.of_cond = weight[:, :width].T.contiguous(), weight[:, width:].T.contiguous()
        self._tables: dict[Timesteps, Tensor] = {}
        self._views: tuple[Tensor, Tensor, list[Tensor]] | None = None

    def table(self, timesteps: Timesteps) -> Tensor:
        """Return the steps' part of all modulations, [S, F], made at the first use of a list."""
        if timesteps not in self._tables:
            if len(self._tables) >= MAX_LISTS:
                self._tables.clear()
            steps = torch.tensor(timesteps, device=self.bias.device)
            with torch.inference_mode():
                embedded = nn.functional.mish(self.net.global_feature(steps))
                found = torch.addmm(self.bias, embedded.to(self.bias.dtype), self.of_step)
            # Tensors made in inference mode could not be written to outside of it.
            self._tables[timesteps] = found.clone()
        return self._tables[timesteps]

    def begin(self, timesteps: Timesteps, cond: Tensor) -> Tensor:
        """Compute the part of a condition [B, G], and return the steps' part [S, F]."""
        if self._views is None or len(self._views[0]) != len(cond):
            of_rows = torch.zeros(len(cond), len(self.bias), dtype=self.bias.dtype, device=self.bias.device)
            sums = torch.zeros_like(of_rows)
            self._views = of_rows, sums, [part.unsqueeze(-1) for part in sums.split(self.sizes, dim=1)]
        torch.mm(nn.functional.mish(cond.to(self.bias.dtype)), self.of_cond, out=self._views[0])
        return self.table(timesteps)

    def call(self, x: Tensor, row: Tensor) -> Tensor:
        """Return the network's output for samples [B, T, Da] under the current condition and a row of the table."""
        of_rows, sums, films = self._views
        torch.add(of_rows, row, out=sums)
        return self.trunk(x, films)


def film_table(host: DenoiserHost, *, trunk: Callable[..., Tensor] | None = None) -> FilmTable | None:
    """Return the modulation table of a host, or None where its network does not allow one.

    A network that something hangs on (a hook, another `forward`) is called as it is.

    Args:
        host: The policy.
        trunk: See `FilmTable`.
    """
    net = getattr(host, "net", None)
    if not isinstance(net, ConditionalUnet1D) or type(net).forward is not ConditionalUnet1D.forward:
        return None
    if getattr(type(host), "denoise", None) is not NativePolicy.denoise or "denoise" in vars(host):
        return None
    touched = any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        for module in net.modules()
    )
    return None if touched or net.local_cond_encoder is not None else FilmTable(net, trunk)


def network_place(host: DenoiserHost) -> tuple[torch.device, torch.dtype]:
    """Return device and floating type of a host's network; CPU and float32 when it has no parameters."""
    for owner in (getattr(host, "net", None), getattr(host, "model", None), host):
        if isinstance(owner, nn.Module):
            for parameter in owner.parameters():
                if parameter.is_floating_point():
                    return parameter.device, parameter.dtype
    return torch.device("cpu"), torch.float32
