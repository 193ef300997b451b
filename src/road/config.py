"""What the road system can vary; the three profiles are its named values. Needs no torch."""

from dataclasses import dataclass, replace
from typing import Any, Self

from src.config import SystemConfig

REAL = ("camvid", "camvid_cyclists", "cityscapes")  # the data sets that profile real trains on
DATASETS = ("mini", "streethazards", *REAL, "road_anomaly", "smiyc")
FOLDERS = {"mini": "mini/road", "camvid_cyclists": "camvid"}
ADJUSTABLE = ()
BACKBONES = ("resnet50", "resnet18", "mobilenet_v2")
OUTPUT_STRIDES = (8, 16)
RESIZING = ("moderate", "heavy", "scale", "scale_jitter")  # augmentations that change the size of images
AUGMENTATIONS = ("none", "flip", "flip_color", *RESIZING)


@dataclass(frozen=True)
class Config(SystemConfig):
    """What the road system can vary; the three profiles are its named values."""

    RENAMED = {("augmentation", "user"): "flip_color"}
    REMOVED = {"focal_gamma": 0.0}
    FEWEST_EPOCHS = 0  # 0: the segmenter stays as it is in the checkpoint that --weights names

    backbone: str = "mobilenet_v2"
    width: float = 1.0  # channel multiplier of mobilenet_v2
    output_stride: int = 8
    pretrained: str = "none"  # none | imagenet (backbone) | coco (all but the class layers)
    image_size: tuple[int, ...] = (180, 320)  # (H,W), or (short side,) with the aspect ratio kept
    crop_size: tuple[int, int] | None = None
    augmentation: str = "flip"
    balance: bool = False  # weigh classes by 1/sqrt(pixel share) in the loss
    aux_weight: float = 0.4
    decoder_epochs: int = 0  # of training a decoder that refines the logits, on the frozen network; 0 = no decoder
    outlier_epochs: int = 0  # of training a head that scores outliers, on the frozen backbone; 0 = no such head
    fine_outlier_head: bool = False  # it scores at 1/8 of the image's resolution, not at the deepest features'

    def __post_init__(self):
        super().__post_init__()
        needs_crop = self.augmentation in RESIZING
        crop = f"(height,width), as augmentation={self.augmentation} changes the size of images" if needs_crop else None
        self.expect(
            dataset=(self.dataset in DATASETS, f"one of {', '.join(DATASETS)}"),
            backbone=(self.backbone in BACKBONES, f"one of {', '.join(BACKBONES)}"),
            width=(0 < self.width < float("inf"), "a factor above 0"),
            output_stride=(self.output_stride in OUTPUT_STRIDES, f"one of {', '.join(map(str, OUTPUT_STRIDES))}"),
            pretrained=(self.pretrained in ("none", "imagenet", "coco"), "none, imagenet or coco"),
            image_size=(_is_size(self.image_size, (1, 2)), "(height,width) or (short side,), in pixels"),
            augmentation=(self.augmentation in AUGMENTATIONS, f"one of {', '.join(AUGMENTATIONS)}"),
            crop_size=(
                _is_size(self.crop_size, (2,)) or (self.crop_size is None and not needs_crop),
                crop or "(height,width) in pixels, or None",
            ),
            aux_weight=(0 <= self.aux_weight < float("inf"), "a weight from 0"),
            decoder_epochs=(self.decoder_epochs >= 0, "1 or more, or 0 for no decoder"),
            outlier_epochs=(self.outlier_epochs >= 0, "1 or more, or 0 for no outlier head"),
        )

    @classmethod
    def mini(cls) -> Self:
        """Generated scenes, small enough to train on two CPU cores."""
        return cls(
            epochs=14,
            batch_size=8,
            optimizer="adamw",
            lr=3e-3,
            weight_decay=1e-2,
            schedule="poly",
            warmup=75,
            clip_norm=5.0,
            width=0.5,
            augmentation="flip_color",
            balance=True,
            outlier_epochs=8,
        )

    @classmethod
    def real(cls, dataset: str = "camvid") -> Self:
        """Photographs, at a size that two CPU cores can train."""
        recipe = cls(
            dataset=dataset,
            pretrained="imagenet",
            output_stride=16,
            image_size=(540,),
            crop_size=(360, 480),
            augmentation="scale_jitter",
            balance=True,
            epochs=40 if dataset == "camvid_cyclists" else 24,  # of 134 frames, of 367
            batch_size=8,
            optimizer="adamw",
            lr=6e-4,
            weight_decay=1e-2,
            schedule="poly",
            warmup=100,
            clip_norm=5.0,
            decoder_epochs=8,
            outlier_epochs=8,
            fine_outlier_head=True,
        )
        if dataset != "cityscapes":
            return recipe
        # 2,678 frames, an epoch takes minutes: a run is 100 of them, and the next goes on from its weights
        return replace(recipe, image_size=(384,), crop_size=(256, 256), epochs=4, decoder_epochs=2, outlier_epochs=2)

    @classmethod
    def full(cls) -> Self:
        """The course's recipe for StreetHazards: torchvision's DeepLabV3-ResNet50 from COCO weights."""
        return cls(
            dataset="streethazards",
            backbone="resnet50",
            pretrained="coco",
            image_size=(512, 512),
            augmentation="flip_color",
            epochs=30,
            batch_size=4,
            optimizer="adam",
            lr=1e-4,
            schedule="plateau",
            plateau_patience=3,
            plateau_factor=0.5,
            outlier_epochs=2,
        )


def _is_size(value: Any, lengths: tuple[int, ...]) -> bool:
    """Whether a value is a tuple of positive whole numbers, as many as one of ``lengths``."""
    sides = value if isinstance(value, tuple) else ()
    return len(sides) in lengths and all(type(side) is int and side > 0 for side in sides)
