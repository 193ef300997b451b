"""DeepLabV3 against torchvision's own, dilation against the strided network, weight files, and the loss by hand."""

import functools
import math
from dataclasses import replace

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import segmentation

from src import checkpoints, road, settings
from src.road import data, fitting
from src.road import model as models
from src.road.config import BACKBONES, Config

CASES = [(backbone, stride) for backbone in BACKBONES for stride in (8, 16)]
WIDTH = 0.25  # of mobilenet_v2


def built(backbone: str, stride: int, classes: int = 5, seed: int = 0):
    torch.manual_seed(seed)
    return models.deeplabv3(backbone, classes, stride, WIDTH).eval()


shared = functools.cache(built)  # for tests that leave the model as it is


# ------------------------------------------------------------------------------------------ structure
@pytest.mark.parametrize("backbone, stride", CASES)
def test_shapes_at_both_heads(backbone, stride):
    model, images = shared(backbone, stride), torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        features = model.backbone(images)
        outputs = model(images)
        logits, outlier = models.infer(model, images, (64, 96))
    assert features["out"].shape[2:] == features["aux"].shape[2:] == (64 // stride, 96 // stride)
    assert outputs["out"].shape == outputs["aux"].shape == (1, 5, 64, 96)
    assert torch.allclose(logits, outputs["out"], atol=1e-5) and outlier is None
    rates = {16: [6, 12, 18], 8: [12, 24, 36]}[stride]
    assert [branch[0].dilation[0] for branch in model.classifier[0].convs[1:4]] == rates


@pytest.mark.parametrize("backbone, stride", CASES)
def test_dilated_backbone_computes_what_the_strided_one_does(backbone, stride):
    """À trous: every (32/stride)-th feature is that of the original network with the same weights."""
    dilated = shared(backbone, stride).backbone
    if backbone == "mobilenet_v2":
        original = torchvision.models.mobilenet_v2(width_mult=WIDTH).features[:18]
        original.load_state_dict(dilated.state_dict())
    else:
        net = torchvision.models.get_model(backbone)
        missing = net.load_state_dict(dilated.state_dict(), strict=False).missing_keys
        assert set(missing) == {"fc.weight", "fc.bias"}
        original = nn.Sequential(*list(net.children())[:-2])
    images = torch.randn(1, 3, 128, 96)
    with torch.inference_mode():
        fine, coarse = dilated(images)["out"], original.eval()(images)
    step = 32 // stride
    assert coarse.shape[2:] == (4, 3) and coarse.std() > 0
    assert torch.allclose(fine[..., ::step, ::step], coarse, rtol=1e-3, atol=1e-4 * coarse.abs().max().item())


def test_resnet50_is_torchvisions_own():
    ours = built("resnet50", 8, classes=13)
    theirs = segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=13, aux_loss=True)
    state = theirs.state_dict()
    assert {n: t.shape for n, t in ours.state_dict().items()} == {n: t.shape for n, t in state.items()}
    theirs.load_state_dict(ours.state_dict())
    dilations = [
        [(name, m.dilation, m.stride, m.padding) for name, m in net.named_modules() if isinstance(m, nn.Conv2d)]
        for net in (ours, theirs)
    ]
    assert dilations[0] == dilations[1]
    images = torch.randn(1, 3, 48, 64)
    with torch.inference_mode():
        a, b = ours(images), theirs.eval()(images)
    assert torch.equal(a["out"], b["out"]) and torch.equal(a["aux"], b["aux"])


@pytest.mark.parametrize("stride, last", [(8, [1, 2, 2, 2, 2, 2, 2, 2, 4, 4, 4]), (16, [1] * 8 + [2, 2, 2])])
def test_mobilenet_dilates_its_last_stages(stride, last):
    convolutions = [m for m in built("mobilenet_v2", stride).backbone.modules() if isinstance(m, nn.Conv2d)]
    depthwise = [m for m in convolutions if m.groups > 1]
    assert len(depthwise) == 17  # one a block; block 7 opens stride 16, block 14 stride 32
    assert [m.dilation[0] for m in depthwise] == [1] * 6 + last
    assert math.prod(m.stride[0] for m in convolutions) == stride


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_outlier_head_fits_its_backbone(backbone):
    model, images = shared(backbone, 16), torch.randn(2, 3, 64, 96)
    head = models.build_outlier_head(Config(backbone=backbone), model.backbone).eval()
    with torch.inference_mode():
        features, outputs = models.layer_outputs(model.backbone, head.names, images), model.backbone(images)
        assert head(features).shape == (2, 4, 6)
    assert tuple(features) == head.names and [images.shape[-1] // x.shape[-1] for x in features.values()][:2] == [4, 8]
    assert torch.equal(features[head.names[-1]], outputs["out"])
    assert torch.equal(features[head.names[-2]], outputs["aux"])


# --------------------------------------------------------------------------------------- weight files
def classification_file(path, name: str, **options):
    torch.manual_seed(1)
    net = torchvision.models.get_model(name, **options)
    torch.save(net.state_dict(), path)
    return net.state_dict()


@pytest.mark.parametrize("name, options, prefix", [("mobilenet_v2", {"width_mult": WIDTH}, "features."),
                                                   ("resnet18", {}, "")])  # fmt: skip
def test_imagenet_file_fills_the_backbone_alone(tmp_path, name, options, prefix):
    state = classification_file(tmp_path / "imagenet.pth", name, **options)
    model = built(name, 16)
    head = model.classifier[4].weight.clone()
    models.load_pretrained(model, name, "imagenet", tmp_path / "imagenet.pth")
    filled = model.backbone.state_dict()
    assert filled and all(torch.equal(tensor, state[prefix + key]) for key, tensor in filled.items())
    assert torch.equal(model.classifier[4].weight, head)


def test_wrong_pretrained_file_is_named(tmp_path):
    classification_file(tmp_path / "resnet.pth", "resnet18")
    with pytest.raises(checkpoints.CheckpointError, match="resnet.pth does not fit"):
        models.load_pretrained(built("mobilenet_v2", 16), "mobilenet_v2", "imagenet", tmp_path / "resnet.pth")
    with pytest.raises(checkpoints.CheckpointError, match="nothing.pth"):
        models.load_pretrained(built("mobilenet_v2", 16), "mobilenet_v2", "imagenet", tmp_path / "nothing.pth")


def test_pretrained_none_leaves_the_model_as_it_is():
    model = built("mobilenet_v2", 16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    models.load_pretrained(model, "mobilenet_v2", "none", None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(settings.InputError, match="given.pth would not be used: set pretrained=imagenet or coco"):
        models.load_pretrained(model, "mobilenet_v2", "none", "given.pth")


def test_coco_file_leaves_out_the_class_layers(tmp_path, capsys):
    source = built("mobilenet_v2", 8, classes=21, seed=1)
    torch.save(source.state_dict(), tmp_path / "coco.pth")
    model = built("mobilenet_v2", 8)
    models.load_pretrained(model, "mobilenet_v2", "coco", tmp_path / "coco.pth")
    loaded, given = model.state_dict(), source.state_dict()
    same = {name for name in loaded if torch.equal(loaded[name], given[name])}
    left_out = {f"{head}.4.{kind}" for head in ("classifier", "aux_classifier") for kind in ("weight", "bias")}
    assert loaded.keys() - same == left_out
    printed = capsys.readouterr().out
    assert "coco.pth" in printed and all(name in printed for name in left_out)


def test_auxiliary_head_of_another_shape_is_dropped_with_a_line(capsys):
    source, model = built("mobilenet_v2", 8, seed=1), built("mobilenet_v2", 8)
    other = built("mobilenet_v2", 8, classes=21).aux_classifier
    state = source.state_dict() | other.state_dict(prefix="aux_classifier.")
    models.load_segmentation(model, state, "old.pth")
    assert "old.pth: left out aux_classifier.4.bias, aux_classifier.4.weight" in capsys.readouterr().out
    assert torch.equal(model.classifier[4].weight, source.classifier[4].weight)
    without_aux = {name: tensor for name, tensor in state.items() if not name.startswith("aux")}
    models.load_segmentation(model, without_aux, "bare.pth")
    assert "bare.pth: left out aux_classifier" in capsys.readouterr().out
    models.load_segmentation(model, source.state_dict(), "whole.pth")
    assert capsys.readouterr().out == "" and torch.equal(model.aux_classifier[4].bias, source.aux_classifier[4].bias)


@pytest.mark.parametrize("change", [
    lambda state: state | {"classifier.4.weight": torch.zeros(21, 256, 1, 1)},
    lambda state: {name: tensor for name, tensor in state.items() if name != "classifier.4.bias"},
    lambda state: state | {"decoder.weight": torch.zeros(1)},
    lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
])  # fmt: skip
def test_any_other_difference_is_refused(change):
    model = built("mobilenet_v2", 8)
    before = model.classifier[4].weight.clone()
    with pytest.raises(checkpoints.CheckpointError, match="odd.pth does not fit"):
        models.load_segmentation(model, change(model.state_dict()), "odd.pth")
    assert torch.equal(model.classifier[4].weight, before)


# ----------------------------------------------------------------------------------- loss and logits
class Fixed(nn.Module):
    """Two classes, one row of three pixels; the auxiliary head is undecided everywhere."""

    def forward(self, images):
        out = torch.tensor([[[[2.0, 0.0, 9.0]], [[0.0, 1.0, 0.0]]]])
        return {"out": out, "aux": torch.zeros_like(out)}


def log_sum(a: float, b: float) -> float:
    return math.log(math.exp(a) + math.exp(b))


def test_loss_by_hand():
    batch = {"image": torch.zeros(1, 3, 1, 3), "mask": torch.tensor([[[0, 0, 255]]])}
    pixels = log_sum(2, 0) - 2, log_sum(0, 1)
    expected = sum(pixels) / 2 + 0.4 * math.log(2)
    loss = fitting.segmentation_loss(Fixed(), batch, None, 0.4)
    assert loss.item() == pytest.approx(expected)
    assert fitting.segmentation_loss(Fixed(), batch, None, 0.0).item() == pytest.approx(sum(pixels) / 2)


def test_loss_weighs_classes():
    batch = {"image": torch.zeros(1, 3, 1, 3), "mask": torch.tensor([[[0, 1, 255]]])}
    pixels = log_sum(2, 0) - 2, log_sum(0, 1) - 1
    expected = (3 * pixels[0] + pixels[1]) / 4 + 0.4 * math.log(2)
    loss = fitting.segmentation_loss(Fixed(), batch, torch.tensor([3.0, 1.0]), 0.4)
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("size", [(64, 96), (90, 50)])
def test_logits_come_at_the_size_asked_for(size):
    logits, _ = models.infer(built("mobilenet_v2", 16), torch.randn(2, 3, 64, 96), size)
    assert logits.shape == (2, 5, *size) and logits.dtype == torch.float32 and not logits.requires_grad


# ------------------------------------------------------------------------ starting from another run's weights
def test_weights_of_another_data_set_give_all_but_the_rows_of_new_classes(tiny_weights, capsys):
    theirs, classes = ([entry.name for entry in data.KINDS[name].classes] for name in ("mini", "cityscapes"))
    given = checkpoints.load(tiny_weights)["weights"]
    config = road.Config(dataset="cityscapes", width=0.25, image_size=(48, 80), pretrained="imagenet")
    model, fresh = road.build_model(config), road.build_model(config).state_dict()
    fitting.start_from(model, config, tiny_weights)
    state = model.state_dict()
    for head in ("classifier.4", "aux_classifier.4"):
        for row, name in enumerate(classes):
            expected = given[f"{head}.bias"][theirs.index(name)] if name in theirs else fresh[f"{head}.bias"][row]
            assert state[f"{head}.bias"][row] == expected
    others = [name for name in state if ".4." not in name or name.startswith("backbone")]
    assert all(torch.equal(state[name], given[name]) for name in others)
    shared = [name for name in classes if name in theirs]
    assert len(shared) == 9 and f"{len(shared)} of 19 classes: {', '.join(shared)}" in capsys.readouterr().out


def test_weights_of_another_width_are_refused(tiny_weights):
    config = road.Config(dataset="cityscapes", width=0.35, image_size=(48, 80))
    with pytest.raises(checkpoints.CheckpointError, match="does not fit"):
        fitting.start_from(road.build_model(config), config, tiny_weights)


def test_training_goes_on_from_a_checkpoint_of_the_same_data(mini_root, tiny_config, tiny_weights, tmp_path):
    still = replace(tiny_config, lr=0.0)
    trained = road.train(still, mini_root, weights=tiny_weights, run_dir=tmp_path / "run", out=tmp_path / "out.pth")
    given = checkpoints.load(tiny_weights)["weights"]
    assert all(torch.equal(tensor, given[name]) for name, tensor in trained.model.named_parameters())


# ------------------------------------------------------------------------------------------------ one image a batch
def test_a_batch_of_one_image_is_refused(tiny_config, mini_root, tmp_path):
    with pytest.raises(settings.InputError, match="batch_size=1: expected 2 or more.*set batch_size=2"):
        road.train(replace(tiny_config, batch_size=1), mini_root, run_dir=tmp_path, out=tmp_path / "out.pth")
