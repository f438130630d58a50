"""The policy type `rti_dp`: LeRobot's diffusion policy, loaded as ever, with real-time iteration attached."""

from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from noiseworks.kits.policies.hosts.lerobot_control import attached_config, attached_options
from noiseworks.rti_dp.lerobot.attaching import attach
from noiseworks.rti_dp.options import Iteration

RtiDpConfig = attached_config("rti_dp", DiffusionConfig, Iteration, __name__)


class RtiDpPolicy(DiffusionPolicy):
    """LeRobot's diffusion policy with real-time iteration attached.

    Args:
        config: Its configuration, which holds the settings of the method too.
    """

    config_class = RtiDpConfig
    name = "rti_dp"

    def __init__(self, config: RtiDpConfig) -> None:
        super().__init__(config)
        self.control = attach(self, attached_options(config, Iteration))
