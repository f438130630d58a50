"""What of a network depends on the levels alone, computed once per level vector instead of in every call.

In a control loop the same few level vectors come again and again. For this project's U-Net the modulation of a
FiLM block is linear in [level feature, observations] after Mish, so its level part is a table row, its
observation part is computed once a replan, and a call is one addition and the trunk.
"""

from collections.abc import Callable
from typing import Any

import torch
from noiseworks.kits.policies import ConditionalUnet1D, DenoiserHost
from torch import Tensor
from torch.nn import functional as F


class PlainCalls:
    """Calls of any host: nothing is precomputed but the timesteps' tensors.

    Args:
        host: Its `denoise` takes (B, Tp) timesteps.
    """

    def __init__(self, host: DenoiserHost) -> None:
        self.host = host

    def prepare(self, timesteps: Tensor) -> list[Tensor]:
        """Return what each call with timesteps [calls, Tp] needs."""
        return [steps[None] for steps in timesteps]

    def begin(self, cond: Any) -> Any:
        """Return what all calls under a condition share."""
        return cond

    def call(self, x: Tensor, prepared: Tensor, shared: Any) -> Tensor:
        """Return the network's output [B, Tp, Da], in float32."""
        return self.host.denoise(x, prepared.expand(len(x), -1), shared).float()


class FilmCalls:
    """Calls of a native U-Net with the levels' part of all modulations precomputed.

    Weights are read when this is made: after training, make a new one.

    Args:
        net: The U-Net, without a local condition.
        trunk: Runs the trunk: `net.trunk`, or a compiled one.
    """

    def __init__(self, net: ConditionalUnet1D, trunk: Callable[..., Tensor]) -> None:
        self.net, self.trunk = net, trunk
        linear = [block.cond_encoder[1] for block in net.residual_blocks()]
        self.widths = [layer.out_features for layer in linear]
        weight = torch.cat([layer.weight.detach() for layer in linear])
        self.bias = torch.cat([layer.bias.detach() for layer in linear])
        width = net.diffusion_step_encoder[3].out_features
        self.of_level, self.of_obs = weight[:, :width].contiguous(), weight[:, width:].contiguous()

    def prepare(self, timesteps: Tensor) -> list[Tensor]:
        """Return the levels' part of all modulations, one [1, F] for each of the timesteps [calls, Tp]."""
        feature = self.net.global_feature(timesteps)
        return list(F.linear(F.mish(feature), self.of_level).split(1))

    def begin(self, cond: Tensor) -> Tensor:
        """Return the observations' part of all modulations [B, F]."""
        return F.linear(F.mish(cond.to(self.of_obs.dtype)), self.of_obs, self.bias)

    def call(self, x: Tensor, prepared: Tensor, shared: Tensor) -> Tensor:
        """Return the network's output [B, Tp, Da], in float32."""
        films = (prepared + shared).unsqueeze(-1).split(self.widths, dim=1)
        return self.trunk(x.to(shared.dtype), films).float()


def calls_of(host: DenoiserHost, *, compile_network: bool = False) -> PlainCalls | FilmCalls:
    """Return the fastest calls that a host allows.

    Args:
        host: A streaming host.
        compile_network: Whether `torch.compile` compiles the trunk; native U-Nets only, otherwise ignored by
            this function and refused by `StreamingPolicy`.
    """
    net = getattr(host, "net", None)
    if isinstance(net, ConditionalUnet1D) and net.local_cond_encoder is None:
        trunk = torch.compile(net.trunk, dynamic=False) if compile_network else net.trunk
        return FilmCalls(net, trunk)
    return PlainCalls(host)
