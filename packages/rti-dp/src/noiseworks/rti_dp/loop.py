"""The denoising loop: a fixed list of steps in preallocated buffers.

Nothing but the network allocates memory in it: noise is drawn into a buffer, the steps' indices and coefficients
are tables, and a U-Net of the kit gets its FiLM modulations from a table as well.
"""

from collections.abc import Iterable
from typing import Any

import torch
from noiseworks.kits.policies.protocols import DenoiserHost, Generators
from noiseworks.kits.policies.replanning import randn
from noiseworks.kits.policies.unet import ConditionalUnet1D
from noiseworks.rti_dp.stepping import StepTable, reverse_step_
from torch import Tensor, nn


class DenoisingLoop:
    """Runs lists of steps on a host's network for up to `rows` environments.

    Samples are float32 whatever the network's type is.

    Args:
        host: The policy.
        rows: Environments that the buffers hold.
    """

    def __init__(self, host: DenoiserHost, rows: int) -> None:
        self.host = host
        self.device, self.dtype = network_place(host)
        self._allocate(rows)

    def _allocate(self, rows: int) -> None:
        shape = (rows, self.host.horizon, self.host.action_dim)
        self.rows = rows
        self._x, self._x0, self._noise = (torch.zeros(shape, device=self.device) for _ in range(3))
        self._input = None if self.dtype == torch.float32 else self._x.to(self.dtype)
        self._output = None if self._input is None else self._x.clone()
        # Noise is drawn where the generators are, in rows whose views are made once.
        self._drawn = self._noise if self.device.type == "cpu" else torch.zeros(shape)
        self._drawn_rows = list(self._drawn.unbind(0))
        self._indices: dict[tuple[int, ...], list[Tensor]] = {}

    def start(self, rows: int) -> Tensor:
        """Return the buffer of a batch's samples, to be filled before `run`."""
        if rows > self.rows:
            self._allocate(rows)
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
        self, table: StepTable, cond: Any, rows: int, generator: Generators, films: "FilmTable | None" = None
    ) -> Tensor:
        """Denoise what `start` returned, in place, and return it.

        Args:
            table: The steps.
            cond: Condition of the rows.
            rows: Batch size B.
            generator: Noise: one generator for the batch, one a row, or None.
            films: Modulations of these steps, for networks that have them.
        """
        x, x0, noise = self._x[:rows], self._x0[:rows], self._noise[:rows]
        indices, impose = self._steps(table.timesteps), getattr(self.host, "impose", None)
        if films is not None:
            films.begin(cond)
        for j, row in enumerate(table.coefficients):
            if impose is not None:
                impose(x, cond)
            if films is None:
                output = self._call(x, indices[j][:rows], cond)
            else:
                output = films.call(x, j)
            if row[3] is not None:
                self.draw_(noise, generator)
            reverse_step_(x, output, x0, noise, table, j)
        if impose is not None:
            impose(x, cond)
        return x

    def _call(self, x: Tensor, k: Tensor, cond: Any) -> Tensor:
        if self._input is None:
            return self.host.denoise(x, k, cond)
        rows = len(x)
        output = self.host.denoise(self._input[:rows].copy_(x), k, cond)
        return self._output[:rows].copy_(output)

    def _steps(self, timesteps: tuple[int, ...]) -> list[Tensor]:
        if timesteps not in self._indices:
            table = torch.tensor(timesteps, device=self.device)[:, None].repeat(1, self.rows)
            self._indices[timesteps] = list(table.unbind(0))
        return self._indices[timesteps]


class FilmTable:
    """FiLM modulations of a U-Net of the kit for a fixed list of steps.

    Each block's modulation is W mish(step embedding, condition) + b, and W acts on the two parts separately. So
    the steps' part is a table, computed once; the condition's part is computed once a replan; a step adds them.

    Args:
        net: The network; its weights are read now.
        timesteps: The list of steps.
    """

    def __init__(self, net: ConditionalUnet1D, timesteps: Iterable[int]) -> None:
        self.net = net
        linears = [block.cond_encoder[1] for block in net.residual_blocks()]
        self.sizes = [linear.out_features for linear in linears]
        weight = torch.cat([linear.weight for linear in linears]).detach()
        bias = torch.cat([linear.bias for linear in linears]).detach()
        width = net.diffusion_step_encoder[-1].out_features
        steps = torch.tensor(list(timesteps), device=weight.device)
        with torch.inference_mode():
            embedded = nn.functional.mish(net.global_feature(steps))
            # Tensors made in inference mode could not be written to outside of it.
            table = torch.addmm(bias, embedded, weight[:, :width].T)
        self.table = table.clone()
        self.of_cond = weight[:, width:].T.contiguous()
        self._views: tuple[Tensor, Tensor, list[Tensor]] | None = None

    def begin(self, cond: Tensor) -> None:
        """Compute the part of a condition [B, G]."""
        if self._views is None or len(self._views[0]) != len(cond):
            of_rows = cond.new_zeros(len(cond), self.table.shape[1], dtype=self.table.dtype)
            sums = torch.zeros_like(of_rows)
            self._views = of_rows, sums, [part.unsqueeze(-1) for part in sums.split(self.sizes, dim=1)]
        torch.mm(nn.functional.mish(cond), self.of_cond, out=self._views[0])

    def call(self, x: Tensor, j: int) -> Tensor:
        """Return the network's output for samples [B, T, Da] at step j under the current condition."""
        of_rows, sums, films = self._views
        torch.add(of_rows, self.table[j], out=sums)
        return self.net.trunk(x, films)


def film_table(host: DenoiserHost, timesteps: Iterable[int]) -> FilmTable | None:
    """Return the modulation table of a host, or None where its network does not allow one.

    A network that something hangs on (a hook, another `forward`) is called as it is.
    """
    net = getattr(host, "net", None)
    if type(net) is not ConditionalUnet1D or type(host).denoise is not _native_denoise():
        return None
    touched = any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        for module in net.modules()
    )
    plain = net.local_cond_encoder is None and next(net.parameters()).dtype == torch.float32
    return FilmTable(net, timesteps) if plain and not touched and "denoise" not in vars(host) else None


def _native_denoise() -> Any:
    from noiseworks.kits.policies.native import NativePolicy

    return NativePolicy.denoise


def network_place(host: DenoiserHost) -> tuple[torch.device, torch.dtype]:
    """Return device and floating type of a host's network; CPU and float32 when it has no parameters."""
    for owner in (getattr(host, "net", None), getattr(host, "model", None), host):
        if isinstance(owner, nn.Module):
            for parameter in owner.parameters():
                if parameter.is_floating_point():
                    return parameter.device, parameter.dtype
    return torch.device("cpu"), torch.float32
