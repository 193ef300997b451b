"""DeepLabV3 (Chen et al., arXiv:1706.05587) with an auxiliary head, from torchvision's parts; decoder and outlier head.

Parameter names are torchvision's own (``backbone.*``, ``classifier.*``, ``aux_classifier.*``), so its
weight files, and checkpoints that others trained with it, load as they are.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models import segmentation
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.deeplabv3 import DeepLabHead, DeepLabV3
from torchvision.models.segmentation.fcn import FCNHead

from src import backbones, checkpoints, settings
from src.road.config import Config
from src.road.data import dataset_class

ATROUS_RATES = {16: (6, 12, 18), 8: (12, 24, 36)}
CLASS_LAYERS = ("classifier.4.", "aux_classifier.4.")
CONTEXT_WIDTH = 256  # channels of torchvision's DeepLabV3 before its class layer
HEAD_WIDTH, HEAD_DROPOUT = 256, 0.1


def build_model(config: Config, extras: dict[str, Any] | None = None) -> nn.Module:
    """DeepLabV3 for the known classes of the config's data set, randomly initialised from its seed.

    It has a ``decoder`` with ``decoder_epochs``, an ``outlier_head`` with ``outlier_epochs``. ``extras`` are not used.
    """
    settings.seed_everything(config.seed)
    classes = len(dataset_class(config.dataset).classes)
    if not classes:
        raise settings.InputError(f"{config.dataset} names no classes to train on; use it with `evaluate` only")
    model = deeplabv3(config.backbone, classes, config.output_stride, config.width)
    if config.decoder_epochs:
        model.decoder = build_decoder(config, model.backbone)
    if config.outlier_epochs:
        model.outlier_head = build_outlier_head(config, model.backbone)
    return model


def from_state_dict(config: Config, state: dict[str, Tensor], source: Path | str) -> tuple[Config, nn.Module]:
    """The model of a bare torchvision state dict, and its config: it has no decoder and no outlier head."""
    config = replace(config, decoder_epochs=0, outlier_epochs=0)
    model = build_model(config)
    load_segmentation(model, state, source)
    return config, model.eval()


# ------------------------------------------------------------------------------------------ structure
def stages(backbone: str) -> list[str]:
    """The last module of each resolution, 1/4 to 1/32 of the image's, by its name in a model's backbone."""
    return [name.removeprefix("features.") for name in backbones.BACKBONES[backbone].stages]


class Segmenter(DeepLabV3):
    """torchvision's DeepLabV3 with an auxiliary head, and a ``decoder`` of its logits if it is given one.

    ``forward`` maps images (B,3,H,W) to ``{"out", "aux"}``, logits (B,K,H,W) each.
    """

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        if not hasattr(self, "decoder"):
            return super().forward(images)
        features = layer_outputs(self.backbone, self.decoder.names, images)
        middle = features[self.decoder.names[2]]
        logits = {"out": class_logits(self, features), "aux": self.aux_classifier(middle)}
        return {name: F.interpolate(of_head, images.shape[-2:], mode="bilinear") for name, of_head in logits.items()}


def deeplabv3(backbone: str, num_classes: int, output_stride: int, width: float = 1.0) -> Segmenter:
    """A randomly initialised DeepLabV3 with both heads.

    ``output_stride`` is 8 or 16; ``width`` scales the channels of mobilenet_v2. torchvision's own DeepLabV3-ResNet50 is
    ``("resnet50", classes, 8)``.
    """
    if backbone == "mobilenet_v2":
        network = torchvision.models.mobilenet_v2(width_mult=width).features
    else:
        network = torchvision.models.get_model(backbone)
    _, fine, middle, deep = stages(backbone)
    features = IntermediateLayerGetter(network, {deep: "out", middle: "aux"})
    _dilate(features, middle, deep, 32 // output_stride)
    if output_stride == 8:
        _dilate(features, fine, middle, 2)
    head = DeepLabHead(_channels(features[deep]), num_classes, ATROUS_RATES[output_stride])
    return Segmenter(features, head, FCNHead(_channels(features[middle]), num_classes))


def _dilate(features: nn.ModuleDict, before: str, last: str, dilation: int) -> None:
    """Trade the stride of the stage that follows ``before`` for dilation: same weights, twice the resolution.

    The convolution that had the stride still sees the finer grid of the stage before it, so it keeps half
    the dilation.
    """
    names = list(features)
    for name in names[names.index(before) + 1 : names.index(last) + 1]:
        for module in features[name].modules():
            if isinstance(module, nn.Conv2d):
                strided = module.stride == (2, 2)
                module.stride = (1, 1)
                if module.kernel_size == (3, 3):
                    rate = dilation // 2 if strided else dilation
                    module.dilation = module.padding = (rate, rate)


def _channels(stage: nn.Module) -> int:
    """Channels of a stage's output: its last normalisation has as many."""
    return [module for module in stage.modules() if isinstance(module, nn.BatchNorm2d)][-1].num_features


def layer_outputs(backbone: nn.ModuleDict, names: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    """Outputs of the named modules of a backbone whose modules run one after the other; images (B,3,H,W)."""
    outputs, x = {}, images
    for name, module in backbone.items():
        x = module(x)
        if name in names:
            outputs[name] = x
    return outputs


class Decoder(nn.Module):
    """Coarse logits (B,K,h,w), refined at 1/4 of the image's resolution: (B,K,H/4,W/4).

    As in DeepLabV3+ (Chen et al., arXiv:1802.02611) fine features show it edges and thin things that a cell of 1/16
    cannot hold. What it adds to the logits begins as zero, so that it can be trained after the network. ``names``: the
    stages of the backbone; ``channels``: of the first two, at 1/4 and 1/8.
    """

    def __init__(self, names: Sequence[str], channels: Sequence[int], num_classes: int):
        super().__init__()
        self.names = tuple(names)
        self.fine, self.middle = _pointwise(channels[0], 32), _pointwise(channels[1], 32)
        self.context = _pointwise(CONTEXT_WIDTH, 64)
        self.net = nn.Sequential(
            _depthwise(128 + num_classes),
            _pointwise(128 + num_classes, 128),
            _depthwise(128),
            _pointwise(128, 128),
            nn.Conv2d(128, num_classes, 1),
        )
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, fine: Tensor, middle: Tensor, context: Tensor, logits: Tensor) -> Tensor:
        size = fine.shape[-2:]
        logits = _resized(logits, size)
        parts = [self.fine(fine), _resized(self.middle(middle), size), _resized(self.context(context), size), logits]
        return logits + self.net(torch.cat(parts, 1))


def _pointwise(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


def _depthwise(channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())


def build_decoder(config: Config, features: nn.ModuleDict) -> Decoder:
    """A decoder that adds nothing yet, for a model of this config."""
    names = stages(config.backbone)
    channels = [_channels(features[name]) for name in names[:2]]
    return Decoder(names, channels, len(dataset_class(config.dataset).classes))


def decoder_inputs(model: nn.Module, features: dict[str, Tensor]) -> list[Tensor]:
    """What a decoder takes: features at 1/4 and 1/8, those before the class layer, and its logits."""
    fine, middle, *_, context = features.values()
    for layer in list(model.classifier)[:-1]:
        context = layer(context)
    return [fine, middle, context, model.classifier[-1](context)]


def class_logits(model: nn.Module, features: dict[str, Tensor]) -> Tensor:
    """Logits (B,K,h,w) of backbone features: of the decoder, or at the deepest features' resolution without one."""
    if hasattr(model, "decoder"):
        return model.decoder(*decoder_inputs(model, features))
    return model.classifier([*features.values()][-1])


class OutlierHead(nn.Module):
    """Features of several depths, dict of (B,C,h,w) -> logits (B,h,w) of "anomalous", at the deepest's resolution.

    ``names`` and ``channels`` say which, in order. ``fine``: at the resolution of the second, 1/8 of the image's; at
    1/16 an object far down the road is smaller than one cell. Finer features are averaged, coarser ones interpolated.
    """

    def __init__(self, names: Sequence[str], channels: Sequence[int], fine: bool = False):
        super().__init__()
        self.names, self.size_of = tuple(names), names[1 if fine else -1]
        self.net = nn.Sequential(
            nn.BatchNorm2d(sum(channels), affine=False),
            nn.Dropout(HEAD_DROPOUT),
            nn.Conv2d(sum(channels), HEAD_WIDTH, 1),
            nn.ReLU(),
            nn.Dropout(HEAD_DROPOUT),
            nn.Conv2d(HEAD_WIDTH, HEAD_WIDTH // 4, 3, padding=1, padding_mode="replicate"),
            nn.ReLU(),
            nn.Conv2d(HEAD_WIDTH // 4, 1, 1),
        )

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        size = features[self.size_of].shape[-2:]
        return self.net(torch.cat([_resized(features[name].float(), size) for name in self.names], 1))[:, 0]


def _resized(features: Tensor, size: tuple[int, int]) -> Tensor:
    if features.shape[-1] < size[1]:
        return F.interpolate(features, size, mode="bilinear")
    return F.adaptive_avg_pool2d(features, size)


def build_outlier_head(config: Config, features: nn.ModuleDict) -> OutlierHead:
    """A head, randomly initialised, for the features of a model of this config."""
    names = stages(config.backbone)
    return OutlierHead(names, [_channels(features[name]) for name in names], config.fine_outlier_head)


@torch.inference_mode()
def infer(model: nn.Module, images: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
    """Logits (B,C,H,W) and the outlier score (B,H,W), None of a model without that head.

    float32 at ``size``, bilinear from the model's own resolution; the auxiliary head stays idle.
    """
    decoder, head = getattr(model, "decoder", None), getattr(model, "outlier_head", None)
    part = decoder or head
    features = layer_outputs(model.backbone, part.names, images) if part else model.backbone(images)
    logits = F.interpolate(class_logits(model, features).float(), size, mode="bilinear")
    return logits, F.interpolate(head(features)[:, None].float(), size, mode="bilinear")[:, 0] if head else None


# --------------------------------------------------------------------------------------- weight files
def load_pretrained(model: Segmenter, backbone: str, pretrained: str, file: Path | str | None) -> None:
    """Fill the model from ``file``, or from torchvision online: ``imagenet`` (backbone) or ``coco`` (all but
    the class layers, resnet50 only). ``none`` leaves it as it is, and refuses a file.
    """
    if pretrained == "coco":
        weights = segmentation.DeepLabV3_ResNet50_Weights.DEFAULT
        load_segmentation(model, checkpoints.pretrained(weights, file), file or weights, drop_classes=True)
    elif pretrained == "imagenet":
        weights = torchvision.models.get_model_weights(backbone).DEFAULT
        _load_backbone(model, checkpoints.pretrained(weights, file), file or weights)
    elif file:
        raise settings.InputError(f"{file} would not be used: set pretrained=imagenet or coco")


def _load_backbone(model: Segmenter, state: dict[str, Tensor], source: Any) -> None:
    state = {name.removeprefix("features."): tensor for name, tensor in state.items()}
    expected = model.backbone.state_dict().keys()
    checkpoints.load_weights(model.backbone, {name: state[name] for name in expected & state.keys()}, source)


def load_segmentation(model: Segmenter, state: dict[str, Tensor], source: Any, drop_classes: bool = False) -> None:
    """Load a torchvision-named DeepLabV3 state dict.

    An auxiliary head of another shape (an old checkpoint's) is dropped with a line saying so; with ``drop_classes``
    the main class layer too. Anything else that differs is an error.
    """
    fresh = model.state_dict()
    optional = ("aux_classifier.", "classifier.4.") if drop_classes else ("aux_classifier.",)
    names = {name for name in fresh.keys() | state.keys() if name.startswith(optional)}
    misfits = {name for name in names if _shape(fresh, name) != _shape(state, name)}
    if misfits:
        print(f"{source}: left out {', '.join(sorted(misfits))}: absent or of another shape")
    fitting = {name: tensor for name, tensor in state.items() if name not in misfits}
    checkpoints.load_weights(model, fitting | {name: fresh[name] for name in misfits & fresh.keys()}, source)


def _shape(state: dict[str, Tensor], name: str) -> torch.Size | None:
    return state[name].shape if name in state else None


def load_by_class(
    model: Segmenter, state: dict[str, Tensor], source: Any, their_classes: Sequence[str], classes: Sequence[str]
) -> list[str]:
    """Fill a model of ``classes`` from the weights of one of ``their_classes``; its decoder and head are left.

    Class layers take over the rows whose classes have one name and keep their own otherwise; all else must fit.
    Returns the names of the classes that were taken over.
    """
    shared = [name for name in classes if name in their_classes]
    rows = [classes.index(name) for name in shared]
    their_rows = [their_classes.index(name) for name in shared]
    fresh = model.state_dict()
    state = {name: tensor for name, tensor in state.items() if not name.startswith(("decoder.", "outlier_head."))}
    for name in fresh.keys() & state.keys():
        if name.startswith(CLASS_LAYERS) and fresh[name].shape[1:] == state[name].shape[1:]:
            fresh[name][rows] = state[name][their_rows]
            state[name] = fresh[name]
    checkpoints.load_weights(model, state, source)
    return shared
