"""Context managers that observe or change heads of one model and leave it bit for bit as it was."""

from headwise.attention.ablate import MODES, SCOPES, ablate
from headwise.attention.capture import Capture, capture
from headwise.attention.copying import COPY_WAYS, Force, force_copy
from headwise.attention.hide import hide
from headwise.attention.means import head_means
from headwise.attention.observe import Observation, observe
from headwise.attention.patch import patch
from headwise.attention.plan import attached
from headwise.attention.scale import scale
from headwise.attention.steer import steer
from headwise.attention.vectors import VECTOR_MODES, HeadVectors, Recording, insert, record

__all__ = [
    "COPY_WAYS",
    "MODES",
    "SCOPES",
    "VECTOR_MODES",
    "Capture",
    "Force",
    "HeadVectors",
    "Observation",
    "Recording",
    "ablate",
    "attached",
    "capture",
    "force_copy",
    "head_means",
    "hide",
    "insert",
    "observe",
    "patch",
    "record",
    "scale",
    "steer",
]
