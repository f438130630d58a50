"""The policy type `bac`: LeRobot's multi-task policy, loaded as ever, with the plan of its directory attached."""

from dataclasses import dataclass
from pathlib import Path

from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.multi_task_dit.configuration_multi_task_dit import MultiTaskDiTConfig
from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy
from noiseworks.bac.attaching import attach
from noiseworks.bac.plan import CachePlan


@PreTrainedConfig.register_subclass("bac")
@dataclass
class BacConfig(MultiTaskDiTConfig):
    """The configuration of the policy that the plan is for."""


class BacPolicy(MultiTaskDiTPolicy):
    """LeRobot's multi-task policy with a plan attached."""

    config_class = BacConfig
    name = "bac"

    @classmethod
    def _load_as_safetensor(
        cls, model: "BacPolicy", model_file: str, map_location: str, strict: bool
    ) -> "BacPolicy":
        # A plan is for the weights that it was made on, so it is attached after they are there.
        model = super()._load_as_safetensor(model, model_file, map_location, strict).eval()
        model.cached = attach(model, CachePlan.from_pretrained(Path(model_file).parent / "plan"))
        return model
