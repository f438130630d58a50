"""Block-wise caching inside LeRobot: the policy type `bac` of its commands.

On a policy object `noiseworks.bac.attach` is all that is needed. LeRobot imports this package and its modules when a
command names it as `--discover_packages_path`.
"""

from noiseworks.bac.lerobot.storing import write_lerobot

__all__ = ["write_lerobot"]
