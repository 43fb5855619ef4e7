"""The building blocks of the networks against closed forms, torch's own layers and plain second implementations."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantool.config.networks import AuxiliaryClassifier, Projection, Unconditional
from gantool.models import layers
from gantool.models.layers import (
    BatchNorm,
    ConditionalBatchNorm,
    Dropout,
    Head,
    SelfAttention,
    add_spectral_norm,
    has_spectral_norm,
    initialise,
    iterate_spectral_norms,
    set_dropout,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two threads are the two ranks of `layers.dist`."""
    barrier, parts = threading.Barrier(2, timeout=20), {}

    def all_reduce(tensor: Tensor) -> None:
        parts[threading.get_ident()] = tensor.clone()
        barrier.wait()
        tensor.copy_(sum(list(parts.values())))  # two summands: the order does not matter
        barrier.wait()

    both = SimpleNamespace(
        is_available=lambda: True, is_initialized=lambda: True, get_world_size=lambda: 2, all_reduce=all_reduce
    )
    with monkeypatch.context() as patch:
        patch.setattr(layers, "dist", both)
        yield


@pytest.mark.parametrize("shape", [(8, 5), (8, 5, 3, 4)])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_of_two_ranks_is_torchs_on_the_whole_batch(
    shape: tuple[int, ...], affine: bool, two_ranks: None
) -> None:
    x, weights = torch.randn(shape) * 3 + 1, torch.randn(shape)
    torchs = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(5, affine=affine)
    ranks = [BatchNorm(5, affine=affine) for _ in range(2)]
    if affine:
        torch.nn.init.normal_(torchs.weight)
        torch.nn.init.normal_(torchs.bias)
        for norm in ranks:
            norm.load_state_dict(torchs.state_dict())
    whole = x.clone().requires_grad_()
    expected = torchs(whole)
    (expected * weights).sum().backward()
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def work(rank: int) -> None:
        mine = x[rank::2].clone().requires_grad_()
        out = ranks[rank](mine)
        (out * weights[rank::2]).sum().backward()
        found[rank] = (out.detach(), mine.grad)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank in range(2):
        torch.testing.assert_close(found[rank][0], expected[rank::2].detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found[rank][1], whole.grad[rank::2], atol=1e-5, rtol=1e-4)
        for name, value in torchs.state_dict().items():
            torch.testing.assert_close(ranks[rank].state_dict()[name], value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_conditional_batch_norm_with_scale_1_and_shift_0_is_the_plain_one(training: bool) -> None:
    conditional, plain = ConditionalBatchNorm(5, 3).train(training), BatchNorm(5).train(training)
    with torch.no_grad():
        conditional.scale_and_shift.copy_(torch.tensor([1.0, 0.0]).repeat_interleave(5))
    x = torch.randn(6, 5, 4, 4) * 2 + 1
    assert torch.equal(conditional(x, torch.tensor([0, 1, 2, 0, 1, 2])), plain(x))


def test_conditional_batch_norm_scales_and_shifts_by_class_after_the_common_statistics() -> None:
    norm = ConditionalBatchNorm(4, 3)
    x, labels = torch.randn(6, 4, 5, 5), torch.tensor([2, 0, 1, 1, 2, 2])
    with torch.no_grad():
        norm.scale_and_shift.normal_()
    out = norm(x, labels)
    normed = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    for i, label in enumerate(labels):
        row = norm.scale_and_shift[label]
        torch.testing.assert_close(out[i], normed[i] * row[:4, None, None] + row[4:, None, None])


def test_conditional_batch_norm_starts_at_scales_around_1_and_no_shift() -> None:
    scale, shift = ConditionalBatchNorm(500, 20).scale_and_shift.detach().chunk(2, dim=1)
    assert abs(scale.mean() - 1) < 1e-3 and abs(scale.std() - 0.02) < 1e-3
    assert not shift.any()


def test_spectral_norm_of_an_embedding_is_that_of_its_table() -> None:
    table = nn.Sequential(nn.Embedding(6, 9))
    plain = table[0].weight.detach().clone()
    assert not has_spectral_norm(table)
    add_spectral_norm(table)
    assert has_spectral_norm(table)
    for _ in range(200):
        iterate_spectral_norms(table)
    expected = plain / torch.linalg.matrix_norm(plain, 2)
    torch.testing.assert_close(table(torch.tensor([3, 0])), expected[[3, 0]], atol=1e-4, rtol=1e-4)


def test_spectral_norm_leaves_norms_alone() -> None:
    network = nn.Sequential(ConditionalBatchNorm(4, 3), BatchNorm(4))
    add_spectral_norm(network)
    assert not has_spectral_norm(network)


def test_self_attention_starts_as_the_identity() -> None:
    x = torch.randn(2, 16, 6, 6)
    assert torch.equal(SelfAttention(16)(x), x)


@pytest.mark.parametrize("size", [4, 7])
def test_self_attention_equals_a_plain_one(size: int) -> None:
    layer = SelfAttention(16)
    x = torch.randn(3, 16, size, size)
    nn.init.constant_(layer.gamma, 0.7)
    query = torch.einsum("kc,bchw->bkhw", layer.theta.weight[:, :, 0, 0], x)
    key = torch.einsum("kc,bchw->bkhw", layer.phi.weight[:, :, 0, 0], x)
    value = torch.einsum("kc,bchw->bkhw", layer.g.weight[:, :, 0, 0], x)
    half = size // 2
    key, value = (m[:, :, : 2 * half, : 2 * half].unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5)) for m in (key, value))
    scores = torch.einsum("bkhw,bkij->bhwij", query, key).exp()
    shares = scores / scores.sum((3, 4), keepdim=True)
    mixed = torch.einsum("bhwij,bkij->bkhw", shares, value)
    expected = x + 0.7 * torch.einsum("ck,bkhw->bchw", layer.o.weight[:, :, 0, 0], mixed)
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_self_attention_has_a_second_derivative() -> None:
    layer = SelfAttention(8).double()
    nn.init.constant_(layer.gamma, 0.5)
    x = torch.randn(1, 8, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, x)


def test_heads_add_what_their_condition_says() -> None:
    features, labels = torch.randn(4, 6), torch.tensor([0, 2, 1, 2])
    plain = Head(6, Unconditional(), 3)
    assert torch.equal(plain(features), features @ plain.weight[0] + plain.bias)
    projection = Head(6, Projection(), 3)
    expected = features @ projection.weight[0] + projection.bias
    expected += torch.einsum("bf,bf->b", projection.embedding.weight[labels], features)
    torch.testing.assert_close(projection(features, labels), expected)
    with pytest.raises(AssertionError, match="needs labels"):
        projection(features)
    acgan = Head(6, AuxiliaryClassifier(), 3)
    logits, classes = acgan(features)
    torch.testing.assert_close(logits, features @ acgan.weight[0] + acgan.bias)
    torch.testing.assert_close(classes, features @ acgan.classes.weight.T + acgan.classes.bias)


def shares_of_zero(x: Tensor) -> float:
    return float((x == 0).double().mean())


def dropped(probability: float, key: int, rows: Tensor, shape: tuple[int, ...] = (64,)) -> Tensor:
    """What the Dropout layer makes of ones."""
    layer = Dropout(probability)
    set_dropout(layer, key, rows)
    return layer(torch.ones(len(rows), *shape))


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.5, 0.75])
def test_dropout_drops_its_share_everywhere_and_keeps_the_mean(probability: float) -> None:
    out = dropped(probability, 123, torch.arange(400), (6, 10, 10))
    assert set(out.unique().tolist()) == {0.0, float(torch.tensor(1.0) / (1 - probability))}
    sigma = (probability * (1 - probability)) ** 0.5
    zero = (out == 0).double()
    assert abs(zero.mean() - probability) < 5 * sigma / out.numel() ** 0.5
    assert abs(out.mean() - 1) < 5 * sigma / (1 - probability) / out.numel() ** 0.5
    # Rows and columns of the table [sample, element] scatter like independent coins: chi-square over its degrees of
    # freedom is 1, with the deviation sqrt(2 / degrees).
    for axis, number, length in ((0, 600, 400), (1, 400, 600)):
        counts = zero.flatten(1).mean(axis)
        chi_square = ((counts - probability).square() * length / sigma**2).sum() / number
        assert abs(chi_square - 1) < 5 * (2 / number) ** 0.5, axis


def test_dropout_has_no_correlation_between_neighbours_keys_or_layers() -> None:
    network = nn.ModuleList([Dropout(0.5), Dropout(0.5)])
    x = torch.ones(200, 500)
    masks = []
    for key in (0, 1, 2**62 + 5):
        set_dropout(network, key, torch.arange(200))
        masks += [(layer(x) - 1).double() for layer in network]
    bound = 5 / x.numel() ** 0.5
    for i, a in enumerate(masks):
        for b in masks[i + 1 :]:
            assert abs((a * b).mean()) < bound
        for steps in (1, 2, 3, 64, 250):  # 2 and 64: the halves of a hash, and powers of two
            assert abs((a[:, steps:] * a[:, :-steps]).mean()) < 2 * bound
            if steps < 200:
                assert abs((a[steps:] * a[:-steps]).mean()) < 2 * bound


def test_dropout_of_a_sample_depends_on_its_row_alone() -> None:
    rows = torch.arange(32)
    whole = dropped(0.4, 7, rows, (3, 5, 5))
    order = torch.randperm(32)
    assert torch.equal(dropped(0.4, 7, rows[order], (3, 5, 5)), whole[order])
    assert torch.equal(dropped(0.4, 7, rows[10:13], (3, 5, 5)), whole[10:13])
    assert torch.equal(dropped(0.4, 7, rows), dropped(0.4, 7, rows))
    assert not torch.equal(dropped(0.4, 8, rows), dropped(0.4, 7, rows))
    assert not torch.equal(whole[0], whole[1])
    assert len(dropped(0.5, 7, 2**40 + torch.arange(50)).unique(dim=0)) == 50


def test_dropout_is_the_same_in_any_memory_format_dtype_and_number_of_threads() -> None:
    layer = Dropout(0.3)
    x = torch.randn(4, 6, 16, 16)
    set_dropout(layer, 3, torch.arange(4))
    expected = layer(x)
    assert torch.equal(layer(x.contiguous(memory_format=torch.channels_last)), expected)
    torch.testing.assert_close(layer(x.double()).float(), expected)
    before = torch.get_num_threads()
    torch.set_num_threads(1 if before > 1 else 2)
    again = layer(x)
    torch.set_num_threads(before)
    assert torch.equal(again, expected)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (1, 1, 1), (3, 5, 5)])
def test_dropout_takes_any_shape(shape: tuple[int, ...]) -> None:
    out = dropped(0.5, 1, torch.arange(300), shape)
    assert out.shape == (300, *shape)
    assert 0.3 < shares_of_zero(out) < 0.7


def test_dropout_is_the_splitmix64_generator_seeded_for_each_sample() -> None:
    layer = Dropout(0.25)
    set_dropout(layer, 11, torch.arange(3))
    out = layer(torch.ones(3, 5))
    mask = 2**64 - 1
    for row, start in enumerate(layer.streams.tolist()):
        halves = []
        for i in range(1, 4):
            z = (start + i * 0x9E3779B97F4A7C15) & mask
            z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & mask
            z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
            z ^= z >> 31
            halves += [z & 0xFFFFFFFF, z >> 32]
        signed = [half - 2**32 if half >= 2**31 else half for half in halves]
        assert [value >= 2**30 - 2**31 for value in signed[:5]] == out[row].bool().tolist()


def test_dropout_passes_the_gradient_of_what_it_keeps() -> None:
    layer = Dropout(0.4)
    x = torch.randn(5, 20, requires_grad=True)
    set_dropout(layer, 5, torch.arange(5))
    out = layer(x)
    out.sum().backward()
    assert torch.equal(x.grad, torch.where(out == 0, 0.0, 1 / 0.6))


def test_dropout_in_eval_mode_is_the_identity_and_in_training_mode_needs_a_key() -> None:
    layer, x = Dropout(0.4), torch.randn(5, 20)
    with pytest.raises(AssertionError, match="set_dropout"):
        layer(x)
    assert layer.eval()(x) is x
    layer.train()
    set_dropout(layer, 0, torch.arange(4))
    with pytest.raises(AssertionError, match="4 rows, the batch has 5"):
        layer(x)
    set_dropout(nn.Sequential(nn.Linear(2, 2)), 0, torch.arange(4))  # nothing to tell


def test_dropout_leaves_torchs_generator_alone() -> None:
    before = torch.get_rng_state()
    dropped(0.5, 1, torch.arange(4))
    assert torch.equal(torch.get_rng_state(), before)


def build(kind: str) -> nn.Module:
    return {
        "conv": lambda: nn.Conv2d(40, 80, 3),
        "transposed": lambda: nn.ConvTranspose2d(40, 80, 4, stride=2, padding=1),
        "linear": lambda: nn.Linear(400, 300),
        "embedding": lambda: nn.Embedding(300, 400),
    }[kind]()


@pytest.mark.parametrize("kind", ["conv", "transposed", "linear", "embedding"])
@pytest.mark.parametrize("init", ["normal", "he", "xavier", "orthogonal"])
def test_initial_weights_have_the_published_scale(kind: str, init: str) -> None:
    layer = build(kind)
    initialise(layer, init, gain=1.5)
    weight = layer.weight.detach()
    if init == "orthogonal":
        matrix = weight.flatten(1)
        product = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
        torch.testing.assert_close(product, torch.eye(len(product)), atol=1e-5, rtol=0)
        return
    inputs = {"conv": 40 * 9, "transposed": 40 * 4, "linear": 400, "embedding": 400}[kind]
    fans = {"conv": 120 * 9, "transposed": 120 * 16, "linear": 700, "embedding": 700}[kind]
    expected = {"normal": 0.02, "he": 1.5 / inputs**0.5, "xavier": 1.5 * (2 / fans) ** 0.5}[init]
    assert weight.std() == pytest.approx(expected, rel=0.02)
    assert abs(weight.mean()) < expected / 50
    if init == "xavier":
        assert weight.abs().max() <= expected * 3**0.5
    assert getattr(layer, "bias", None) is None or not layer.bias.any()


@pytest.mark.parametrize("inputs", [nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1), nn.Conv2d(64, 32, 3)])
def test_he_keeps_the_variance_through_a_leaky_relu(inputs: nn.Module) -> None:
    initialise(inputs, "he", layers.LEAKY_GAIN)
    out = inputs(F.leaky_relu(torch.randn(20, 64, 8, 8), 0.2))[:, :, 2:-2, 2:-2]
    assert float(out.detach().square().mean()) == pytest.approx(1.0, rel=0.15)
