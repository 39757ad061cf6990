"""Text encoders that others have trained, here tiny ones of random weights: frozen, not kept, and told what to read."""

from __future__ import annotations

import copy
import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from ddim.data.captioned_digits import CAPTIONS, WORDS, CaptionedDigits, captions_of
from ddim.data.encoded_captions import EncoderVocabulary, vocabulary_for, vocabulary_from
from ddim.data.options import Options
from ddim.denoisers.build import check_conditions, new_denoiser
from ddim.denoisers.formats.own import describe
from ddim.denoisers.pretrained import open_pretrained
from ddim.denoisers.pretrained_text import PretrainedText, text_model
from ddim.diffusion.grid import SamplerConfig
from ddim.draw import draw
from ddim.errors import UserError
from ddim.training.build import dataset_read_by

KINDS = ("bert", "clip", "clip_both", "t5")
SMALL = {
    **{"name": "text_unet", "num_words": None, "caption_length": None, "text_width": 8, "resolution": 16},
    **{"base_channels": 8, "channel_mult": [1, 2], "attention_resolutions": [8], "norm_groups": 4},
}


@pytest.fixture(scope="module", params=KINDS)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny model and a tokenizer that knows a word more than the captions are made of."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", *WORDS, "beside"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)]
    )
    sizes = {"vocab_size": len(words), "hidden_size": 12, "intermediate_size": 16, "num_attention_heads": 2}
    layers = {"num_hidden_layers": 1, "max_position_embeddings": 40}
    text = {**sizes, **layers, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
              "image_size": 8, "patch_size": 4}  # fmt: skip
    model = {
        "bert": lambda: transformers.BertModel(transformers.BertConfig(**sizes, **layers)),
        "clip": lambda: transformers.CLIPTextModel(transformers.CLIPTextConfig(**text)),
        "clip_both": lambda: transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision)),
        "t5": lambda: transformers.T5Model(
            transformers.T5Config(vocab_size=len(words), d_model=12, d_kv=6, d_ff=16, num_layers=1, num_heads=2)
        ),
    }[request.param]()
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "bos_token": "[BOS]", "eos_token": "[EOS]"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.save_pretrained(folder)
    return str(folder)


def test_a_caption_is_read_as_the_encoder_reads_it_alone(encoder: str) -> None:
    """Padding, and captions beside it, change nothing; what is between start and end is the encoder's own, mapped."""
    vocabulary = vocabulary_for(WORDS, [caption.text for caption in CAPTIONS], encoder)
    tokens = vocabulary.encode(["a three", "a seven left of an eight"])
    assert vocabulary.decode(tokens) == ["a three", "a seven left of an eight"]
    network = PretrainedText(encoder, 8)
    found = network(tokens)
    assert found.present.sum(1).tolist() == [1 + 4, 1 + 8]
    model = text_model(encoder)
    alone = model(input_ids=tokens[:1, :4] - 1, attention_mask=torch.ones(1, 4)).last_hidden_state
    torch.testing.assert_close(found.features[0, 1:5], network.project(alone)[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.features[0, 0], network.start + network.project(alone)[0].mean(0))
    empty = network(torch.zeros(1, vocabulary.length, dtype=torch.long))
    assert torch.equal(empty.features[0, 0], network.start) and empty.present.sum() == 1
    assert torch.isfinite(empty.features).all()


def test_the_encoder_is_frozen_and_not_in_checkpoints(encoder: str) -> None:
    network = PretrainedText(encoder, 8)
    assert set(network.state_dict()) == {"start", "project.weight", "project.bias"}
    assert copy.deepcopy(network)._frozen[0] is network._frozen[0], "an average of the weights needs no second encoder"
    network(EncoderVocabulary(WORDS, 12, encoder).encode(["a three"])).features.sum().backward()
    assert network.start.grad is not None and not any(p.requires_grad for p in text_model(encoder).parameters())


def test_a_caption_of_other_words_is_drawn(encoder: str, tmp_path: Path) -> None:
    data = CaptionedDigits(Options({"count": 40, "test_count": 10, "encoder": encoder}), tmp_path)
    conditions = data.open("train").conditions
    assert conditions is not None
    assert vocabulary_from(data.meaning).decode(conditions[:9]) == [
        caption.text for caption in captions_of("trained")[:9]
    ]
    network = new_denoiser({**SMALL, "encoder": encoder}, (1, 16, 16), "captioned_digits", data.meaning)
    state = {f"denoiser.{name}": torch.randn_like(value) * 0.2 for name, value in network.state_dict().items()}
    config = {
        **{"dataset": {"name": "captioned_digits"}, "denoiser": {"name": "text_unet", **network.config}},
        **{"schedule": {"name": "linear", "num_timesteps": 20, "beta_start": 1e-3, "beta_end": 0.2}},
        "condition": data.meaning,
    }
    torch.save({"ddim": describe(config), "state_dict": state}, tmp_path / "text.ckpt")
    opened = open_pretrained(tmp_path / "text.ckpt")
    one, other, empty = (
        draw(opened, caption, SamplerConfig(2, 0.0), number=2, scale=1.0, weights="raw")
        for caption in ("a three beside a seven", "a three left of a seven", "")
    )
    assert not torch.equal(one, other) and not torch.equal(one, empty)
    with pytest.raises(UserError, match=r'The caption "a a .* has 42 tokens; at most'):
        draw(opened, " ".join(["a"] * 40), SamplerConfig(2, 0.0), weights="raw")
    longer = {**data.meaning, "caption_length": data.meaning["caption_length"] + 1}
    with pytest.raises(UserError, match=r"text.ckpt is damaged, or its encoder is another one now: denoiser.caption_l"):
        draw(replace(opened, condition=longer), "a three", SamplerConfig(2, 0.0), weights="raw")


def test_what_is_no_encoder_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    for made in (lambda: text_model(str(tmp_path)), lambda: EncoderVocabulary(WORDS, 8, str(tmp_path))):
        with pytest.raises(UserError, match=r"denoiser.encoder=.* cannot be read: give the folder or the hub's name"):
            made()


@pytest.mark.parametrize("made", [text_model, lambda name: EncoderVocabulary(WORDS, 8, name)])
def test_code_that_a_model_brings_is_not_executed_nor_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Callable[[str], object]
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run the code"))
    classes = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.Own", "AutoTokenizer": ["own.Own", None]}
    about = {"model_type": "own", "auto_map": classes}
    (tmp_path / "config.json").write_text(json.dumps(about))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": classes}))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    with pytest.raises(UserError, match=r"denoiser.encoder=.* cannot be read: give the folder or the hub's name"):
        made(str(tmp_path))
    assert not (tmp_path / "executed").exists()


def truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def other_sizes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 16, "d_model": 16}))


def without_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["embeddings.word_embeddings.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def of_pictures(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=8, patch_size=4)).save_pretrained(folder)


@pytest.mark.parametrize("damage", [truncated, other_sizes, without_a_weight, of_pictures])
@pytest.mark.parametrize("encoder", ["bert"], indirect=True)
def test_a_model_that_cannot_be_used_is_one_sentence(
    encoder: str, tmp_path: Path, damage: Callable[[Path], None], capfd: pytest.CaptureFixture[str]
) -> None:
    """Also where the network's size is counted first, on tensors without storage."""
    folder = Path(shutil.copytree(encoder, tmp_path / "model"))
    damage(folder)
    meaning = EncoderVocabulary(WORDS, 8, encoder).meaning
    with pytest.raises(UserError, match=r"^denoiser.encoder=.* cannot be read: give the folder .*\)\.$"):
        new_denoiser({**SMALL, "encoder": str(folder)}, (1, 16, 16), "mine", meaning)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("encoder", ["bert"], indirect=True)
def test_what_makes_one_vector_of_a_text_may_be_absent(encoder: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(encoder, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "pooler" not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    ids = torch.tensor([[2, 5, 3]])
    with torch.no_grad():
        found, expected = (text_model(name)(input_ids=ids).last_hidden_state for name in (str(folder), encoder))
    assert torch.equal(found, expected)


def test_a_parameter_of_this_name_of_a_users_own_network_is_its_own() -> None:
    class Own(nn.Module):
        def __init__(self, encoder: str = "deep") -> None:
            super().__init__()
            self.config = {"encoder": encoder, "num_classes": 2}
            self.conditional, self.sample_shape = True, (1, 8, 8)

    check_conditions(Own(), {"classes": ["a", "b"]}, "mine")
    assert dataset_read_by({"name": "own", "encoder": "deep"}, {"name": "digits"}) == {"name": "digits"}
    read = dataset_read_by({"name": "text_unet", "encoder": "deep"}, {"name": "captioned_digits"})
    assert read == {"name": "captioned_digits", "encoder": "deep"}


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"denoiser.encoder=me/mine needs the package transformers: pip install -e"):
        vocabulary_for(["a"], ["a"], "me/mine")
    with pytest.raises(UserError, match=r"denoiser.encoder=me/mine needs the package transformers"):
        text_model("me/mine")


def test_network_and_data_must_have_the_same_encoder(encoder: str) -> None:
    meaning = {"words": list(WORDS), "caption_length": 8}
    network = new_denoiser({**SMALL, "encoder": encoder}, (1, 16, 16), "mine", meaning)
    with pytest.raises(UserError, match=r"denoiser.encoder=.* does not read the captions of dataset mine"):
        check_conditions(network, meaning, "mine")
