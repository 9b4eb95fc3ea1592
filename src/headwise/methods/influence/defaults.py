"""Numbers that the scorer and its command share. The command shows them before anything heavy is loaded."""

from __future__ import annotations

MODE = "uniform"  # what the paper does to the heads
MAX_LEN = 4096  # tokens of a pass, as in the paper's selector (its larger one has 8192)
MIN_TOKENS = 64  # scored tokens of a document that is ranked
FLOOR = 0.05  # nats: the least loss of a document that is ranked
CPU_TOKENS = 1024  # of a batch: what stays in a CPU's caches; more only costs memory
MANY_TOKENS = 16_384  # of a batch, elsewhere
