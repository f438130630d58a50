"""Streaming hosts: policies whose network reads a level for each position; made, converted, saved and read."""

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import EDMEulerScheduler
from noiseworks.core.artifacts import CONFIG_NAME, load_artifact, save_artifact
from noiseworks.core.errors import ArtifactError, InputError, UnsupportedHostError, last_line
from noiseworks.core.models import resolve_model
from noiseworks.kits.policies import DenoiserHost, LinearNormalizer, NativePolicy, PolicyConfig, as_host
from noiseworks.kits.policies.hosts import load_host, trained_network
from noiseworks.kits.policies.hosts.checkpoint import checkpoint_parts, load_weights
from noiseworks.streaming_dp.edm import STORED
from noiseworks.streaming_dp.levels import ChunkLevels
from noiseworks.streaming_dp.networks import (
    ConcatenatedLevels,
    StreamingTransformer,
    StreamingUnet1d,
    concatenated_encoder,
    from_published,
)
from noiseworks.streaming_dp.options import KIND
from torch import nn

NETWORK_KIND = "streaming-dp/network"


def build_network(config: PolicyConfig) -> nn.Module:
    """Return an untrained streaming network of a policy's sizes."""
    if config.network == "unet":
        return StreamingUnet1d(
            config.action_dim,
            config.horizon,
            global_cond_dim=config.obs_dim * config.n_obs_steps,
            diffusion_step_embed_dim=config.step_embed_dim,
            down_dims=config.down_dims,
            kernel_size=config.kernel_size,
        )
    return StreamingTransformer(
        config.action_dim,
        config.action_dim,
        config.horizon,
        config.n_obs_steps,
        config.obs_dim,
        config.n_layer,
        config.n_head,
        config.n_emb,
        config.p_drop_emb,
        config.p_drop_attn,
        config.causal_attn,
    )


class StreamingHost(NativePolicy):
    """A native policy whose `denoise` takes levels [B, Tp] as diffusion steps.

    Args:
        config: Sizes; `horizon` is fixed by the network.
        net: Network of `build_network(config)`; a new one by default.
        normalizer: Of the actions; identity by default.
        obs_normalizer: Of the observations; identity by default.
        edm: Fields of diffusers' `EDMEulerScheduler` for a policy on an EDM schedule, {} for its defaults; None for
            the discrete schedule of diffusion policies.
    """

    def __init__(
        self,
        config: PolicyConfig,
        net: nn.Module | None = None,
        normalizer: LinearNormalizer | None = None,
        obs_normalizer: LinearNormalizer | None = None,
        *,
        edm: Mapping[str, Any] | None = None,
    ) -> None:
        if net is None:
            net = build_network(config)
        super().__init__(config, net, normalizer, obs_normalizer)
        if edm is not None:
            self.scheduler = EDMEulerScheduler(num_train_timesteps=config.num_train_timesteps, **edm)

    def save_pretrained(self, path: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write the policy directory atomically.

        Args:
            path: The directory to make or replace.
            dtype: Type of the stored weights.
        """
        normalizers = {"action": self.normalizer.record(), "obs": self.obs_normalizer.record()}
        state = {name: tensor.to(dtype) for name, tensor in self.net.state_dict().items()}
        record = {"policy": asdict(self.config), "normalizers": normalizers}
        if isinstance(self.scheduler, EDMEulerScheduler):
            record["edm"] = {name: self.scheduler.config[name] for name in STORED}
        save_artifact(path, KIND, record, state)

    @classmethod
    def from_pretrained(cls, name: str | Path, *, device: torch.device | str = "cpu") -> "StreamingHost":
        """Read a directory of `save_pretrained`; weights load strictly and as float32.

        Args:
            name: The directory.
            device: Where the policy goes.

        Raises:
            ArtifactError: When it is no streaming policy, or corrupt.
        """
        record, tensors = load_artifact(name, KIND)
        try:
            config = PolicyConfig(**record["policy"])
            action, obs = (
                LinearNormalizer(torch.tensor(r["scale"]), torch.tensor(r["offset"]))
                for r in (record["normalizers"]["action"], record["normalizers"]["obs"])
            )
            host = cls(config, None, action, obs, edm=record.get("edm"))
            host.net.load_state_dict({key: t.float() for key, t in tensors.items()}, strict=True)
        except (KeyError, TypeError, RuntimeError, InputError) as error:
            said = last_line(error)
            raise ArtifactError(
                f"the streaming policy in {name} is corrupt: {said}; make it again"
            ) from error
        return host.to(device).eval()


def import_published(path: str | Path, **sizes: int | bool) -> StreamingHost:
    """Return a low-dimensional policy that the authors' code trained, from its checkpoint file.

    Nothing that is pickled in the file runs (see `noiseworks.kits.policies.hosts.checkpoint`).

    Args:
        path: The file, of the authors' U-Net policies.
        sizes: Fields of `PolicyConfig` that the file does not say, such as `horizon`.

    Raises:
        ArtifactError: When the file cannot be read, or holds an ordinary policy.
        UnsupportedHostError: When the policy reads images, conditions otherwise or has another schedule.
        InputError: When a size is neither in the file nor given.
    """
    config, state, normalizer, obs_normalizer = checkpoint_parts(path, **sizes)
    host = StreamingHost(config, None, normalizer, obs_normalizer)
    load_weights(host.net, from_published(state), path)
    return host.eval()


def convert(host: Any, *, n_action_steps: int | None = None) -> DenoiserHost:
    """Return a streaming host with an ordinary policy's weights; the original stays as it is.

    With equal levels at all positions its output is the original's. It has never seen unequal ones, so fine-tune
    it (`train`) before it streams.

    Args:
        host: A native policy, or LeRobot's or the original library's with a U-Net, or such a policy as a host.
        n_action_steps: Actions of a chunk; the host's own number by default.

    Returns:
        A `StreamingHost` for native policies; else the same kind of host on a copy of the policy object.

    Raises:
        InputError: When the numbers do not fit or the network is a streaming one already.
        UnsupportedHostError: When the network has no step encoder that can be converted.
    """
    host = as_host(host)
    steps = host.n_action_steps if n_action_steps is None else n_action_steps
    check_streams(host, steps, host.scheduler.config.num_train_timesteps)
    if isinstance(host, StreamingHost):
        raise InputError("the policy reads a level for each position already; there is nothing to convert")
    if isinstance(host, NativePolicy):
        return _convert_native(host, steps)
    made = copy.deepcopy(host)
    network = getattr(made.model, "unet", made.model)
    encoder = getattr(network, "diffusion_step_encoder", None)
    if not isinstance(encoder, nn.Sequential):
        raise UnsupportedHostError(f"{type(network).__name__} has no diffusion_step_encoder to convert")
    network.diffusion_step_encoder = concatenated_encoder(encoder, host.horizon)
    if steps != host.n_action_steps:
        made.n_action_steps = steps
    return made


def _convert_native(host: NativePolicy, steps: int) -> StreamingHost:
    config = replace(host.config, n_action_steps=steps)
    net = build_network(config)
    state = host.net.state_dict()
    if config.network == "unet":
        encoder = concatenated_encoder(host.net.diffusion_step_encoder, config.horizon)
        wide = {f"diffusion_step_encoder.{name}": t for name, t in encoder.state_dict().items()}
        state = {**state, **wide}
    else:
        state = {**state, "level_emb.weight": net.level_emb.weight}
    net.load_state_dict(state, strict=True)
    made = StreamingHost(config, net, copy.deepcopy(host.normalizer), copy.deepcopy(host.obs_normalizer))
    made.scheduler = copy.deepcopy(host.scheduler)
    return made.to(host.device).eval()


def check_streams(host: DenoiserHost, n_action_steps: int, num_levels: int) -> ChunkLevels:
    """Return the chunks of a host, or refuse a time window that cannot stream.

    Raises:
        InputError: When the horizon is too short, there are more chunks than levels, or the executed part does
            not start with the action for the current observation.
        UnsupportedHostError: On inpainting with an EDM schedule, whose network reads other units.
    """
    current = getattr(getattr(host, "chunk", None), "start_at_current", True)
    if not current:
        raise InputError(
            "the policy executes from one step after the current observation on (start_at_current is false); "
            "streaming needs the action for the current observation first"
        )
    if isinstance(host.scheduler, EDMEulerScheduler) and hasattr(host, "impose"):
        raise UnsupportedHostError("a host that conditions by inpainting cannot stream on an EDM schedule")
    return ChunkLevels(num_levels, host.horizon, host.n_obs_steps, n_action_steps)


def reads_levels(host: DenoiserHost) -> bool:
    """Return whether a host's network reads a level for each position, as far as its class tells."""
    network = getattr(host, "net", None) or getattr(host, "model", None)
    parts = network.modules() if isinstance(network, nn.Module) else ()
    return any(isinstance(part, ConcatenatedLevels | StreamingTransformer) for part in parts)


def check_levels_host(host: Any) -> DenoiserHost:
    """Return a host whose network reads a level for each position; one without a known network is believed.

    Raises:
        UnsupportedHostError: When its network takes one diffusion step for all positions.
    """
    host = as_host(host)
    network = getattr(host, "net", None) or getattr(host, "model", None)
    if network is not None and not reads_levels(host):
        raise UnsupportedHostError(
            f"{type(network).__name__} takes one diffusion step for all positions; convert(host) gives it one "
            "for each, and needs fine-tuning"
        )
    return host


def save_converted(host: DenoiserHost, path: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a converted policy's weights; a `StreamingHost` becomes a whole policy directory.

    Another library's policy object is not stored, only its weights: `load_converted` needs the ordinary policy.

    Args:
        host: From `convert` or `train`.
        path: The directory to make or replace.
        dtype: Type of the stored weights.

    Raises:
        InputError: When the network is no converted one.
    """
    if isinstance(host, StreamingHost):
        return host.save_pretrained(path, dtype=dtype)
    if not reads_levels(host):
        raise InputError(
            f"{type(host).__name__} is not converted: convert it first, or save it with its library"
        )
    state = trained_network(host).state_dict()
    stored = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
    save_artifact(
        path, NETWORK_KIND, {"n_action_steps": host.n_action_steps, "horizon": host.horizon}, stored
    )


def load_converted(path: str | Path, original: Any) -> DenoiserHost:
    """Return the conversion of another library's policy with the weights of `save_converted`.

    Args:
        path: The directory.
        original: The ordinary policy that was converted, or one of the same sizes; left as it is.

    Raises:
        ArtifactError: When the directory is corrupt or of a policy with other sizes.
    """
    record, tensors = load_artifact(path, NETWORK_KIND)
    made = convert(original, n_action_steps=record["n_action_steps"])
    network = trained_network(made)
    own = network.state_dict()
    if {name: t.shape for name, t in own.items()} != {name: t.shape for name, t in tensors.items()}:
        raise ArtifactError(f"the weights in {path} are of a policy of other sizes than the one given")
    network.load_state_dict({name: t.to(own[name].dtype) for name, t in tensors.items()})
    network.eval()
    return made


def streaming_host(model: str, n_action_steps: int | None = None) -> StreamingHost:
    """Return the streaming policy of a directory, or an ordinary one's conversion, which has seen no training.

    Args:
        model: A directory of either kind, a checkpoint file of the original library, or testbed:<name>.
        n_action_steps: Actions of a chunk of a conversion.

    Raises:
        InputError: When it is another library's policy.
    """
    folder = Path(model) if model.endswith(".ckpt") else Path(resolve_model(model))
    config = folder / CONFIG_NAME
    if config.is_file() and json.loads(config.read_text()).get("kind") == KIND:
        return StreamingHost.from_pretrained(folder)
    host = load_host(model)
    if not isinstance(host, NativePolicy):
        raise InputError(
            f"the commands take native policies, {model} is a {type(host).__name__}: use convert, train and "
            "load_converted in Python"
        )
    return convert(host, n_action_steps=n_action_steps)
