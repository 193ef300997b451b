"""Networks of the right size, flips that are the flips of the series, calibrated probabilities, activation maps."""

from dataclasses import replace

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import nn
from torch.nn import functional as F

from src import backbones, series, settings
from src.series import model as models
from src.series.config import FLIPS
from src.series.envelope import of_series
from src.series.model import (
    Classifier,
    EnvelopeNet,
    PictureNet,
    PictureTrunk,
    activation_maps,
    fit_temperature,
    flip,
    views,
)
from src.synthetic.time_series import generate
from tests.series.helpers import THREE, TINY, KnownOutput, envelopes, pictures, same, state


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


# ------------------------------------------------------------------------------------------------ networks
def test_the_courses_network_has_its_parameters():
    """Of ResNet-50 and the head, whatever the size of the pictures."""
    net = series.build_net(replace(series.Config.full(), size=(64, 64)))
    assert parameters(net) == models.RESNET50_PARAMETERS == 24_692_297
    kinds = [nn.Dropout, nn.Linear, nn.ReLU, nn.BatchNorm1d] * 2 + [nn.Dropout, nn.Linear]
    assert [type(layer) for layer in net.head] == kinds
    assert [layer.p for layer in net.head if isinstance(layer, nn.Dropout)] == [0.3, 0.3, 0.2]
    assert [layer.out_features for layer in net.head if isinstance(layer, nn.Linear)] == [512, 256, 9]


@pytest.mark.parametrize("width", [2, 6])
def test_envelope_networks_of_any_width(width):
    net = EnvelopeNet(width, 5, (0.1, 0.2, 0.3)).eval()
    logits, log_attention = net(envelopes(3))
    assert logits.shape == (3, 5) and log_attention.shape == (3, 640 // 16)
    assert torch.allclose(log_attention.exp().sum(1), torch.ones(3), atol=1e-5)
    assert net.head[1].in_features == 3 * 8 * width


def test_an_envelope_network_sees_both_edges_and_the_thickness():
    net, seen = EnvelopeNet(2, 3, (0, 0, 0)).eval(), []
    net.stem.register_forward_pre_hook(lambda stem, inputs: seen.append(inputs[0]))
    edges = envelopes(2)
    edges[:, 1] = edges[:, 0].where(torch.arange(640) > 99, edges[:, 1])  # a line without thickness, from there on
    net(edges)
    top, bottom = edges.float().unbind(1)
    thickness = (20 * (top - bottom).clamp(min=1e-3)).log() / 2
    assert torch.allclose(seen[0][:, :, 0], torch.stack([top - 0.5, bottom - 0.5, thickness], 1), atol=1e-6)


@pytest.mark.parametrize("name", backbones.BACKBONES)
def test_trunks_give_a_map_of_places(name):
    trunk = PictureTrunk(name).eval()
    with torch.no_grad():
        features = trunk(pictures(1, (64, 96)))
    assert features.shape[:2] == (1, trunk.features)
    assert (features.shape[2:] == (2, 3)) != (name == "squeezenet1_0")


def test_unknown_backbones_are_refused():
    with pytest.raises(settings.InputError, match="backbone='vgg99': expected one of envelope_resnet, resnet18"):
        series.build_model(replace(TINY, backbone="vgg99"))


def test_models_are_built_to_the_config():
    config = replace(TINY, classes=THREE, flips=("vertical",))
    model = series.build_model(config, {"members": 2})
    assert len(model.members) == 2 and model.flips == ("vertical",)
    assert series.build_model(replace(config, tta=False)).flips == ()
    assert same(state(model), state(series.build_model(config, {"members": 2})))
    assert not same(state(model), state(series.build_model(replace(config, seed=1), {"members": 2})))
    assert model.members[0](envelopes(2))[0].shape == (2, 3)


# --------------------------------------------------------------------------------------------------- flips
@pytest.mark.parametrize("label", ["deterministic_trend", "volatility", "point_anomaly"])
def test_flipping_an_envelope_is_flipping_its_series(label):
    """But for the rounding of edges to pixels, and of samples to columns."""
    values = generate(label, 1).values
    edges, upside_down, backwards = (torch.from_numpy(of_series(v))[None] for v in (values, -values, values[::-1]))
    for name, expected in (("vertical", upside_down), ("horizontal", backwards)):
        error, unflipped = ((item.float() - expected.float()).abs() for item in (flip(edges, name), edges))
        assert error.mean() < 0.1 * unflipped.mean() and error.median() < 1.5 / 476  # a pixel of the line's height


@pytest.mark.parametrize("items", [envelopes(3), pictures(3)], ids=["envelopes", "pictures"])
@pytest.mark.parametrize("name", FLIPS)
def test_flipping_twice_changes_nothing(items, name):
    once = flip(items, name)
    assert once.dtype == items.dtype and not torch.equal(once, items)
    assert torch.allclose(flip(once, name).float(), items.float(), atol=2**-11)


def test_pictures_are_flipped_by_their_pixels():
    picture = pictures(1)
    assert torch.equal(flip(picture, "vertical")[0, :, 0], picture[0, :, -1])
    assert torch.equal(flip(picture, "horizontal")[0, :, :, 0], picture[0, :, :, -1])


@pytest.mark.parametrize("items", [envelopes(2), pictures(2)], ids=["envelopes", "pictures"])
def test_views_are_all_ways_to_flip(items):
    expected = [items, flip(items, "horizontal"), flip(items, "vertical"), flip(flip(items, "horizontal"), "vertical")]
    assert same(views(items, FLIPS), expected)
    assert len(views(items, ("vertical",))) == 2 and len(views(items, ())) == 1


# ------------------------------------------------------------------------------------------- probabilities
@pytest.fixture
def classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier(lambda: EnvelopeNet(2, 4, (0.5, 0.5, 0.5)), 3, FLIPS).eval()


def test_probabilities_are_the_mean_over_networks_and_flips(classifier):
    items = envelopes(5)
    with torch.no_grad():
        by_hand = sum(net(view)[0].softmax(1) for net in classifier.members for view in views(items, FLIPS)) / 12
    probabilities = classifier.probabilities(items)
    assert torch.allclose(probabilities, by_hand, atol=1e-5)
    assert torch.allclose(probabilities.sum(1), torch.ones(5), atol=1e-5)
    assert torch.allclose(classifier.log_probabilities(items, batch=2).exp(), by_hand, atol=1e-5)
    with torch.no_grad():
        second = sum(classifier.members[1](view)[0].softmax(1) for view in views(items, FLIPS)) / 4
    assert torch.allclose(classifier.log_probabilities(items, [1]).exp(), second, atol=1e-5)
    assert not torch.allclose(second, by_hand, atol=1e-4)


def test_a_flipped_plot_has_the_same_probabilities(classifier):
    items = envelopes(3)
    for name in FLIPS:
        assert torch.allclose(classifier.probabilities(flip(items, name)), classifier.probabilities(items), atol=1e-3)


def test_probabilities_are_not_those_of_training(classifier):
    """Dropout and batch statistics are off, and statistics stay as they are, whatever mode the networks are in."""
    expected, before = classifier.probabilities(envelopes(4)), state(classifier)
    classifier.train()
    assert torch.equal(classifier.probabilities(envelopes(4)), expected)
    assert same(state(classifier), before)


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_the_temperature_changes_confidence_and_no_ranking(temperature):
    classifier, logits = Classifier(KnownOutput), 2 * torch.randn(50, 6)
    before = classifier.probabilities(logits)
    classifier.temperature.fill_(temperature)
    after = classifier.probabilities(logits)
    assert torch.equal(after.argsort(1), before.argsort(1)) and torch.allclose(after.sum(1), torch.ones(50), atol=1e-5)
    assert bool(((after.amax(1) > before.amax(1)) == (temperature < 1)).all())
    assert torch.allclose(after, (logits / temperature).softmax(1), atol=1e-4)


def test_a_certain_network_gives_finite_log_probabilities():
    assert torch.isfinite(Classifier(KnownOutput).log_probabilities(torch.tensor([[0.0, 1000.0]]))).all()


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_is_recovered(temperature):
    torch.manual_seed(0)
    logs = (2 * torch.randn(4_000, 5)).log_softmax(1)
    labels = (logs / temperature).softmax(1).multinomial(1)[:, 0]
    fitted = fit_temperature(logs, labels)
    assert fitted == pytest.approx(temperature, rel=0.08)
    best = minimize_scalar(lambda t: float(F.cross_entropy(logs.double() / t, labels)), (0.2, 5), method="golden").x
    assert fitted == pytest.approx(best, rel=0.011)


# ----------------------------------------------------------------------------------------- activation maps
class Dark(nn.Module):
    """A trunk with dark places (8x8 pixels) in its first channel, and light ones in the second."""

    features = 2

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        light = F.avg_pool2d(images.float().mean(1, keepdim=True) / 255, 8)
        return torch.cat([1 - light, light], 1)


def test_a_picture_networks_map_is_where_its_class_is_seen():
    """With a linear head: each place counts by its features times the weights of the predicted class."""
    net = PictureNet(Dark(), 3, (0, 0, 0))
    net.head = nn.Linear(2, 3)
    net.head.weight.data = torch.tensor([[5.0, -1.0], [-2.0, 0.5], [0.0, 0.0]])
    net.head.bias.data = torch.tensor([9.0, 0, 0])
    white = torch.full((2, 3, 32, 64), 255, dtype=torch.uint8)
    white[0, :, 8:16, 40:48] = 0  # the sixth column of eight
    white[1, :, 24:32, 0:8] = 0
    maps = activation_maps(net, white)
    assert maps.shape == (2, 8) and maps.argmax(1).tolist() == [5, 0]
    features = Dark()(white)
    by_hand = (features * torch.tensor([5.0, -1.0])[:, None, None]).sum(1).clamp(min=0).amax(1) / 32
    assert torch.allclose(maps, by_hand, atol=1e-6)
    assert float(maps.sum()) == pytest.approx(2 * 5 / 32)  # nowhere else, as light places speak against the class


class Pooled(nn.Module):
    """Envelopes' stems (B,C,1,W) -> (B,features,1,W/16): the mean of the upper edge in the first channel, else 0."""

    def __init__(self, features: int):
        super().__init__()
        self.features = features

    def forward(self, stems: torch.Tensor) -> torch.Tensor:
        return F.pad(F.avg_pool2d(stems[:, :1], (1, 16)), (0, 0, 0, 0, 0, self.features - 1))


class Nothing(nn.Module):
    def forward(self, fine: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(fine), 16, 1, fine.shape[3] // 2)


@pytest.mark.parametrize("place", [3, 22, 39])
def test_an_envelope_networks_map_is_its_attention(place):
    net = EnvelopeNet(2, 3, (0, 0, 0))
    net.stem, net.body, net.top = nn.Identity(), Pooled(12), Nothing()
    net.look_near.weight.data.zero_()
    net.look_near.weight.data[0, 0] = 50
    edges = torch.full((1, 2, 640), 0.2)
    edges[:, 0, 16 * place : 16 * place + 16] = 0.9
    maps = activation_maps(net, edges)
    assert maps.shape == (1, 40) and int(maps.argmax()) == place and float(maps[0, place]) > 0.99
    assert float(maps.sum()) == pytest.approx(1)


def test_attention_weighs_what_the_head_is_given():
    torch.manual_seed(0)
    net, features, pooled = EnvelopeNet(2, 3, (0, 0, 0)).eval(), [], []
    net.top.register_forward_hook(lambda top, _, output: features.append(output[:, :, 0]))
    net.head.register_forward_pre_hook(lambda head, inputs: pooled.append(inputs[0]))
    with torch.no_grad():
        net.look_near.weight.mul_(2000)
        weights = net(envelopes(2))[1].exp().reshape(2, 20, 2).sum(2)
    expected = [features[0].mean(2), features[0].amax(2), (features[0] * weights[:, None]).sum(2)]
    assert torch.allclose(pooled[0], torch.cat(expected, 1), atol=1e-4)
    assert not torch.allclose(expected[0], expected[2], rtol=0.05)


def test_maps_do_not_depend_on_the_batch_or_leave_a_network_in_training():
    net, items = series.build_net(TINY).train(), envelopes(5)
    maps = activation_maps(net, items)
    assert not net.training and not maps.requires_grad and maps.dtype == torch.float32
    assert torch.allclose(activation_maps(net, items, batch=2), maps, atol=1e-5)
