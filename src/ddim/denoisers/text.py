"""A small transformer that reads captions, trained together with the network that it speaks to (as in GLIDE, Nichol et
al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddim.denoisers.layers import Context

# The token that fills captions up to their common length; the empty caption is nothing but this.
PADDING = 0
HEADS = 4
EMBEDDING_STD = 0.02


class TextEncoder(nn.Module):
    """Token ids (N, L) to what each token means beside the others.

    A learned start stands before every caption, so that the empty one has a meaning as well. What stands in the place
    of padding is attended to by nothing.

    Args:
        num_words: token ids are 1 to num_words, and PADDING.
        length: L.
        width: features of a token, a multiple of HEADS.
        depth: transformer layers.
    """

    def __init__(self, num_words: int, length: int, width: int, depth: int) -> None:
        super().__init__()
        self.words = nn.Embedding(num_words + 1, width)
        self.start = nn.Parameter(EMBEDDING_STD * torch.randn(width))
        self.positions = nn.Parameter(EMBEDDING_STD * torch.randn(1 + length, width))
        nn.init.normal_(self.words.weight, std=EMBEDDING_STD)
        layer = nn.TransformerEncoderLayer(
            width, HEADS, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Context:
        """tokens: int64 (N, L). The features are (N, 1 + L, width); those of the start, the first, stand for all."""
        start = self.start.expand(len(tokens), 1, -1)
        x = torch.cat([start, self.words(tokens)], dim=1) + self.positions
        present = torch.cat([tokens.new_ones(len(tokens), 1, dtype=torch.bool), tokens != PADDING], dim=1)
        return Context(self.transformer(x, src_key_padding_mask=~present), present)
