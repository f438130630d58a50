"""A LeRobot policy object that acts by a replanning method, in everything of LeRobot that calls `select_action`.

`control` takes the place of the object's `select_action` and `reset`. The object stays LeRobot's own class with its
configuration, weights and processors, so its `rollout`, `eval_policy`, `lerobot-eval` and the synchronous engine of
`lerobot-rollout` run it as they run any other. `write_policy` makes a directory that those commands load by name.
"""

import json
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, fields, make_dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_type_hints

import torch
from noiseworks.core.artifacts import CONFIG_NAME, FolderKind, atomic_directory, check_folder, read_json
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.core.options import Options
from noiseworks.kits import attachments
from noiseworks.kits.attachments import Wrap
from noiseworks.kits.policies.hosts import as_host
from noiseworks.kits.policies.loop import network_place
from noiseworks.kits.policies.observing import check_observation
from noiseworks.kits.policies.protocols import DenoiserHost
from noiseworks.kits.policies.replanning import ReplanningPolicy
from torch import Tensor, nn

WEIGHTS = "model.safetensors"
FOLDER = FolderKind(
    None, (CONFIG_NAME, "*.safetensors", "policy_*processor.json", "train_config.json", "README.md", "plan/*")
)

Maker = Callable[[DenoiserHost, int], ReplanningPolicy]


class Controlled:
    """A LeRobot policy whose actions a replanning method chooses; made by `control`. A context manager.

    Attributes:
        policy: The policy object; it speaks normalised units, as LeRobot's processors expect.
        controller: What acts; a new one when the number of environments changes after a reset.
    """

    def __init__(self, name: str, policy: nn.Module, make: Maker) -> None:
        self.policy, self._make = policy, make
        self._host = as_host(policy)
        self.controller, self._acting = make(self._host, 1), False
        parts = [Wrap(policy, self._select, "select_action"), Wrap(policy, self._reset, "reset")]
        self._attachment = attachments.attach(name, parts)

    def detach(self) -> None:
        """Give the policy its own methods back, with empty queues; a second call does nothing."""
        if self._attachment.attached:
            self._attachment.detach()
            self.policy.reset()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Detach."""
        self.detach()

    def _select(
        self, beneath: Callable[..., Tensor], batch: Mapping[str, Any], noise: Tensor | None = None
    ) -> Tensor:
        if noise is not None:
            raise InputError("select_action takes no noise here: the attached method draws from its own seed")
        obs = check_observation(batch, self._host.observation_shapes, (None,))
        rows = len(next(iter(obs.values())))
        if rows != self.controller.num_envs:
            if self._acting:
                raise InputError(
                    f"expected observations of {self.controller.num_envs} environments, got {rows}; reset the policy "
                    "before their number changes"
                )
            # LeRobot acts in inference mode and resets outside of it, where tensors made within could not be changed.
            with torch.inference_mode(False):
                self.controller = self._make(self._host, rows)
        self._acting = True
        return self.controller.act(obs).to(network_place(self._host)[0])

    def _reset(self, beneath: Callable[[], None]) -> None:
        beneath()
        self.controller.reset()
        self._acting = False


def control(name: str, policy: nn.Module, make: Maker) -> Controlled:
    """Let a LeRobot policy act by a replanning method.

    Observations are checked at every `select_action`, which keeps its own history and queue; LeRobot's queues stay
    empty. `predict_action_chunk` is LeRobot's own still: it plans from a batch without a memory.

    Args:
        name: The method's name.
        policy: LeRobot's `DiffusionPolicy` or `MultiTaskDiTPolicy`.
        make: (host, number of environments) -> the method's policy. It is called now, so that what it refuses is
            refused now.

    Raises:
        InputError: When the object has a method of this name attached already.
        UnsupportedHostError: When it is no policy of LeRobot's.
    """
    if not (hasattr(policy, "select_action") and hasattr(policy, "reset")):
        raise UnsupportedHostError(
            f"{type(policy).__name__} has no select_action and reset, as LeRobot's policies do"
        )
    return Controlled(name, policy, make)


def attached_config(
    name: str, base: type, options: type[Options], module: str, leave: Sequence[str] = ()
) -> type:
    """Return a configuration of LeRobot's that adds an option group's fields to a policy's, registered under a name.

    Args:
        name: The policy's type in `config.json`, such as `rti_dp`.
        base: Configuration class of the policy that a method is attached to.
        options: The option group.
        module: Name of the module in which LeRobot finds the policy's class.
        leave: Its fields that the configuration has already.
    """
    hints = get_type_hints(options)
    added = [
        (one.name, hints[one.name], field(default=one.default))
        for one in fields(options)
        if one.name not in leave
    ]
    title = "".join(word.title() for word in name.split("_"))
    made = make_dataclass(f"{title}Config", added, bases=(base,), module=module)
    made.__doc__ = f"`{base.__name__}` with the fields of `{options.__name__}`."
    return base.register_subclass(name)(made)


def attached_options(config: Any, options: type[Options]) -> Options:
    """Return the option group that a configuration of `attached_config` holds.

    Raises:
        InputError: When a field is out of its range.
    """
    return options(**{one.name: getattr(config, one.name) for one in fields(options)})


def write_policy(
    source: str | Path,
    out: str | Path,
    kind: str,
    settings: Mapping[str, Any],
    *,
    base: str = "diffusion",
    weights: Mapping[str, Tensor] | None = None,
    plan: str | Path | None = None,
) -> None:
    """Write a directory that LeRobot loads as a policy with a method attached.

    Args:
        source: The directory of the policy; its processors go along.
        out: The directory to make or replace.
        kind: Registered name of the policy with the method.
        settings: Fields to set in its configuration.
        base: Type that the source must have.
        weights: Other weights than the source's, by name.
        plan: A folder that goes along as `plan`.

    Raises:
        InputError: When the source is no directory of a LeRobot policy of that type.
    """
    from safetensors.torch import save_file

    source = Path(source)
    config = read_json(source / CONFIG_NAME, "policy of LeRobot") if source.is_dir() else {}
    if config.get("type") != base:
        raise InputError(
            f"{source} must be a directory that LeRobot saved with a policy of type {base}, got "
            f"{config.get('type') or 'another kind'}"
        )
    check_folder(out, FOLDER, sources=(source,))
    with atomic_directory(out, FOLDER) as made:
        for pattern in FOLDER.files:
            for path in source.glob(pattern):
                if path.name != CONFIG_NAME and not (weights and path.name == WEIGHTS):
                    shutil.copyfile(path, made / path.name)
        if weights is not None:
            save_file({name: value.contiguous() for name, value in weights.items()}, made / WEIGHTS)
        if plan is not None:
            shutil.copytree(plan, made / "plan")
        (made / CONFIG_NAME).write_text(json.dumps(config | {"type": kind, **settings}, indent=2))


def evaluation_command(folder: str | Path, package: str) -> str:
    """Return the command of LeRobot that evaluates a directory of `write_policy`.

    Args:
        folder: The directory.
        package: The package that registers its type.
    """
    place = shlex.quote(str(folder))
    return f"lerobot-eval --policy.path={place} --discover_packages_path={package} --env.type=pusht"
