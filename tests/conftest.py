"""Tiny models gain nothing from threads, and two test processes with two threads each on two cores would wait for one another.

Hypothesis counts no seconds: on a busy machine an example may take any time.
"""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")
