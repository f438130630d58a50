"""The policy type `streaming_dp`: LeRobot's diffusion policy with a converted network that streams."""

from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from noiseworks.kits.policies.hosts.lerobot_control import attached_config, attached_options
from noiseworks.streaming_dp.lerobot.attaching import attach
from noiseworks.streaming_dp.networks import concatenated_encoder
from noiseworks.streaming_dp.options import Stream

StreamingDpConfig = attached_config(
    "streaming_dp", DiffusionConfig, Stream, __name__, leave=("n_action_steps",)
)


class StreamingDpPolicy(DiffusionPolicy):
    """LeRobot's diffusion policy with a level for each position, which streams.

    Args:
        config: Its configuration, which holds the settings of the method too.
    """

    config_class = StreamingDpConfig
    name = "streaming_dp"

    def __init__(self, config: StreamingDpConfig) -> None:
        super().__init__(config)
        network = self.diffusion.unet
        network.diffusion_step_encoder = concatenated_encoder(network.diffusion_step_encoder, config.horizon)
        self.control = attach(self, attached_options(config, Stream))
