"""A text encoder that others have trained, frozen, in the place of the small transformer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ddim.denoisers.layers import Context, linear
from ddim.denoisers.text import EMBEDDING_STD, PADDING
from ddim.runs.transformers_extra import from_transformers


class PretrainedText(nn.Module):
    """Token ids (N, L) to what each token means beside the others, as `TextEncoder`.

    The encoder's weights never change and are no part of a checkpoint: they are read again from where they are. What is
    trained is a linear map of its features, and what stands for the empty caption.

    Args:
        name: of the encoder, a folder or one of the hub's.
        width: features of a token.
    """

    def __init__(self, name: str, width: int) -> None:
        super().__init__()
        # In a list: neither parameters nor state of this network, and one for all copies of it.
        self._frozen = _Shared([text_model(name)])
        self.start = nn.Parameter(EMBEDDING_STD * torch.randn(width))
        self.project = linear(self._frozen[0].config.hidden_size, width)

    def forward(self, tokens: Tensor) -> Context:
        """tokens: int64 (N, L), one more than the encoder's. Features are (N, 1 + L, width), the first of all."""
        present = tokens != PADDING
        # A model may be without an answer where there is no token at all.
        read = torch.cat([torch.ones_like(present[:, :1]), present[:, 1:]], dim=1)
        model = self._frozen[0]
        if next(model.parameters()).device != tokens.device:
            model.to(tokens.device)
        with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
            ids = (tokens - 1).clamp(min=0)
            hidden = model(input_ids=ids, attention_mask=read.long()).last_hidden_state
        each = self.project(hidden.to(self.project.weight.dtype))
        counted = present[..., None].to(each.dtype)
        mean = (each * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)
        first = torch.ones_like(present[:, :1])
        return Context(torch.cat([(self.start + mean)[:, None], each], dim=1), torch.cat([first, present], dim=1))


@lru_cache(maxsize=2)
def text_model(name: str) -> Any:
    """The model that reads text, of CLIP and of encoder-decoders that part of it, frozen and in eval mode.

    Raises `UserError` where there is none.
    """

    def read(package: Any) -> Any:
        # Sizes are counted on a device without storage first; these weights are there once.
        with torch.device("cpu"):
            whole, loaded = package.AutoModel.from_pretrained(
                name,
                use_safetensors=True,
                dtype=torch.float32,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
            part = getattr(whole, "text_model", whole)
            if getattr(part.config, "is_encoder_decoder", False):
                part = part.get_encoder()
            _check_weights(whole, part, loaded)
            return _tried(part.eval().requires_grad_(False))

    return from_transformers(name, read)


def _check_weights(whole: nn.Module, part: nn.Module, loaded: Mapping[str, Any]) -> None:
    """Raises ValueError where weights that are read with were not in the file: they would be random."""
    ours = {id(weight) for weight in part.parameters()}
    random = {*loaded["missing_keys"], *(name for name, *_ in loaded["mismatched_keys"])}
    # What makes one vector of a text is often trained later, and not asked here.
    lacking = [name for name, weight in whole.named_parameters() if id(weight) in ours and name in random]
    lacking = [name for name in lacking if "pooler" not in name]
    if lacking:
        raise ValueError(f"its weights do not fit its config.json: {len(lacking)} are wrong or absent, as {lacking[0]}")


def _tried(model: Any) -> Any:
    """The model, which has answered two tokens with as many features as it says. Raises what it raises otherwise."""
    ids = torch.zeros(1, 2, dtype=torch.long)
    with torch.no_grad():
        hidden = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    expected = (1, 2, model.config.hidden_size)
    if tuple(hidden.shape) != expected:
        raise ValueError(f"it answers two tokens by features of shape {tuple(hidden.shape)}, not {expected}")
    return model


class _Shared(list[Any]):
    def __deepcopy__(self, memo: Any) -> _Shared:
        return self
