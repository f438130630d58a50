from .bottleneck import analyse_bottleneck as analyse_bottleneck
from .latent_attack import attack_latents as attack_latents
from .methods import METHODS as METHODS
from .methods import protect_with as protect_with
from .options import Editing as Editing
from .options import Method as Method
from .purifying_steps import Purified as Purified
