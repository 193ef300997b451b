"""Layer tables by hand, backbones against torchvision's own, compactness against NumPy, and seeds of the students."""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from src import backbones, defects
from src.defects import model as models

STRIDES = {17: 1, 33: 4, 65: 8}
# (weights + biases) of each convolution but the last, which has d outputs, and the last one's values per output.
PARAMETERS = {
    17: ((3 * 36 * 128 + 128, 128 * 25 * 256 + 256, 256 * 25 * 256 + 256), 256 * 16 + 1),
    33: ((3 * 25 * 128 + 128, 128 * 25 * 256 + 256, 256 * 4 * 256 + 256), 256 * 16 + 1),
    65: ((3 * 25 * 128 + 128, 128 * 25 * 128 + 128, 128 * 25 * 128 + 128, 128 * 16 * 256 + 256), 256 + 1),
}
# (backbone, depth) -> (channels, the torchvision network's layers up to there).
BACKBONES = {
    ("resnet18", "middle"): (256, lambda net: nn.Sequential(*list(net.children())[:7])),
    ("resnet18", "last"): (512, lambda net: nn.Sequential(*list(net.children())[:8])),
    ("squeezenet1_0", "middle"): (384, lambda net: net.features[:10]),
    ("squeezenet1_0", "last"): (512, lambda net: net.features),
    ("mobilenet_v2", "middle"): (96, lambda net: net.features[:14]),
    ("mobilenet_v2", "last"): (1280, lambda net: net.features),
}


# --------------------------------------------------------------------------------------- patch network
@pytest.mark.parametrize("size, sides", [(17, [12, 8, 4, 1]), (33, [29, 10, 4, 1]), (65, [61, 26, 9, 1, 1])])
def test_layers_close_on_a_single_patch(size, sides):
    net, x, result = models.PatchNet(size, 8, 4), torch.randn(2, 3, size, size), []
    for layer in net:
        x = layer(x)
        result += [tuple(x.shape[2:])] if isinstance(layer, nn.Conv2d) else []
    assert result == [(side, side) for side in sides] and x.shape == (2, 8, 1, 1)


@pytest.mark.parametrize("descriptor", [128, 512])
@pytest.mark.parametrize("size", STRIDES)
def test_parameters_are_the_papers(size, descriptor):
    inner, per_output = PARAMETERS[size]
    net = models.PatchNet(size, descriptor)
    convolutions = [layer for layer in net if isinstance(layer, nn.Conv2d)]
    counts = [sum(values.numel() for values in layer.parameters()) for layer in convolutions]
    assert counts == [*inner, per_output * descriptor]


@pytest.mark.parametrize("size", STRIDES)
def test_layers_between_convolutions(size):
    net = models.PatchNet(size, 8, 4)
    slopes = {layer.negative_slope for layer in net if isinstance(layer, nn.LeakyReLU)}
    kinds = [type(layer) for layer in net]
    assert slopes == {0.005} and kinds[-1] is nn.Conv2d and kinds.count(nn.LeakyReLU) == kinds.count(nn.Conv2d) - 1
    assert 2 ** kinds.count(nn.MaxPool2d) == net.stride == STRIDES[size]
    assert all(after is nn.LeakyReLU for now, after in zip(kinds, kinds[1:], strict=False) if now is nn.Conv2d)
    assert all((layer.kernel_size, layer.stride) == (2, 2) for layer in net if isinstance(layer, nn.MaxPool2d))


@pytest.mark.parametrize("size", STRIDES)
def test_an_image_gives_the_descriptor_of_every_patch_on_the_stride(size):
    net, stride = models.PatchNet(size, 5, 4), STRIDES[size]
    images = torch.randn(1, 3, size + 2 * stride, size + stride)
    with torch.inference_mode():
        result = net(images)[0]
        assert result.shape == (5, 3, 2)
        for i in range(3):
            for j in range(2):
                patch = images[:, :, i * stride : i * stride + size, j * stride : j * stride + size]
                assert torch.allclose(result[:, i, j], net(patch).flatten(), atol=1e-5)


def test_signal_keeps_its_scale_through_the_layers():
    """Torch's default initialisation would shrink it at every layer."""
    torch.manual_seed(0)
    with torch.inference_mode():
        assert 0.5 < models.PatchNet(33, 64, 32)(torch.randn(64, 3, 33, 33)).std() < 4


# -------------------------------------------------------------------------------------------- backbone
def network_with_statistics(name: str):
    """A torchvision network whose batch norms have seen something, in eval mode."""
    torch.manual_seed(3)
    net = getattr(torchvision.models, name)(weights=None).train()
    with torch.no_grad():
        net(torch.randn(4, 3, 64, 64))
    return net.eval()


@pytest.mark.parametrize("name, depth", BACKBONES)
def test_features_are_those_of_the_file(name, depth, tmp_path):
    channels, cut = BACKBONES[name, depth]
    net, patches = network_with_statistics(name), torch.randn(3, 3, 33, 33)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    network, _ = backbones.pretrained(name, tmp_path / "net.pth")
    backbone = models.FeatureExtractor(network, name, depth, 64)
    with torch.inference_mode():
        enlarged = F.interpolate(patches, (64, 64), mode="bilinear", align_corners=False)
        expected = cut(net)(enlarged).mean((2, 3))
        result = backbone(patches)
    assert result.shape == (3, channels) and backbone.channels == channels
    assert expected.std() > 0 and torch.allclose(result, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_backbone_is_frozen(name):
    backbone = models.FeatureExtractor(torchvision.models.get_model(name, weights=None), name, "middle", 32)
    patches = torch.randn(8, 3, 17, 17)
    before, state = backbone(patches), {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone.train()
    after = backbone(patches)
    assert not any(values.requires_grad for values in backbone.parameters()) and not after.requires_grad
    assert not any(module.training for module in backbone.modules())
    assert torch.equal(before, after)
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize("descriptor, features", [(8, 512), (512, 512)])
def test_decoder_only_where_sizes_differ(descriptor, features):
    model = models.Teacher(models.PatchNet(17, descriptor, 4), features)
    descriptors, decoded = model(torch.randn(2, 3, 17, 17))
    assert descriptors.shape == (2, descriptor) and decoded.shape == (2, features)
    decoder = sum(values.numel() for values in model.decoder.parameters())
    assert decoder == (0 if descriptor == features else (descriptor + 1) * features)
    assert torch.equal(descriptors, decoded) == (descriptor == features)


# ----------------------------------------------------------------------------------------- compactness
def redundant_descriptors(count: int = 40, size: int = 7) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.normal(2, 3, (count, size)) @ rng.normal(0, 1, (size, size))).float()


def test_compactness_is_the_correlation_between_dimensions():
    descriptors = redundant_descriptors()
    correlations = np.abs(np.corrcoef(descriptors.numpy(), rowvar=False)[np.triu_indices(7, 1)])
    assert len(correlations) == 21
    assert models.compactness(descriptors, "sum").item() == pytest.approx(correlations.sum(), rel=1e-4)
    assert models.compactness(descriptors).item() == pytest.approx(correlations.mean(), rel=1e-4)


def test_duplicated_dimensions_cost_more():
    torch.manual_seed(0)
    independent = torch.randn(400, 8)
    duplicated = torch.cat([independent[:, :4], independent[:, :4]], dim=1)
    result = [models.compactness(descriptors).item() for descriptors in (independent, duplicated)]
    assert result[0] < 0.1 and result[1] > result[0] + 0.1  # 4 of 28 pairs are identical
    assert models.compactness(torch.cat([independent[:, :1]] * 3, 1)).item() == pytest.approx(1, abs=1e-4)


def test_a_dead_dimension_correlates_with_nothing():
    descriptors = redundant_descriptors()
    descriptors[:, 3] = 0.7
    descriptors.requires_grad_()
    total = models.compactness(descriptors, "sum")
    total.backward()
    alive = models.compactness(descriptors.detach()[:, [0, 1, 2, 4, 5, 6]], "sum")
    assert total.item() == pytest.approx(alive.item(), abs=1e-2)
    assert torch.isfinite(descriptors.grad).all() and descriptors.grad[:, :3].abs().max() > 0


def test_compactness_keeps_full_precision_under_autocast():
    descriptors = redundant_descriptors()
    with torch.autocast("cpu", torch.bfloat16):
        result = models.compactness(descriptors)
    assert result.dtype == torch.float32 and result == models.compactness(descriptors)


HADAMARD = torch.tensor([[(-1.0) ** bin(i & j).count("1") for j in range(1, 8)] for i in range(8)])


@pytest.mark.parametrize(
    "scales, rank",
    [
        ((1,) * 7, 7),
        ((1,) * 3, 3),
        ((5, 5, 0, 0), 2),
        ((3,), 1),
        ((2, 1), np.exp(-0.8 * np.log(0.8) - 0.2 * np.log(0.2))),  # variances 4 : 1
    ],
)
def test_effective_rank_of_known_spectra(scales, rank):
    """The columns are orthogonal with mean 0, so that their variances are the eigenvalues."""
    descriptors = HADAMARD[:, : len(scales)] * torch.tensor(scales)
    if len(scales) > 1:
        assert models.effective_rank(descriptors + 10) == pytest.approx(rank, rel=1e-4)
        rotation = torch.linalg.qr(torch.randn(len(scales), len(scales)))[0]
        assert models.effective_rank(descriptors @ rotation) == pytest.approx(rank, rel=1e-4)
    else:
        assert models.effective_rank(torch.cat([descriptors] * 4, 1)) == pytest.approx(rank, rel=1e-4)


# -------------------------------------------------------------------------------------------- students
def built(seed: int = 1, students: int = 3) -> models.StudentTeacher:
    sizes = {"patch_sizes": (17, 33), "descriptor": 4, "teacher_width": 6, "width": 4}
    return defects.build_model(defects.Config(categories=("a", "b"), students=students, seed=seed, **sizes))


def first_weights(model: models.StudentTeacher, size: str = "17") -> list[torch.Tensor]:
    """Of the teacher, and of each student of category a."""
    return [model.teachers[size][0].weight, *(net[0].weight for net in model.students["a"][size].nets)]


def test_there_is_a_teacher_per_size_and_students_per_category():
    model = built()
    assert set(model.teachers) == {"17", "33"} and set(model.students) == {"a", "b"}
    assert all(set(sizes) == {"17", "33"} for sizes in model.students.values())
    assert all(len(students.nets) == 3 for sizes in model.students.values() for students in sizes.values())
    assert [len(weight) for weight in first_weights(model)] == [6, 4, 4, 4]


def test_students_start_different_and_from_seeds_of_their_own():
    """Each starts where the one before it starts in a model of the next seed, whatever was drawn before."""
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    one, again, following = first_weights(built(1)), first_weights(built(1)), first_weights(built(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(map(torch.equal, one, again))
    assert all(map(torch.equal, one[2:], following[1:-1]))
    distinct = {tuple(weight.flatten().tolist()) for weight in [*one[1:], following[-1]]}
    assert len(distinct) == 4


def test_targets_are_normalised_per_dimension_and_nets_are_stacked():
    students = models.Students([models.PatchNet(17, 2, 4) for _ in range(3)])
    students.mean.copy_(torch.tensor([1.0, -2.0]))
    students.std.copy_(torch.tensor([0.5, 4.0]))
    descriptors = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1).expand(2, 2, 3, 4)
    expected = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).expand(2, 2, 3, 4)
    assert torch.equal(students.normalize(descriptors), expected)
    images = torch.randn(2, 3, 19, 20)
    predictions = students(images)
    assert predictions.shape == (3, 2, 2, 3, 4)
    assert all(torch.equal(one, net(images)) for one, net in zip(predictions, students.nets, strict=True))
    assert {"mean", "std"} <= students.state_dict().keys()
