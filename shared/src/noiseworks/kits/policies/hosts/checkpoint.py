"""Checkpoint files of the original diffusion_policy library, read without running anything that is in them.

Such a file is a dictionary with `cfg`, `state_dicts` and `pickles`. Torch's restricted loader rebuilds tensors and
plain containers; every class or function that it does not know becomes an inert record of what it was given.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from noiseworks.core.errors import ArtifactError, InputError, UnsupportedHostError, last_line
from noiseworks.kits.policies.native import NativePolicy, PolicyConfig
from noiseworks.kits.policies.normalizer import LinearNormalizer
from noiseworks.kits.policies.transformer import strip_published
from torch import Tensor, nn

SUFFIX = ".ckpt"
# What the native policy's scheduler is; a checkpoint on another schedule would be sampled wrongly.
SCHEDULE = {"beta_schedule": "squaredcos_cap_v2", "variance_type": "fixed_small", "clip_sample": True}


class Record:
    """Stands in for an object of a class that is not loaded; keeps its state and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Record":
        """Keep nothing of the arguments: plain values are in the state."""
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Checkpoint(NamedTuple):
    """What a checkpoint file holds.

    Attributes:
        config: The policy's settings as plain values; empty when the file has none that can be read.
        weights: Named tensors of the policy, its moving average where there is one.
        average: Whether they are the moving average's.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]
    average: bool


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint file; nothing that is pickled in it runs.

    Args:
        path: A file that the library's workspace saved.

    Raises:
        ArtifactError: When it is no such file, or holds more than tensors, containers and records.
    """
    path = Path(path)
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        records = [(type("Unknown", (Record,), {}), name) for name in names]
        with torch.serialization.safe_globals(records):
            payload = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise ArtifactError(
            f"{path} holds something else than tensors, containers and plain records, which is not run: load it with "
            "its library and pass the policy object"
        ) from error
    except (OSError, ValueError, RuntimeError, EOFError, TypeError) as error:
        raise ArtifactError(f"{path} cannot be read as a checkpoint file: {error}") from error
    states = payload.get("state_dicts") if isinstance(payload, dict) else None
    if not isinstance(states, Mapping) or not isinstance(states.get("model"), Mapping):
        raise ArtifactError(
            f"{path} is no checkpoint of the diffusion_policy library: it has no state_dicts.model"
        )
    average = isinstance(states.get("ema_model"), Mapping)
    weights = states["ema_model" if average else "model"]
    tensors = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    config = plain(payload.get("cfg"))
    policy = config.get("policy") if isinstance(config, dict) else None
    return Checkpoint(policy if isinstance(policy, dict) else {}, tensors, average)


def plain(node: Any) -> Any:
    """Return the plain values of a configuration whose nodes are records or containers; unreadable ones are None."""
    if isinstance(node, Record):
        state = getattr(node, "state", None)
        if not isinstance(state, dict):
            return None
        return plain(state.get("_content", state.get("_val")))
    if isinstance(node, Mapping):
        return {str(name): plain(value) for name, value in node.items()}
    if isinstance(node, list | tuple):
        return [plain(value) for value in node]
    return node if isinstance(node, str | int | float | bool) else None


class Parts(NamedTuple):
    """What a low-dimensional policy is made of.

    Attributes:
        config: Its sizes.
        state: Its network's tensors under this kit's names.
        normalizer: Of the actions.
        obs_normalizer: Of the observations.
    """

    config: PolicyConfig
    state: dict[str, Tensor]
    normalizer: LinearNormalizer
    obs_normalizer: LinearNormalizer


def import_checkpoint(path: str | Path, **sizes: int | bool) -> NativePolicy:
    """Return the low-dimensional policy of an original checkpoint file as a native policy.

    Widths are read off the tensors and everything else out of the file's configuration. `save_pretrained` keeps the
    result as a directory without pickles.

    Args:
        path: The file.
        sizes: Fields of `PolicyConfig` that replace what the file says, or say what it does not, such as
            `horizon`, `n_obs_steps`, `n_action_steps` or `n_head`.

    Raises:
        ArtifactError: When the file cannot be read or its weights do not fit.
        UnsupportedHostError: When the policy reads images, conditions otherwise or has another schedule.
        InputError: When a size is neither in the file nor given.
    """
    config, state, normalizer, obs_normalizer = checkpoint_parts(path, **sizes)
    policy = NativePolicy(config, None, normalizer, obs_normalizer)
    load_weights(policy.net, state, path)
    return policy.eval()


def load_weights(network: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Load a checkpoint's tensors strictly.

    Raises:
        ArtifactError: When names or shapes differ.
    """
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ArtifactError(f"the weights in {path} do not fit: {last_line(error)}") from error


def checkpoint_parts(path: str | Path, **sizes: int | bool) -> Parts:
    """Return what `import_checkpoint` builds a policy from; the arguments and errors are its.

    Args:
        path: The file.
        sizes: Fields of `PolicyConfig`.
    """
    found = read_checkpoint(path)
    if any(name.startswith("obs_encoder.") for name in found.weights):
        raise UnsupportedHostError(
            f"{path} is an image policy, whose encoder needs its library: load it there and pass the policy object"
        )
    _check_settings(path, found.config)
    state = strip_published(found.weights)
    fields = _settings(path, found, state, sizes) | sizes
    needed = ["horizon", "n_obs_steps", "n_action_steps"]
    needed += ["n_head"] if fields["network"] == "transformer" else []
    absent = [name for name in needed if name not in fields]
    if absent:
        raise InputError(
            f"{path} does not say {', '.join(absent)}; give it, such as import_checkpoint(path, {absent[0]}=2)"
        )
    config = PolicyConfig(**fields)
    normalizers = (
        _normalizer(path, found.weights, name, width)
        for name, width in (("action", config.action_dim), ("obs", config.obs_dim))
    )
    return Parts(config, state, *normalizers)


def _check_settings(path: str | Path, config: Mapping[str, Any]) -> None:
    scheduler = config.get("noise_scheduler") or {}
    for name, wanted in SCHEDULE.items():
        if scheduler.get(name, wanted) != wanted:
            raise UnsupportedHostError(
                f"{path} was trained with {name} = {scheduler[name]!r}; native policies have {wanted!r}: load it with "
                "its library and pass the policy object"
            )
    network = config.get("model") or {}
    local = config.get("obs_as_local_cond") or not config.get(
        "obs_as_global_cond", config.get("obs_as_cond", True)
    )
    if local or config.get("pred_action_steps_only") or network.get("n_cond_layers"):
        raise UnsupportedHostError(
            f"{path} conditions locally, by inpainting or through encoder layers, or predicts the executed actions "
            "only; native policies do not"
        )
    if network.get("n_groups", 8) != 8 or not network.get("time_as_cond", True):
        raise UnsupportedHostError(f"{path} has a network of other groups or with the time among the actions")


def _settings(
    path: str | Path, found: Checkpoint, state: Mapping[str, Tensor], sizes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the fields of `PolicyConfig` that configuration and tensors tell; what neither tells is left out."""
    config, network = found.config, found.config.get("model") or {}
    scheduler = config.get("noise_scheduler") or {}
    told = {name: config.get(name) for name in ("horizon", "n_obs_steps", "n_action_steps")}
    told |= {name: scheduler.get(name) for name in ("num_train_timesteps", "prediction_type")}
    try:
        if "input_emb.weight" in state:
            told |= {name: network.get(name) for name in ("n_head", "p_drop_emb", "p_drop_attn")}
            told |= _transformer_sizes(state)
        else:
            told["start_at_current"] = config.get("oa_step_convention", False)
            told |= _unet_sizes(state, sizes.get("n_obs_steps", told["n_obs_steps"]))
    except (KeyError, IndexError, ValueError) as error:
        raise ArtifactError(f"{path} holds no network of a known layout: it lacks {error}") from error
    return {"ema": found.average} | {name: value for name, value in told.items() if value is not None}


def _unet_sizes(state: Mapping[str, Tensor], n_obs_steps: int | None) -> dict[str, Any]:
    levels = sorted({int(name.split(".")[1]) for name in state if name.startswith("down_modules.")})
    # The step encoder's last layer; the first one of a network with a level per position is wider than the embedding.
    number = max(int(name.split(".")[1]) for name in state if name.startswith("diffusion_step_encoder."))
    width = state[f"diffusion_step_encoder.{number}.weight"].shape[0]
    first = state["down_modules.0.0.blocks.0.block.0.weight"]
    modulation = state["down_modules.0.0.cond_encoder.1.weight"]
    if modulation.shape[0] != 2 * first.shape[0]:
        raise UnsupportedHostError("the U-Net shifts without scaling (cond_predict_scale is off)")
    return {
        "network": "unet",
        "action_dim": first.shape[1],
        "obs_dim": (modulation.shape[1] - width) // (n_obs_steps or 1),
        "down_dims": tuple(
            state[f"down_modules.{level}.0.blocks.0.block.0.weight"].shape[0] for level in levels
        ),
        "kernel_size": first.shape[2],
        "step_embed_dim": width,
    }


def _transformer_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    layers = {name.split(".")[2] for name in state if name.startswith("decoder.layers.")}
    return {
        "network": "transformer",
        "horizon": state["pos_emb"].shape[1],
        "n_obs_steps": state["cond_pos_emb"].shape[1] - 1,
        "action_dim": state["input_emb.weight"].shape[1],
        "obs_dim": state["cond_obs_emb.weight"].shape[1],
        "n_layer": len(layers),
        "n_emb": state["input_emb.weight"].shape[0],
        "causal_attn": "mask" in state,
    }


def _normalizer(path: str | Path, weights: Mapping[str, Tensor], name: str, width: int) -> LinearNormalizer:
    prefix = f"normalizer.params_dict.{name}."
    if f"{prefix}scale" not in weights:
        raise ArtifactError(f"{path} lacks the normaliser of {name}")
    scale, offset = (weights[prefix + part].flatten() for part in ("scale", "offset"))
    return LinearNormalizer(scale.expand(width).clone(), offset.expand(width).clone())
