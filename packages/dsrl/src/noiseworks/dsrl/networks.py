"""SAC's networks with a LayerNorm after each hidden linear layer, as the paper's (its code, `use_layer_norm`)."""

from typing import Any

from stable_baselines3.sac.policies import Actor, SACPolicy
from torch import nn


def normed(network: nn.Sequential) -> nn.Sequential:
    """Return a perceptron with a LayerNorm between each linear layer and its activation; the last layer keeps none."""
    parts: list[nn.Module] = []
    layers = list(network)
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        parts.append(layer)
        if isinstance(layer, nn.Linear) and following is not None:
            parts.append(nn.LayerNorm(layer.out_features))
    return nn.Sequential(*parts)


class NormedPolicy(SACPolicy):
    """stable-baselines3's policy of SAC with normed actor and critics."""

    def make_actor(self, features_extractor: Any = None) -> Actor:
        """Return an actor whose hidden layers are normed."""
        actor = super().make_actor(features_extractor)
        actor.latent_pi = normed(actor.latent_pi)
        return actor.to(self.device)

    def make_critic(self, features_extractor: Any = None) -> Any:
        """Return critics whose hidden layers are normed."""
        critic = super().make_critic(features_extractor)
        for index, network in enumerate(critic.q_networks):
            critic.q_networks[index] = made = normed(network)
            setattr(critic, f"qf{index}", made)
        return critic.to(self.device)
