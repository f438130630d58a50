from .gating import choose as choose
from .model import SwitchDiT as SwitchDiT
from .options import Switch as Switch
from .prior import match as match
from .prior import prior_loss as prior_loss
from .prior import prior_table as prior_table
from .training import fit_switch as fit_switch
