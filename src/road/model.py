"""DeepLabV3 (Chen et al., arXiv:1706.05587) with an auxiliary head, from torchvision's parts.

Parameter names are torchvision's own (``backbone.*``, ``classifier.*``, ``aux_classifier.*``), so its
weight files, and checkpoints that others trained with it, load as they are.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models import segmentation
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.deeplabv3 import DeepLabHead, DeepLabV3
from torchvision.models.segmentation.fcn import FCNHead

from src import checkpoints, settings
from src.road.outliers import layer_outputs

BACKBONES = ("resnet50", "resnet18", "mobilenet_v2")
ATROUS_RATES = {16: (6, 12, 18), 8: (12, 24, 36)}


def deeplabv3(backbone: str, num_classes: int, output_stride: int, width: float = 1.0) -> DeepLabV3:
    """A randomly initialised DeepLabV3 with both heads.

    ``forward`` maps images (B,3,H,W) to ``{"out", "aux"}``, logits (B,num_classes,H,W) each. InputError for
    an unknown backbone or stride.
    ``output_stride`` is 8 or 16; ``width`` scales the channels of mobilenet_v2. torchvision's own
    DeepLabV3-ResNet50 is ``("resnet50", classes, 8)``.
    """
    if output_stride not in ATROUS_RATES:
        raise settings.InputError(f"output_stride={output_stride}: expected one of {sorted(ATROUS_RATES)}")
    if backbone == "mobilenet_v2":
        features, channels, aux_channels = _mobilenet_v2(output_stride, width)
    elif backbone in BACKBONES:
        features, channels, aux_channels = _resnet(backbone, output_stride)
    else:
        raise settings.InputError(f"backbone={backbone!r}: expected one of {', '.join(BACKBONES)}")
    head = DeepLabHead(channels, num_classes, ATROUS_RATES[output_stride])
    return DeepLabV3(features, head, FCNHead(aux_channels, num_classes))


def _resnet(name: str, output_stride: int):
    if name == "resnet50":
        net = torchvision.models.resnet50(replace_stride_with_dilation=[False, output_stride == 8, True])
    else:  # torchvision's two-convolution blocks refuse dilation, so it is put in afterwards
        net = torchvision.models.resnet18()
        _dilate(net.layer4, 4 if output_stride == 8 else 2)
        if output_stride == 8:
            _dilate(net.layer3, 2)
    features = IntermediateLayerGetter(net, {"layer4": "out", "layer3": "aux"})
    return features, net.fc.in_features, net.fc.in_features // 2


def _mobilenet_v2(output_stride: int, width: float):
    blocks = torchvision.models.mobilenet_v2(width_mult=width).features[:-1]  # the last 1x1 serves classification
    _dilate(blocks[14:], 4 if output_stride == 8 else 2)
    if output_stride == 8:
        _dilate(blocks[7:14], 2)
    features = IntermediateLayerGetter(blocks, {"17": "out", "13": "aux"})
    return features, blocks[17].out_channels, blocks[13].out_channels


def _dilate(blocks: nn.Module, dilation: int) -> None:
    """Trade the stride of a stage for dilation: same weights, twice the resolution.

    The convolution that had the stride still sees the finer grid of the stage before it, so it keeps half
    the dilation.
    """
    for module in blocks.modules():
        if isinstance(module, nn.Conv2d):
            strided = module.stride == (2, 2)
            module.stride = (1, 1)
            if module.kernel_size == (3, 3):
                rate = dilation // 2 if strided else dilation
                module.dilation = module.padding = (rate, rate)


def load_pretrained(model: DeepLabV3, backbone: str, pretrained: str, file: Path | str | None) -> None:
    """Fill the model from ``file``, or from torchvision online: ``imagenet`` (backbone) or ``coco`` (all but
    the class layers, resnet50 only). ``none`` leaves it as it is, and refuses a file.
    """
    if pretrained == "none":
        if file:
            raise settings.InputError(f"{file} would not be used: set pretrained=imagenet or coco")
    elif pretrained == "coco":
        weights = segmentation.DeepLabV3_ResNet50_Weights.DEFAULT
        load_segmentation(model, checkpoints.pretrained(weights, file), file or weights, drop=True)
    elif pretrained == "imagenet":
        weights = torchvision.models.get_model_weights(backbone).DEFAULT
        _load_backbone(model, checkpoints.pretrained(weights, file), file or weights)
    else:
        raise settings.InputError(f"pretrained={pretrained!r}: expected none, imagenet or coco")


def _load_backbone(model: DeepLabV3, state: dict, source) -> None:
    state = {name.removeprefix("features."): tensor for name, tensor in state.items()}
    own = model.backbone.state_dict()
    checkpoints.load_weights(model.backbone, {n: t for n, t in state.items() if n in own}, source)


def load_segmentation(model: DeepLabV3, state: dict, source, drop: bool = False) -> None:
    """Load a torchvision-named DeepLabV3 state dict.

    An auxiliary head of another shape (an old checkpoint's) is dropped with a line saying so; with ``drop``
    the main class layer too. Anything else that differs is an error.
    """
    own = model.state_dict()
    optional = ("aux_classifier.", "classifier.4.") if drop else ("aux_classifier.",)
    names = own.keys() | state.keys()
    misfits = {n for n in names if n.startswith(optional) and _shape(own, n) != _shape(state, n)}
    if misfits:
        print(f"{source}: left out {', '.join(sorted(misfits))}: absent or of another shape")
    kept = {n: t for n, t in state.items() if n not in misfits}
    checkpoints.load_weights(model, kept | {n: own[n] for n in misfits if n in own}, source)


CLASS_LAYERS = ("classifier.4.", "aux_classifier.4.")


def load_by_class(model: DeepLabV3, state: dict, source, theirs: Sequence[str], ours: Sequence[str]) -> list[str]:
    """Fill a model of the classes ``ours`` from the weights of one of the classes ``theirs``; an outlier head is left.

    Class layers take over the rows whose classes have one name and keep their own otherwise; all else must fit.
    Returns the names that were found.
    """
    kept = [name for name in ours if name in theirs]
    rows, sources = ([names.index(name) for name in kept] for names in (ours, theirs))
    own = model.state_dict()
    state = {name: tensor for name, tensor in state.items() if not name.startswith("outlier_head.")}
    for name in own.keys() & state.keys():
        if name.startswith(CLASS_LAYERS) and own[name].shape[1:] == state[name].shape[1:]:
            own[name][rows] = state[name][sources]
            state[name] = own[name]
    checkpoints.load_weights(model, state, source)
    return kept


def _shape(state: dict, name: str) -> torch.Size | None:
    return state[name].shape if name in state else None


def segmentation_loss(
    model: nn.Module, batch: dict, class_weights: torch.Tensor | None, aux_weight: float, ignore: int
) -> torch.Tensor:
    """Cross-entropy of the main head + ``aux_weight`` x that of the auxiliary head, over labelled pixels."""
    outputs = model(batch["image"])
    main, aux = (F.cross_entropy(outputs[head].float(), batch["mask"], class_weights, ignore_index=ignore)
                 for head in ("out", "aux"))  # fmt: skip
    return main + aux_weight * aux


@torch.inference_mode()
def predict(model: nn.Module, images: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits (B,C,H,W) and the outlier score (B,H,W), None of a model without that head.

    float32 at ``size``, bilinear from the model's own resolution; the auxiliary head stays idle.
    """
    head = getattr(model, "outlier_head", None)
    features = layer_outputs(model.backbone, head.names, images) if head else {"out": model.backbone(images)["out"]}
    logits = F.interpolate(model.classifier([*features.values()][-1]).float(), size, mode="bilinear")
    return logits, F.interpolate(head(features)[:, None].float(), size, mode="bilinear")[:, 0] if head else None
