"""Multiply-adds of a denoiser call, counted as two operations each."""

from noiseworks.mode.config import MoDEConfig


def tokens(config: MoDEConfig, obs_tokens: int = 1) -> int:
    """Return the length S of the sequence."""
    return int(config.noise_token) + 1 + int(config.proprio_dim is not None) + obs_tokens + config.chunk


def denoiser_flops(config: MoDEConfig, *, batch: int = 1, obs_tokens: int = 1, cached: bool = False) -> int:
    """Return the operations of one call: per token and layer 8 D^2 + 4 S D and 6 h D per expert used.

    The router runs once a sample, 2 (2 D^2 + 2 D E), and not at all from the cache. Embeddings and norms are left out.

    Args:
        config: The denoiser.
        batch: Rows.
        obs_tokens: Observation tokens.
        cached: Whether experts come from the cache.
    """
    width, length = config.width, tokens(config, obs_tokens)
    attention = 8 * width**2 + 4 * length * width
    experts = config.top_k * 6 * config.expert_factor * width**2
    router = 0 if config.dense or cached else 2 * (2 * width**2 + 2 * width * config.num_routed)
    rows = length if config.routing == "token" else 1
    return batch * config.num_layers * (length * (attention + experts) + rows * router)
