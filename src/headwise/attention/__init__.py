"""Context managers that observe or change heads of one model and leave it bit for bit as it was."""

from headwise.attention.ablate import MODES, SCOPES, ablate
from headwise.attention.capture import Capture, capture
from headwise.attention.means import head_means
from headwise.attention.observe import Observation, observe
from headwise.attention.plan import attached
from headwise.attention.steer import steer

__all__ = ["MODES", "SCOPES", "Capture", "Observation", "ablate", "attached", "capture", "head_means", "observe", "steer"]
