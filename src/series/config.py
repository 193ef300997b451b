"""Settings of the series system. Imports no torch, so that wrong ones are reported at once."""

from dataclasses import dataclass
from typing import Self

from src import settings
from src.config import SystemConfig

REAL = ("plots",)  # the data sets that profile real trains on
FOLDERS = {"mini": "mini/series", "plots": "series_plots"}  # below DATA_DIR, where not the data set's name
ADJUSTABLE = ()  # no setting can change once a model is trained
GENERATED = "generated"  # the data set that is on no disk: fresh series for every split
PRETRAINED = settings.WEIGHTS_DIR / "series" / "generated.pth"  # on generated series alone
ENVELOPE = "envelope_resnet"  # the backbone that sees the line's envelope; all others see the picture
FLIPS = ("horizontal", "vertical")  # neither changes the class: time, or the value, runs backwards


@dataclass(frozen=True)
class Config(SystemConfig):
    """What the series system can vary."""

    RENAMED = {
        "average_flips": "tta",
        "look_weight": "activation_weight",
        ("backbone", "trace_resnet"): ENVELOPE,
        ("method", "from_numbers summary"): "from_numbers",  # of an ablation's record
    }
    REMOVED = {
        "label_smoothing": 0.0,
        "mixup": 0.0,
        "cutout": 0.0,
        "noise": 0.0,
        "color_jitter": 0.0,
        "rotation": 0.0,
    }

    classes: tuple[str, ...] = ()  # () = all
    backbone: str = ENVELOPE  # or one of src.backbones, on the picture
    size: tuple[int, int] = (120, 160)  # height and width of pictures
    axes: bool = True  # pictures with axes, grid and labels; else the line alone
    width: int = 32  # channels of the first stage of the network along the envelope
    dropout: tuple[float, ...] = (0.3, 0.3, 0.2)  # before each layer of the head
    generated: int = 0  # series of each class that are drawn anew for every epoch, in place of the training split
    folds: int = 5  # parts of a training split that brings no validation split
    cross_validate: bool = False  # a network for each fold, then one for all; else the first fold validates
    flips: tuple[str, ...] = FLIPS  # at random in training
    tta: bool = True  # test-time augmentation: probabilities are the mean over the flips
    activation_weight: float = 0.0  # of the loss that draws attention to recorded events

    def __post_init__(self):
        super().__post_init__()
        self.expect(
            classes=(_are_classes(self.classes), "two class names or more, none twice, or () for all"),
            size=(
                len(self.size) == 2 and all(type(side) is int and side >= 32 for side in self.size),
                "height and width, each 32 pixels or more",
            ),
            width=(self.width >= 1, "1 channel or more"),
            dropout=(
                len(self.dropout) == 3 and all(isinstance(p, int | float) and 0 <= p < 1 for p in self.dropout),
                "three shares from 0 to below 1",
            ),
            generated=(self.generated >= 0, "0 or more series of each class"),
            folds=(self.folds >= 2, "2 or more"),
            flips=(all(name in FLIPS for name in self.flips), f"names among {', '.join(FLIPS)}, or ()"),
            activation_weight=(0 <= self.activation_weight < float("inf"), "a number from 0"),
        )
        if self.cross_validate:  # every plot trains the last network: none is left to choose an epoch by
            self.expect(
                patience=(not self.patience, "0 with cross_validate, which keeps the last epoch"),
                schedule=(self.schedule != "plateau", "another one with cross_validate, which validates nothing"),
            )

    @property
    def weights_name(self) -> str:
        """By data set; of another backbone or of some classes under a name of their own."""
        of_pictures = [] if self.backbone == ENVELOPE else [self.backbone, *([] if self.axes else ["line"])]
        return "_".join([self.dataset, *of_pictures, *self.classes])

    @classmethod
    def mini(cls) -> Self:
        return cls(
            generated=6000,
            epochs=8,
            batch_size=128,
            optimizer="adamw",
            lr=3e-3,
            weight_decay=1e-2,
            schedule="cosine",
            warmup=200,
            clip_norm=5.0,
            dropout=(0.1, 0.1, 0.1),
            activation_weight=0.3,
        )

    @classmethod
    def real(cls, dataset: str = "plots") -> Self:
        """Starts from PRETRAINED: --weights assets/weights/series/generated.pth."""
        return cls(
            dataset=dataset,
            cross_validate=True,
            epochs=3,
            batch_size=32,
            optimizer="adamw",
            lr=1e-4,
            weight_decay=1e-2,
            schedule="cosine",
            warmup=50,
            clip_norm=5.0,
        )

    @classmethod
    def full(cls) -> Self:
        """The course's recipe, ResNet-50 on pictures, but with the epoch chosen on validation data."""
        return cls(
            dataset="plots",
            backbone="resnet50",
            size=(224, 224),
            epochs=30,
            batch_size=32,
            lr=1e-3,
            schedule="plateau",
            flips=("horizontal",),
            tta=False,
        )


def _are_classes(names: tuple) -> bool:
    are_names = all(type(name) is str for name in names)
    return not names or are_names and len(set(names)) == len(names) >= 2
