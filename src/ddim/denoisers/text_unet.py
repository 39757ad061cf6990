"""The UNet of DDPM with captions, in the way of GLIDE (Nichol et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddim.denoisers.layers import linear
from ddim.denoisers.pretrained_text import PretrainedText
from ddim.denoisers.text import HEADS, PADDING, TextEncoder
from ddim.denoisers.unet import UNet


class TextUNet(nn.Module):
    """A UNet that reads a caption: its tokens are keys and values of every attention beside the image's own, and what
    stands for the whole of it is added to the time embedding.

    Args:
        num_words: of the vocabulary; token ids are 1 to num_words, and 0 for padding.
        caption_length: L, tokens of a caption.
        text_width: features of a token, a multiple of 4.
        text_depth: layers of the transformer that reads it.
        encoder: a text encoder that others have trained, frozen, in its place: a folder or a name of the Hugging Face
            hub, read with the extra `text`; null trains a transformer.

    The others are those of :class:`UNet`.

    Raises:
        ValueError: an argument is out of range or does not fit the others; the message names it.
    """

    def __init__(
        self,
        *,
        num_words: int,
        caption_length: int,
        text_width: int = 64,
        text_depth: int = 2,
        encoder: str | None = None,
        in_channels: int = 1,
        resolution: int = 16,
        base_channels: int = 32,
        channel_mult: Sequence[int] = (1, 2),
        num_res_blocks: int = 1,
        attention_resolutions: Sequence[int] = (8, 4),
        dropout: float = 0.0,
        norm_groups: int = 16,
        patch: int = 1,
    ) -> None:
        super().__init__()
        text: dict[str, Any] = {
            "num_words": num_words,
            "caption_length": caption_length,
            "text_width": text_width,
            "text_depth": text_depth,
        }
        for name, value in text.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if text_width % HEADS:
            raise ValueError(f"text_width must be a multiple of {HEADS}, got {text_width}")
        if encoder is not None and (not isinstance(encoder, str) or not encoder.strip()):
            raise ValueError(f"encoder must be the name of a text encoder or null, got {encoder!r}")
        image: dict[str, Any] = {
            "in_channels": in_channels,
            "resolution": resolution,
            "base_channels": base_channels,
            "channel_mult": channel_mult,
            "num_res_blocks": num_res_blocks,
            "attention_resolutions": attention_resolutions,
            "dropout": dropout,
            "norm_groups": norm_groups,
            "patch": patch,
        }
        self.unet = UNet(**image)
        self.unet.attend_to(text_width)
        self.text: TextEncoder | PretrainedText
        if encoder is None:
            self.text = TextEncoder(num_words, caption_length, text_width, text_depth)
        else:
            self.text = PretrainedText(encoder, text_width)
        self.pooled = linear(text_width, 4 * base_channels)
        self.config = {**text, "encoder": encoder, **{name: self.unet.config[name] for name in image}}

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images that it is trained on."""
        return self.unet.sample_shape

    @property
    def null_condition(self) -> Tensor:
        """The empty caption, token ids (caption_length,)."""
        return torch.full((self.config["caption_length"],), PADDING)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Predict the noise in x_t, of images with these captions.

        Args:
            x, t: as of :meth:`UNet.forward`.
            condition: token ids (N, caption_length), LongTensor; None is the empty caption for all.

        Returns:
            (N, in_channels, H, W) in the precision of the weights.

        Raises:
            ValueError: an argument has another shape or kind than this.
        """
        self.unet.check_inputs(x, t)
        shape = (len(x), self.config["caption_length"])
        if condition is None:
            condition = self.null_condition.to(x.device).expand(shape)
        if condition.shape != shape or condition.dtype != torch.long:
            raise ValueError(
                f"condition must be a LongTensor of shape {shape} like the batch of x, "
                f"got {condition.dtype} {tuple(condition.shape)}"
            )
        context = self.text(condition)
        time = self.unet.time_embedding(t, self.pooled(context.features[:, 0]))
        return self.unet.predict(x, time, context)
