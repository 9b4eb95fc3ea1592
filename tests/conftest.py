"""Tiny models gain nothing from threads, and two test processes with two threads each on two cores would wait for one another."""

import torch

torch.set_num_threads(1)
