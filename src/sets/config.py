"""What the sets system can vary, and its profiles."""

import math
from dataclasses import dataclass
from typing import Self

from src.config import SystemConfig

SET_SIZE = 10  # images in a set
HEADS = ("transformer", "attention", "mlp", "posterior")
BACKBONES = ("resnet18", "resnet34", "resnet50", "mobilenet_v2", "squeezenet1_0", "convnet")
REAL = ("cifar100", "folder")  # the data sets that profile real trains on
FOLDERS = {"mini": "mini/sets"}
ADJUSTABLE = ("classes",)  # an evaluation may be of sets of some of the classes trained on


@dataclass(frozen=True)
class Config(SystemConfig):
    """Settings of data, encoder, head and training; ``batch_size`` counts sets."""

    REMOVED = {"attention": "dot", "positional": False}

    classes: tuple[str, ...] = ()  # names, firstK or diverse20; () = all
    exclude: tuple[str, ...] = ()  # classes left out, named likewise
    unseen: int = 0  # classes kept from training, for the split "unseen"
    per_class: tuple[float, ...] = (450, 50)  # train and val (and test) images of each class, or fractions of them
    train_sets: int = 10_000  # an epoch, where frozen; end to end an epoch is one pass over the images
    val_sets: int = 2_000  # by which the epoch is chosen
    test_sets: int = 10_000  # of an evaluation
    set_size: int = SET_SIZE
    backbone: str = "resnet18"
    pretrained: str = "imagenet"  # imagenet | none
    frozen: bool = True  # features computed once; else the encoder learns too, from the pixels
    image_size: int = 224  # side of what the backbone sees
    head: str = "transformer"  # transformer | attention | mlp | posterior
    width: int = 256
    layers: int = 4
    heads: int = 4
    dropout: float = 0.1
    pool: tuple[int, int] = (16, 10)  # end to end: classes x images that a batch's sets are drawn from
    class_weight: float = 0.0  # end to end: weight of the loss over each image's class

    def __post_init__(self):
        super().__post_init__()
        smallest_image = 16 if self.backbone == "convnet" else 32
        self.expect(
            unseen=(self.unseen == 0 or self.unseen >= 2, "0, or 2 or more classes"),
            per_class=(_are_shares(self.per_class), "two or three positive numbers: train,val or train,val,test"),
            train_sets=(self.train_sets >= 1, "1 or more sets"),
            val_sets=(self.val_sets >= 1, "1 or more sets"),
            test_sets=(self.test_sets >= 1, "1 or more sets"),
            set_size=(self.set_size >= 3, "3 or more images"),
            backbone=(self.backbone in BACKBONES, f"one of {', '.join(BACKBONES)}"),
            pretrained=(self.pretrained in ("imagenet", "none"), "imagenet or none"),
            image_size=(self.image_size >= smallest_image, f"{smallest_image} or more pixels"),
            head=(self.head in HEADS, f"one of {', '.join(HEADS)}"),
            heads=(self.heads >= 1, "1 or more"),
            width=(self.width >= 1 and self.width % max(self.heads, 1) == 0, f"a multiple of heads={self.heads}"),
            layers=(self.layers >= 1, "1 or more"),
            dropout=(0 <= self.dropout < 1, "a share from 0 to below 1"),
            pool=(self._fits_sets(self.pool), f"classes,images: 2 or more of set_size={self.set_size} or more"),
            class_weight=(0 <= self.class_weight < math.inf, "a number from 0"),
        )

    def _fits_sets(self, pool: tuple) -> bool:
        if len(pool) != 2 or not all(isinstance(count, int) and count >= 1 for count in pool):
            return False
        return self.frozen or (pool[0] >= 2 and pool[1] >= self.set_size)

    @property
    def weights_name(self) -> str:
        """The data set; of a frozen encoder also backbone and head; and the choice of classes, where there is one."""
        parts = [self.dataset]
        if self.frozen:
            parts += [self.backbone, self.head]
        parts += [str(name) for name in self.classes]
        parts += [f"without_{name}" for name in self.exclude]
        if self.unseen:
            parts.append(f"unseen{self.unseen}")
        return "_".join(parts)

    @classmethod
    def mini(cls) -> Self:
        """The synthetic glyphs, end to end, minutes on a CPU."""
        return cls(
            per_class=(90, 10),
            test_sets=2_000,
            backbone="convnet",
            pretrained="none",
            frozen=False,
            image_size=32,
            class_weight=1.0,
            epochs=45,
            batch_size=64,
            optimizer="adamw",
            lr=1e-3,
            weight_decay=1e-2,
            schedule="cosine",
            warmup=50,
            clip_norm=1.0,
        )

    @classmethod
    def real(cls, dataset: str = "cifar100") -> Self:
        """CIFAR-100 or class folders of one's own, end to end, hours on two CPU cores."""
        return cls(
            dataset=dataset,
            per_class=(450, 50) if dataset == "cifar100" else (0.8, 0.2),
            backbone="mobilenet_v2",
            frozen=False,
            image_size=96,
            head="posterior",
            class_weight=1.0,
            epochs=14,
            batch_size=64,
            optimizer="adamw",
            lr=7e-4,
            weight_decay=5e-2,
            schedule="cosine",
            warmup=200,
            clip_norm=1.0,
        )

    @classmethod
    def full(cls) -> Self:
        """The course's recipe: frozen ResNet-18 features, attention over the set."""
        return cls(
            dataset="cifar100",
            test_sets=2_000,
            epochs=50,
            batch_size=32,
            optimizer="adamw",
            lr=3e-4,
            weight_decay=1e-4,
            patience=10,
        )


def _are_shares(per_class: tuple) -> bool:
    are_numbers = all(isinstance(share, int | float) and 0 < share < math.inf for share in per_class)
    return len(per_class) in (2, 3) and are_numbers
