"""Heads that know no order, features that are torchvision's own, and baselines against direct loops."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import functional as TF

from src import checkpoints, sets, settings
from src.backbones import BACKBONES, MEAN, STD
from src.sets import config
from src.sets.model import (
    BASELINES,
    ClassPosterior,
    Encoder,
    FlatMLP,
    SetAttention,
    SetModel,
    SetTransformer,
    augment,
    distance_to_mean,
    leave_one_out_cosine,
)
from tests.sets.conftest import CLASSES, TINY, same, tensors

WIDTHS = {"projected": 24, "as wide as the head": 16}
HEADS = {
    "attention": lambda features: SetAttention(features, width=16, heads=4),
    "transformer": lambda features: SetTransformer(features, width=16, layers=2, heads=4),
    "posterior": lambda features: ClassPosterior(features, 5),
    "mlp": lambda features: FlatMLP(features, 10, width=16),
}
ORDERLESS = ("attention", "transformer", "posterior")


def make(kind: str, features: int = 24) -> nn.Module:
    torch.manual_seed(0)
    return HEADS[kind](features).eval()


def random_sets(sets: int = 6, size: int = 10, features: int = 24) -> torch.Tensor:
    return torch.randn(sets, size, features, generator=torch.Generator().manual_seed(1))


def pictures(count: int, side: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


# ------------------------------------------------------------------------------------------------- heads
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("features", WIDTHS.values(), ids=WIDTHS)
def test_a_head_gives_a_score_for_every_position(kind, features):
    scores = make(kind, features)(random_sets(features=features))
    assert scores.shape == (6, 10) and scores.dtype == torch.float32


@pytest.mark.parametrize("kind", ORDERLESS)
@pytest.mark.parametrize("size", [3, 20])
def test_heads_without_order_take_sets_of_any_size(kind, size):
    assert make(kind)(random_sets(size=size)).shape == (6, size)


@pytest.mark.parametrize("kind", ORDERLESS)
def test_permuting_the_images_permutes_the_scores(kind):
    head, features = make(kind), random_sets()
    scores = head(features)
    for seed in range(5):
        order = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
        assert torch.allclose(head(features[:, order]), scores[:, order], atol=1e-5)
    assert not torch.allclose(scores, scores[:, order], atol=1e-3)  # or the test above says nothing


@pytest.mark.parametrize("kind", HEADS)
def test_sets_are_judged_one_by_one_and_as_a_whole(kind):
    """No score depends on another set; each depends on every image of its own."""
    head, features = make(kind), random_sets()
    scores = head(features)
    assert torch.allclose(head(features[2:3]), scores[2:3], atol=1e-5)
    for image in (0, 9):
        changed = features.clone()
        changed[2, image] *= -1
        changed_scores = head(changed)
        assert torch.allclose(changed_scores[[0, 1, 3, 4, 5]], scores[[0, 1, 3, 4, 5]], atol=1e-5)
        assert ((changed_scores[2] - scores[2]).abs() > 1e-6).all()


def test_the_posterior_head_is_bayes_rule():
    """Against the sum over classes of the product of probabilities, set by set."""
    head, features = make("posterior"), random_sets()
    with torch.no_grad():
        posteriors = head.classifier(features).double().softmax(2)
        for scores, images in zip(head(features), posteriors, strict=True):
            others = [torch.cat([images[:i], images[i + 1 :]]).prod(0) for i in range(10)]
            likelihood = torch.stack([((1 - images[i]) * others[i]).sum() for i in range(10)])
            assert torch.allclose(scores.double().softmax(0), likelihood / likelihood.sum(), atol=1e-5)


def test_nine_sure_images_tell_the_tenth():
    head = ClassPosterior(3, 3)
    with torch.no_grad():
        head.classifier.weight.copy_(torch.eye(3))
        head.classifier.bias.zero_()
        for strength in (0.5, 3.0, 30.0, 3000.0):  # unsure to as sure as floats can be
            features = strength * torch.eye(3)[torch.tensor([[1] * 4 + [2] + [1] * 5])]
            assert head(features).isfinite().all() and head(features).argmax(1).tolist() == [4]


def attended(attention: nn.MultiheadAttention, weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """What attention of one head gives for inputs (B,N,W) by the weights (B,N,N)."""
    width = x.shape[2]
    values = x @ attention.in_proj_weight[2 * width :].T + attention.in_proj_bias[2 * width :]
    return attention.out_proj(weights @ values)


def test_the_maps_of_the_transformer_are_those_of_its_forward_pass():
    torch.manual_seed(0)
    head = SetTransformer(24, width=16, layers=3, heads=1).eval()
    features = random_sets()
    with torch.no_grad():
        x = head.project(features)
        for layer, weights in zip(head.layers, head.attention_maps(features), strict=True):
            x = x + attended(layer.self_attn, weights, layer.norm1(x))
            x = x + layer.linear2(layer.linear1(layer.norm2(x)).relu())
        assert torch.allclose(head.score(x)[..., 0], head(features), atol=1e-5)


@pytest.mark.parametrize("features", WIDTHS.values(), ids=WIDTHS)
def test_the_map_of_attention_is_that_of_its_forward_pass(features):
    torch.manual_seed(0)
    head, given = SetAttention(features, width=16, heads=1).eval(), random_sets(features=features)
    with torch.no_grad():
        x = head.project(given)
        x = head.norm(x + attended(head.attention, head.attention_maps(given)[0], x))  # norm after the residual
        assert torch.allclose(head.score(x)[..., 0], head(given), atol=1e-5)


@pytest.mark.parametrize("kind, layers", [("attention", 1), ("transformer", 2)])
def test_the_attention_of_each_image_sums_to_one(kind, layers):
    maps = make(kind).attention_maps(random_sets(size=7))
    assert maps.shape == (layers, 6, 7, 7) and (maps >= 0).all()
    assert torch.allclose(maps.sum(3), torch.ones(layers, 6, 7), atol=1e-5)


@pytest.mark.parametrize("kind", HEADS)
def test_gradient_reaches_every_parameter_of_a_head(kind):
    head = make(kind).train()
    scores = head(random_sets())
    (scores * torch.randn_like(scores)).sum().backward()
    silent = [name for name, p in head.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


EXTREMES = {
    "zeros": torch.zeros(2, 10, 24),
    "equal": torch.ones(2, 10, 24),
    "large": 1e4 * random_sets(2),
    "small": 1e-8 * random_sets(2),
}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("features", EXTREMES.values(), ids=EXTREMES)
def test_no_features_give_nan(kind, features):
    head = make(kind).train()
    loss = F.cross_entropy(head(features), torch.tensor([0, 9]))
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in head.parameters())


# ----------------------------------------------------------------------------------------------- encoder
@pytest.mark.parametrize("name", config.BACKBONES)
def test_features_are_as_wide_as_said(name):
    """On the meta device, which computes shapes alone: some backbones are large."""
    with torch.device("meta"):
        encoder = Encoder(name, 64)
        features = encoder(torch.zeros(2, 3, 48, 48, dtype=torch.uint8))
    assert features.shape == (2, encoder.features) and features.dtype == torch.float32


def test_every_backbone_is_one_that_the_project_knows():
    assert set(config.BACKBONES) == {*BACKBONES, "convnet"}


@pytest.mark.parametrize("side", [32, 20, 48])
def test_images_are_resized_and_normalised(side):
    encoder, pixels, seen = Encoder("convnet", 32).eval(), pictures(3, side), []
    encoder.network.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    encoder(pixels)
    resized = TF.normalize(TF.resize(pixels / 255, [32, 32], antialias=False), MEAN, STD)
    assert len(seen) == 2 and seen[0].shape == (3, 3, 32, 32)
    assert torch.allclose(seen[0], resized, atol=1e-4) and torch.allclose(seen[1], TF.hflip(resized), atol=1e-4)


def test_features_are_the_same_in_the_mirror():
    encoder, pixels = Encoder("convnet", 16).eval(), pictures(3, 16)
    with torch.no_grad():
        assert torch.allclose(encoder(pixels), encoder(pixels.flip(3)), atol=1e-5)
        assert not torch.allclose(encoder(pixels), encoder(pixels.flip(2)), atol=1e-3)


def test_depthwise_convolutions_are_computed_in_full_precision():
    """With the type that the layers around them expect; in mixed precision a CPU is slow at them."""
    torch.manual_seed(0)
    encoder, seen = Encoder("mobilenet_v2", 32).eval(), []
    for layer in (m for m in encoder.modules() if isinstance(m, nn.Conv2d) and m.groups > 1):
        layer.register_forward_hook(lambda module, given, output: seen.append((module, given[0], output)))
    pixels = pictures(2, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mixed = encoder(pixels)
    assert len(seen) == 2 * 17 and mixed.dtype == torch.float32
    for layer, given, output in seen:
        full = F.conv2d(given.float(), layer.weight, None, layer.stride, layer.padding, groups=layer.groups)
        assert given.dtype == output.dtype and torch.equal(full.to(given.dtype), output)
    with torch.no_grad():
        assert torch.allclose(mixed, encoder(pixels), atol=0.1 * float(mixed.abs().max()))


def test_features_do_not_depend_on_the_other_images():
    encoder, pixels = Encoder("convnet", 16), pictures(5, 16)
    with torch.no_grad():
        encoder.train()(pixels, augmented=True)  # moves the running statistics
        encoder.eval()
        features = encoder(pixels)
        assert torch.equal(encoder(pixels), features)  # nothing random
        assert torch.allclose(encoder(pixels[3:4]), features[3:4], atol=1e-5)
        assert torch.allclose(encoder(pixels.contiguous(memory_format=torch.channels_last)), features, atol=1e-5)


def torchvision_network(name: str, seed: int) -> nn.Module:
    """A classifier of torchvision with random weights, its batch norms' statistics random too."""
    torch.manual_seed(seed)
    network = getattr(torchvision.models, name)().eval()
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 1.5)
    return network


def torchvision_features(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What the class layers of a torchvision classifier are given, averaged over the image."""
    seen = []
    head = network.fc if hasattr(network, "fc") else network.classifier
    handle = head.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        network(images)
    handle.remove()
    return seen[0].mean((2, 3)) if seen[0].ndim == 4 else seen[0]


@pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet1_0", "resnet18"])
def test_pretrained_features_are_those_of_torchvision(name, tmp_path):
    network = torchvision_network(name, seed=1)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    encoder, pixels = Encoder(name, 64).eval(), pictures(2, 40)
    with torch.no_grad():
        before = encoder(pixels)
        encoder.load_pretrained(tmp_path / "weights.pth")
        features = encoder(pixels)
    images = TF.normalize(TF.resize(pixels / 255, [64, 64], antialias=False), MEAN, STD)
    expected = (torchvision_features(network, images) + torchvision_features(network, TF.hflip(images))) / 2
    assert torch.allclose(features, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert not torch.allclose(before, expected, rtol=1e-2)


def test_weights_of_another_network_are_refused(tmp_path):
    file = tmp_path / "squeeze.pth"
    torch.save(torchvision.models.squeezenet1_0().state_dict(), file)
    with pytest.raises(checkpoints.CheckpointError, match="squeeze.pth, as mobilenet_v2, does not fit"):
        Encoder("mobilenet_v2", 64).load_pretrained(file)
    with pytest.raises(settings.InputError, match="convnet has no ImageNet weights: set pretrained=none"):
        Encoder("convnet", 32).load_pretrained(file)


# ------------------------------------------------------------------------------------------ augmentation
def ramp(count: int, side: int, axis: int) -> torch.Tensor:
    """Images (N,3,S,S) whose pixel is its place along an axis (2: down, 3: right), in pixels from 0 to S."""
    line = torch.arange(side) + 0.5
    shape = [1, 1, 1, 1]
    shape[axis] = side
    return line.reshape(shape).expand(count, 3, side, side)


@pytest.mark.parametrize("axis", [2, 3])
def test_cut_outs_are_of_the_scale_and_place_said(axis):
    torch.manual_seed(0)
    side, count = 32, 2000
    cut = augment(ramp(count, side, axis), (side, side))[:, 0].transpose(1, axis - 1)  # (N, along the axis, across)
    middle, step = cut[:, 15:17].mean((1, 2)) - side / 2, cut[:, 16, 16] - cut[:, 15, 16]
    assert middle.abs().max() <= 0.125 * side + 1e-3 and 0.12 * side < middle.max() and middle.min() < -0.12 * side
    assert 0.75 - 1e-3 <= step.abs().min() < 0.77 and 0.98 < step.abs().max() <= 1 + 1e-3
    mirrored = float((step < 0).float().mean())
    assert mirrored == (0 if axis == 2 else pytest.approx(0.5, abs=0.05))


def test_augmented_images_stay_in_range_and_follow_the_seed():
    images = pictures(6, 20).float()
    torch.manual_seed(3)
    cut = augment(images, (32, 24))
    torch.manual_seed(3)
    again = augment(images, (32, 24))
    assert cut.shape == (6, 3, 32, 24) and torch.equal(cut, again)
    assert cut.min() >= 0 and cut.max() <= 255
    assert not torch.equal(augment(images, (32, 24)), cut)
    same = augment(images[:1].expand(6, -1, -1, -1), (20, 20))
    assert all(not torch.allclose(same[0], other, atol=1) for other in same[1:])  # drawn anew for each


def test_without_scale_and_shift_images_are_mirrored_or_not():
    torch.manual_seed(0)
    images = pictures(20, 16).float()
    cut = augment(images, (16, 16), scale=0, shift=0)
    kept = [torch.allclose(one, image, atol=0.1) for one, image in zip(cut, images, strict=True)]
    flipped = [torch.allclose(one, image.flip(2), atol=0.1) for one, image in zip(cut, images, strict=True)]
    assert all(a != b for a, b in zip(kept, flipped, strict=True)) and 0 < sum(kept) < 20


# ------------------------------------------------------------------------------------------- whole model
def test_training_encodes_each_image_once_and_augmented():
    torch.manual_seed(0)
    model = SetModel(Encoder("convnet", 16), SetAttention(256, width=16), classes=3).eval()
    pixels, indices, seen = pictures(12, 16), torch.randint(12, (30, 10)), []
    model.encoder.network.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    torch.manual_seed(5)
    logits, class_logits = model(pixels, indices)
    assert [tuple(images.shape) for images in seen] == [(12, 3, 16, 16)]
    torch.manual_seed(5)
    features = model.encoder(pixels, augmented=True)
    assert torch.equal(logits, model.head(features[indices])) and logits.shape == (30, 10)
    assert torch.equal(class_logits, model.classifier(features)) and class_logits.shape == (12, 3)
    assert not torch.allclose(features, model.encoder(pixels), atol=1e-3)


def test_the_class_layer_may_be_left_out():
    model = SetModel(Encoder("convnet", 16), SetAttention(256, width=16)).eval()
    assert model.class_layer() is None and model(pictures(4, 16), torch.zeros(2, 3, dtype=torch.int64))[1] is None
    assert not [name for name in model.state_dict() if name.startswith("classifier")]


def test_the_posterior_head_brings_the_class_layer():
    head = ClassPosterior(256, 3)
    model = SetModel(Encoder("convnet", 16), head, classes=3).eval()
    assert model.classifier is None and model.class_layer() is head.classifier
    torch.manual_seed(5)
    class_logits = model(pictures(4, 16), torch.zeros(2, 3, dtype=torch.int64))[1]
    torch.manual_seed(5)
    assert torch.equal(class_logits, head.classifier(model.encoder(pictures(4, 16), augmented=True)))


def test_gradient_reaches_encoder_head_and_class_layer():
    torch.manual_seed(0)
    model = SetModel(Encoder("convnet", 16), SetTransformer(256, width=16, layers=2), classes=3).train()
    logits, class_logits = model(pictures(12, 16), torch.randint(12, (8, 10)))
    ((logits * torch.randn_like(logits)).sum() + (class_logits * torch.randn_like(class_logits)).sum()).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []
    head_alone = SetModel(model.encoder, model.head)
    head_alone.zero_grad()
    head_alone(pictures(12, 16), torch.randint(12, (8, 10)))[0].square().sum().backward()
    assert model.encoder.network[0][0].weight.grad.abs().sum() > 0  # the sets alone teach the encoder


@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("head", config.HEADS)
def test_models_are_built_to_the_config(head, dropout):
    changed = replace(TINY, head=head, width=32, layers=3, heads=4, dropout=dropout, set_size=7)
    extras = {"classes": CLASSES[:5]}
    model = sets.build_model(changed, extras)
    dropouts = {m.p for m in model.head.modules() if isinstance(m, nn.Dropout)}
    assert dropouts == ({dropout} if head != "posterior" else set())
    assert model.class_layer().out_features == 5 and model.head(torch.zeros(2, 7, 256)).shape == (2, 7)
    if head == "transformer":
        assert len(model.head.layers) == 3 and model.head.layers[0].self_attn.num_heads == 4
    assert same(tensors(model), tensors(sets.build_model(changed, extras)))
    assert not same(tensors(model), tensors(sets.build_model(replace(changed, seed=1), extras)))


# ---------------------------------------------------------------------------------- non-learned baselines
def test_distance_to_the_mean_against_a_loop():
    features = random_sets(3, 5, 7).numpy()
    expected = [[np.linalg.norm(image - members.mean(0)) for image in members] for members in features]
    assert np.allclose(distance_to_mean(torch.from_numpy(features)), expected, atol=1e-5)


def test_leave_one_out_cosine_against_a_loop():
    features = random_sets(3, 5, 7).numpy()
    unit = features / np.linalg.norm(features, axis=2, keepdims=True)
    expected = [
        [1 - np.mean([a @ b for j, b in enumerate(members) if j != i]) for i, a in enumerate(members)]
        for members in unit
    ]
    assert np.allclose(leave_one_out_cosine(torch.from_numpy(features)), expected, atol=1e-5)


@pytest.mark.parametrize("rule", [distance_to_mean, leave_one_out_cosine])
def test_baselines_rank_what_lies_apart_first_and_survive_zeros(rule):
    features = torch.ones(2, 10, 8) + 0.01 * random_sets(2, 10, 8)
    features[0, 4] *= torch.tensor([1.0, -1] * 4)
    features[1, 9] *= torch.tensor([1.0, -1] * 4)
    assert rule(features).argmax(1).tolist() == [4, 9]
    assert rule(torch.zeros(1, 10, 8)).isfinite().all()


def test_the_random_baseline_is_at_chance_and_always_the_same():
    scores = BASELINES["random"](torch.zeros(20_000, 10, 1))
    assert torch.equal(scores, BASELINES["random"](torch.ones(20_000, 10, 1)))
    assert torch.bincount(scores.argmax(1)).div(20_000).tolist() == pytest.approx([0.1] * 10, abs=0.02)
