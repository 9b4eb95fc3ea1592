"""A whole draft layer, and what it is trained by: only needed while a chooser is trained.

`headwise.maths.distil.attention_loss` teaches the draft head directly where the model attends. `token_loss` is the way of SpeContext's draft, EAGLE-3
(Li et al. 2025, arXiv:2503.01840): predict the model's next-token probabilities for several steps on the draft's own states. That its attention then
falls where the model's does is hoped for (SpeContext, sec. 3.1), not trained.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad, silu

from headwise.maths.distil import chained_attention
from headwise.maths.rotation import frequencies, rotated
from headwise.maths.rows import grouped_product
from headwise.models.draft_head import DraftHead

DECAY = 0.8  # weight of step i of the token loss is 0.8^i, as in EAGLE-3


class Draft(nn.Module):
    """A draft layer around a draft head: attention, MLP, and a final norm.

    Args:
        head: Its queries and keys; trained with it.
        inner: Width of the MLP.
    """

    def __init__(self, head: DraftHead, inner: int) -> None:
        super().__init__()
        shape = head.shape
        self.head = head
        self.value = nn.Linear(shape.wide, shape.kv_heads * shape.head_dim, bias=False)
        self.output = nn.Linear(shape.heads * shape.head_dim, shape.width, bias=False)
        self.middle_norm, self.final_norm = (nn.RMSNorm(shape.width, eps=shape.eps) for _ in range(2))
        self.gate, self.up = (nn.Linear(shape.width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, shape.width, bias=False)

    def states(self, embeddings: Tensor, fused: Tensor, steps: int) -> list[Tensor]:
        """Hidden states of several steps, in which each reads what the one before gave in place of the model's features (EAGLE-3, sec. 3.2).

        Args:
            embeddings: [B, T, width].
            fused: [B, T, width] features of the same tokens; zeros for a head that reads embeddings alone.
            steps: At least 1.

        Returns:
            One [B, T, width] per step. At step i the first i positions stand for nothing.
        """
        shape, length = self.head.shape, embeddings.shape[1]
        turning, places = frequencies(shape.head_dim, shape.theta).to(embeddings.device), torch.arange(length)
        keys, values, found = list[Tensor](), list[Tensor](), list[Tensor]()
        for _ in range(steps):
            before = pad(found[-1] if found else fused, (0, 0, 1, 0))[:, :-1]
            inputs = self.head.inputs(embeddings, before)
            query = rotated(self.head.queries(inputs), places, turning)
            keys.append(rotated(self.head.keys(inputs), places, turning))
            values.append(self.value(inputs).view(*embeddings.shape[:2], shape.kv_heads, -1).transpose(1, 2))
            mixed = chained_attention(query, keys, values).transpose(1, 2).flatten(2)
            state = (before if shape.taps else embeddings) + self.output(mixed)
            normed = self.middle_norm(state)
            found.append(state + self.down(silu(self.gate(normed)) * self.up(normed)))
        return found


def token_loss(draft: Draft, embeddings: Tensor, fused: Tensor, words: Tensor, wanted: Tensor, steps: int) -> Tensor:
    """Cross-entropy of the draft's next-token probabilities, weighted over steps by 0.8^i.

    Args:
        draft: The draft layer.
        embeddings: [B, T, width].
        fused: [B, T, width], see `Draft.states`.
        words: [n, width] rows of the output projection of the draft's vocabulary; not trained.
        wanted: [B, T, n] probabilities of the model, or [B, T] indices of the true next tokens with -100 where they are not in the vocabulary.
        steps: How many.
    """
    total, weights = embeddings.new_zeros(()), 0.0
    for i, state in enumerate(draft.states(embeddings, fused, steps)):
        logits = draft.final_norm(state[:, i:]) @ words.T
        goal = wanted[:, i:]
        loss = cross_entropy(logits.flatten(0, 1), goal.flatten(0, 1) if goal.ndim == 3 else goal.flatten(), reduction="sum")
        count = goal.shape[0] * goal.shape[1] if goal.ndim == 3 else int((goal >= 0).sum())
        total, weights = total + DECAY**i * loss / max(1, count), weights + DECAY**i  # no true token may be in the vocabulary
    return total / weights


def head_rows(head: DraftHead, embeddings: Tensor, fused: Tensor | None, rows: Tensor, free: Tensor) -> Tensor:
    """Logits of the draft head where it may choose.

    Args:
        head: The draft head.
        embeddings: [B, T, width].
        fused: [B, T, width]; None for a head that reads embeddings alone.
        rows: [R] positions of queries.
        free: [R, T] bool, positions among which each chooses.

    Returns:
        [B, H, R, T], -inf elsewhere.
    """
    before = None if fused is None else pad(fused, (0, 0, 1, 0))[:, :-1]
    inputs, places = head.inputs(embeddings, before), torch.arange(embeddings.shape[1])
    turning = frequencies(head.shape.head_dim, head.shape.theta).to(embeddings.device)
    keys = rotated(head.keys(inputs), places, turning)
    query = rotated(head.queries(inputs[:, rows]), rows, turning) * head.shape.head_dim**-0.5
    return grouped_product(query, keys.transpose(-1, -2)).masked_fill(~free, -torch.inf)
