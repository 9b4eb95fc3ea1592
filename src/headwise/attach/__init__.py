"""Context managers that observe or change heads of one model and leave it bit for bit as it was."""

from headwise.attach.ablate import MODES, SCOPES, ablate
from headwise.attach.groups import Window
from headwise.attach.kept_cache import KeptCache, compress
from headwise.attach.kept_layer import Compressor, Keep, View
from headwise.attach.means import head_means
from headwise.attach.observe import Observation, observe
from headwise.attach.plan import attached
from headwise.attach.steer import steer

__all__ = [
    "MODES",
    "SCOPES",
    "Compressor",
    "Keep",
    "KeptCache",
    "Observation",
    "View",
    "Window",
    "ablate",
    "attached",
    "compress",
    "head_means",
    "observe",
    "steer",
]
