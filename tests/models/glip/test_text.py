"""The text encoder: masks, padding, length and what it remembers; the numbers themselves are in test_oracle_full.py."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from sdpt_ext.models.glip.caption_cache import CaptionCache
from sdpt_ext.models.glip.configuration import GlipConfig
from sdpt_ext.models.glip.text import GlipTextEncoder


@pytest.fixture
def encoder() -> GlipTextEncoder:
    torch.manual_seed(0)
    return GlipTextEncoder(GlipConfig.nano()).eval()


def test_parameter_count() -> None:
    with torch.device("meta"):
        encoder = GlipTextEncoder(GlipConfig.tiny())
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 108_891_648


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_padding_changes_no_real_token(encoder: GlipTextEncoder, implementation: str) -> None:
    encoder.model.set_attn_implementation(implementation)
    input_ids = torch.randint(5, 2000, (2, 256))
    mask = torch.zeros(2, 256, dtype=torch.int64)
    mask[0, :9], mask[1, :6] = 1, 1
    padded = encoder(input_ids, mask)
    trimmed = encoder(input_ids[:, :9], mask[:, :9])
    assert padded.shape == (2, 256, 128)
    torch.testing.assert_close(padded[0, :9], trimmed[0])
    torch.testing.assert_close(padded[1, :6], trimmed[1, :6])


def test_too_long_a_caption_is_named(encoder: GlipTextEncoder) -> None:
    ids = torch.ones(1, 257, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"257 tokens per caption .* at most 256; split"):
        encoder(ids, ids)


# ---- captions that come again --------------------------------------------------------------------------------


class Calls:
    """Counts the passes through BERT."""

    def __init__(self, encoder: GlipTextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        encode = encoder._encode

        def counting(*inputs: Tensor) -> Tensor:
            self.count += 1
            return encode(*inputs)

        monkeypatch.setattr(encoder, "_encode", counting)


@pytest.fixture
def calls(encoder: GlipTextEncoder, monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(encoder, monkeypatch)


def caption(*tokens: int, batch: int = 1, padding: int = 0) -> tuple[Tensor, Tensor]:
    ids = torch.tensor([[*tokens] + [0] * padding] * batch)
    return ids, (torch.arange(ids.shape[1]) < len(tokens)).long().expand_as(ids)


def uncached(encoder: GlipTextEncoder, *inputs: Tensor) -> Tensor:
    return encoder.model(*inputs).last_hidden_state


@torch.no_grad()
def test_same_caption_is_encoded_once(encoder: GlipTextEncoder, calls: Calls) -> None:
    for inputs in (caption(5, 6, 7), caption(8, 9), caption(5, 6, 7), caption(8, 9)):
        assert torch.equal(encoder(*inputs), uncached(encoder, *inputs))
    assert calls.count == 2


@torch.no_grad()
def test_what_a_caption_is(encoder: GlipTextEncoder, calls: Calls) -> None:
    """Tokens, mask, padding and batch size: each may change a bit of the result."""
    ids, mask = caption(5, 6, 7)
    others = [(ids + 1, mask), (ids, mask * torch.tensor([1, 1, 0])), caption(5, 6, 7, padding=1)]
    for inputs in [(ids, mask), *others, caption(5, 6, 7, batch=2)]:
        assert torch.equal(encoder(*inputs), uncached(encoder, *inputs))
    assert calls.count == 5


@torch.no_grad()
def test_callers_may_write_to_what_they_get(encoder: GlipTextEncoder) -> None:
    first = encoder(*caption(5, 6, 7))
    expected = first.clone()
    first.zero_()
    assert torch.equal(encoder(*caption(5, 6, 7)), expected)


CHANGES: dict[str, Callable[[GlipTextEncoder], object]] = {
    "in place": lambda e: e.model.encoder.layer[1].output.dense.bias.add_(1),
    "behind autograd": lambda e: e.model.embeddings.word_embeddings.weight.data.mul_(2),
    "state dict": lambda e: e.load_state_dict({name: value * 1.1 for name, value in e.state_dict().items()}),
    "precision": lambda e: e.double(),
    "attention": lambda e: e.model.set_attn_implementation("eager"),
    "flags": lambda e: e.requires_grad_(False),
    "training and back": lambda e: e.train().eval(),
    "another layer": lambda e: setattr(e.model.encoder.layer[0].output, "dense", nn.Linear(256, 128)),
}


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_no_change_is_missed(
    encoder: GlipTextEncoder, calls: Calls, change: Callable[[GlipTextEncoder], object]
) -> None:
    encoder(*caption(5, 6, 7))
    change(encoder)
    assert torch.equal(encoder(*caption(5, 6, 7)), uncached(encoder, *caption(5, 6, 7)))
    assert calls.count == 2


class Doubled(nn.Linear):
    """What adapter libraries put in the place of a layer: it can be switched without touching a weight."""

    enabled = True

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if self.enabled else 1)


@torch.no_grad()
def test_encoders_changed_in_code_are_not_remembered(encoder: GlipTextEncoder, calls: Calls) -> None:
    layer = encoder.model.encoder.layer[0].output
    layer.dense = Doubled(256, 128)
    on = encoder(*caption(5, 6, 7))
    layer.dense.enabled = False
    assert not torch.equal(encoder(*caption(5, 6, 7)), on)
    layer.dense = nn.Linear(256, 128)
    encoder(*caption(5, 6, 7))
    handle = layer.register_forward_hook(lambda module, inputs, output: output + 1)
    hooked = encoder(*caption(5, 6, 7))
    handle.remove()
    plain = encoder(*caption(5, 6, 7))
    assert not torch.equal(plain, hooked)
    forward = layer.forward
    layer.forward = lambda *inputs: forward(*inputs) + 1
    assert torch.equal(encoder(*caption(5, 6, 7)), hooked)
    assert calls.count == 6


def test_training_and_gradients(encoder: GlipTextEncoder, calls: Calls) -> None:
    """Weights that train are encoded every time; frozen ones in evaluation mode serve training steps as well."""
    for _ in range(2):
        encoder(*caption(5, 6, 7)).sin().sum().backward()  # a layer norm's plain sum has no gradient
    assert calls.count == 2 and encoder.model.embeddings.word_embeddings.weight.grad.any()
    encoder.requires_grad_(False)
    for _ in range(2):
        assert not encoder(*caption(5, 6, 7)).requires_grad
    assert calls.count == 3
    encoder.train()
    for _ in range(2):
        encoder(*caption(5, 6, 7))
    assert calls.count == 5


def test_inference_mode_first(encoder: GlipTextEncoder) -> None:
    encoder.requires_grad_(False)
    with torch.inference_mode():
        encoder(*caption(5, 6, 7))
    scale = torch.ones((), requires_grad=True)
    (scale * encoder(*caption(5, 6, 7))).sum().backward()
    assert scale.grad is not None


def test_autocast(encoder: GlipTextEncoder) -> None:
    with torch.no_grad():
        single = encoder(*caption(5, 6, 7))
        with torch.autocast("cpu", torch.bfloat16):
            low = encoder(*caption(5, 6, 7))
        assert not torch.equal(single, low) and torch.equal(encoder(*caption(5, 6, 7)), single)


def test_cache_is_bounded() -> None:
    computed: list[int] = []

    def states(number: int) -> Tensor:
        computed.append(number)
        return torch.full((256,), float(number))

    cache = CaptionCache(limit_bytes=3 * 1024)
    for number in (0, 1, 2, 0, 3, 0, 1):
        assert torch.equal(cache.get(number, lambda n=number: states(n)), torch.full((256,), float(number)))
    assert computed == [0, 1, 2, 3, 1], "1 was not asked for longest when 3 came"
    nothing = CaptionCache(limit_bytes=0)
    assert torch.equal(nothing.get(7, lambda: states(7)), nothing.get(7, lambda: states(7)))


def test_cache_of_several_threads() -> None:
    cache = CaptionCache(limit_bytes=3 * 1024)

    def ask(number: int) -> bool:
        states = torch.full((256,), float(number % 7))
        return torch.equal(cache.get(number % 7, states.clone), states)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(ask, range(2000)))
