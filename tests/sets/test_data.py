"""Images are read as they lie on disk, classes are chosen by name, and splits are disjoint and exact."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR100

from src import settings
from src.images import DataError
from src.labelled import Labelled
from src.sets import data
from src.synthetic import glyphs
from tests.sets.conftest import CLASSES, COUNTS, SIDE, TINY, picture, write_image

SUPERCLASSES = """beaver dolphin otter seal whale/aquarium_fish flatfish ray shark trout
orchid poppy rose sunflower tulip/bottle bowl can cup plate/apple mushroom orange pear sweet_pepper
clock keyboard lamp telephone television
bed chair couch table wardrobe/bee beetle butterfly caterpillar cockroach/bear leopard lion tiger wolf
bridge castle house road skyscraper/cloud forest mountain plain sea/camel cattle chimpanzee elephant kangaroo
fox porcupine possum raccoon skunk/crab lobster snail spider worm/baby boy girl man woman
crocodile dinosaur lizard snake turtle/hamster mouse rabbit shrew squirrel
maple_tree oak_tree palm_tree pine_tree willow_tree/bicycle bus motorcycle pickup_truck train
lawn_mower rocket streetcar tank tractor"""
CIFAR = sorted(SUPERCLASSES.replace("/", " ").split())


def labelled(*counts: int) -> Labelled:
    """Images of one pixel, counts[k] of class k."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return Labelled(torch.zeros(len(labels), 3, 1, 1), labels, CLASSES[: len(counts)], tuple(map(str, labels)))


# ----------------------------------------------------------------------------------------- class folders
def test_images_come_in_order_of_class_and_name(root):
    images = data.read(root, "train", SIDE)
    assert images.classes == CLASSES and images.labels.dtype == torch.int64
    assert images.labels.tolist() == [k for k in range(6) for _ in range(COUNTS["train"])]
    assert images.names == tuple(f"{name}/{i:03d}.png" for name in CLASSES for i in range(COUNTS["train"]))
    assert (images.items.dtype, images.items.shape[1:]) == (torch.uint8, (3, SIDE, SIDE))
    for index in (0, 25, 131):
        expected = np.array(Image.open(root / "train" / images.names[index]))
        assert np.array_equal(images.items[index].permute(1, 2, 0).numpy(), expected)
    test = data.read(root, "test", SIDE)
    assert data.files(root, "test") == [root / "test" / name for name in test.names]


def test_class_folders_may_lie_in_the_root(root):
    assert data.has_part(root, "test") and not data.has_part(root / "test", "test")
    for part in ("train", "anything"):
        assert data.read(root / "test", part, SIDE).names == data.read(root, "test", SIDE).names


def test_other_files_and_empty_folders_are_no_images(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("b/2.JPG", "b/1.png", "a/0.bmp"):
        write_image(picture(rng, 0), tmp_path / name)
    write_image(picture(rng, 0)[..., 0], tmp_path / "a/grey.png")
    write_image(np.dstack([picture(rng, 0), picture(rng, 0)[..., 0]]), tmp_path / "a/alpha.png")
    (tmp_path / "a/notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    images = data.read(tmp_path, "train", SIDE)
    assert images.names == ("a/0.bmp", "a/alpha.png", "a/grey.png", "b/1.png", "b/2.JPG")
    assert images.classes == ("a", "b") and images.labels.tolist() == [0] * 3 + [1] * 2
    assert (images.items[2] == images.items[2, :1]).all()  # grey in all three channels


@pytest.mark.parametrize(
    "sizes, side",
    [
        ([(16, 16)] * 3, 16),  # kept, for the encoder to enlarge
        ([(40, 40)] * 3, 32),  # larger than the encoder sees
        ([(20, 28)] * 3, 32),  # no squares
        ([(16, 16), (20, 20), (64, 40)], 32),  # mixed
    ],
)
def test_images_get_one_size(tmp_path, sizes, side):
    for number, size in enumerate(sizes):
        write_image(picture(np.random.default_rng(number), 0, size), tmp_path / f"a/{number}.png")
    assert data.read(tmp_path, "train", 32).items.shape == (3, 3, side, side)


def test_what_is_not_square_is_cut_in_its_middle(tmp_path):
    array = np.zeros((20, 40, 3), dtype=np.uint8)
    array[:, 10:30] = 200  # the middle square
    for name, image in {"wide": array, "high": array.transpose(1, 0, 2)}.items():
        write_image(image, tmp_path / f"a/{name}.png")
    assert (data.read(tmp_path, "train", 10).items[..., 1:-1, 1:-1] == 200).all()


def test_a_damaged_file_and_a_folder_without_images_are_named(tmp_path, root):
    torn = write_image(picture(np.random.default_rng(0), 0), tmp_path / "a/torn.png")
    torn.write_bytes(torn.read_bytes()[:300])
    with pytest.raises(DataError, match="a/torn.png is not a readable image"):
        data.read(tmp_path, "train", SIDE)
    with pytest.raises(DataError, match=f"{tmp_path}/lost holds neither train/<class>.*--root DIR"):
        data.read(tmp_path / "lost", "train", SIDE)
    with pytest.raises(DataError, match="neither val/<class>"):
        data.read(root, "val", SIDE)


# ----------------------------------------------------------------------------------- CIFAR-100's own form
def test_the_official_form_is_read(tmp_path, official):
    for part, pixels in official(tmp_path).items():
        images = data.read(tmp_path, part, 32)
        assert np.array_equal(images.items.numpy(), pixels) and images.classes == CLASSES
        assert images.labels.tolist() == [5 * i % 6 for i in range(len(pixels))]
        assert images.names[:3] == ("ant/00000", "fox/00001", "eel/00002")
        assert data.has_part(tmp_path, part) and data.files(tmp_path, part) == [tmp_path / data.OFFICIAL / part]
    assert not data.has_part(tmp_path, "val")
    with pytest.raises(DataError, match="the parts train and test, not val"):
        data.read(tmp_path, "val", 32)
    splits = data.datasets(replace(TINY, dataset="cifar100", image_size=32), tmp_path)
    assert {split: len(images) for split, images in splits.items()} == {"train": 72, "val": 60, "test": 66}


@pytest.mark.parametrize("name", ["train", "test", "meta"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"damaged")])
def test_a_damaged_official_form_is_refused(tmp_path, official, name, damage):
    official(tmp_path)
    damage(tmp_path / data.OFFICIAL / name)
    with pytest.raises(DataError, match=f"{data.OFFICIAL} is incomplete or damaged.*run ./download.sh cifar100"):
        data.read(tmp_path, "train", 32)


def test_the_download_script_fetches_what_torchvision_expects():
    rows = (settings.ROOT / "assets/datasets.tsv").read_text().splitlines()
    (row,) = [row.split("\t") for row in rows if row.startswith("cifar100\t")]
    assert row[1] == data.default_root("cifar100").name and row[2] == CIFAR100.filename and row[3] == "."
    assert row[4] == f"md5:{CIFAR100.tgz_md5}" and row[7].split()[0] == CIFAR100.url
    assert CIFAR100.base_folder == data.OFFICIAL


# ------------------------------------------------------------------------------------------------ classes
def test_the_diverse_classes_are_one_of_each_superclass():
    groups = [group.split() for group in SUPERCLASSES.replace("\n", "/").split("/")]
    assert len(CIFAR) == 100 and [len(group) for group in groups] == [5] * 20
    assert tuple(min(group) for group in groups) == data.DIVERSE


@pytest.mark.parametrize(
    "wanted, exclude, expected",
    [
        ((), (), CIFAR),
        (("first20",), ("wolf",), CIFAR[:20]),
        ((), ("first20",), CIFAR[20:]),
        (("diverse20",), (), list(data.DIVERSE)),
        (("wolf", "first2", "apple"), (), ["wolf", "apple", "aquarium_fish"]),  # none twice
    ],
)
def test_classes_are_chosen(wanted, exclude, expected):
    assert data.choose_classes(CIFAR, wanted, exclude) == tuple(expected)


def test_classes_may_be_named_by_numbers():
    """As the command line gives them: ``classes=3,7`` becomes (3, 7)."""
    assert data.choose_classes(("3", "5", "7"), (3, 7)) == ("3", "7")


@pytest.mark.parametrize(
    "wanted, exclude, message",
    [
        (("unicorn",), (), "no class unicorn here"),
        ((), ("unicorn",), "no class unicorn here"),
        (("first2",), ("apple",), "two are needed"),
        (("first101",), (), "first101: there are 100 classes"),
        (("firsts",), (), "no class firsts here"),
    ],
)
def test_classes_that_are_not_there_are_named(wanted, exclude, message):
    with pytest.raises(settings.InputError, match=message):
        data.choose_classes(CIFAR, wanted, exclude)


def test_unseen_classes_are_drawn_by_the_seed():
    seen, unseen = data.hold_out_classes(CIFAR, 20, 42)
    assert len(seen) == 80 and len(unseen) == 20 and sorted({*seen, *unseen}) == CIFAR
    assert data.hold_out_classes(CIFAR, 20, 42) == (seen, unseen) != data.hold_out_classes(CIFAR, 20, 43)
    for count in (1, 5):
        with pytest.raises(settings.InputError, match=f"unseen={count} of 6 classes"):
            data.hold_out_classes(CLASSES, count, 0)


# ------------------------------------------------------------------------------------------------- splits
def members(images: Labelled, part: torch.Tensor) -> list[int]:
    return torch.bincount(images.labels[part], minlength=len(images.classes)).tolist()


@pytest.mark.parametrize(
    "shares, expected",
    [
        ((9, 1), [[9, 9, 9], [1, 1, 1]]),
        ((4, 3, 2), [[4] * 3, [3] * 3, [2] * 3]),
        ((0.5, 0.25), [[5, 10, 6], [2, 5, 3]]),  # halves are rounded to the even number
        ((0.6, 0.2, 0.15), [[6, 12, 8], [2, 4, 3], [2, 3, 2]]),
    ],
)
def test_splits_hold_what_was_asked_of_every_class(shares, expected):
    images = labelled(10, 20, 13)
    parts = data.split(images, images.classes, shares, 42)
    assert [members(images, part) for part in parts] == expected
    rows = torch.cat(parts)
    assert len(rows.unique()) == len(rows)
    assert [members(images, part)[1] for part in data.split(images, ("cat", "ant"), shares, 0)] == [0] * len(shares)


@pytest.mark.parametrize("shares", [(10, 2), (8, 1, 2), (0.99, 0.01)])
def test_more_images_than_there_are_cannot_be_had(shares):
    with pytest.raises(settings.InputError, match="class ant has 10 images.*per_class"):
        data.split(labelled(10, 20, 13), CLASSES[:3], shares, 42)


@pytest.mark.parametrize("shares", [(0.9, 0.1), (0.5, 0.5), (0.7, 0.15, 0.15), (0.55, 0.34, 0.11)])
@pytest.mark.parametrize("count", [10, 11, 15, 19, 35])
def test_fractions_never_ask_for_more_than_there_is(shares, count):
    """0.9 and 0.1 of 15 are 13.5 and 1.5, which must not both be rounded up."""
    images = labelled(count, count)
    parts = data.split(images, images.classes, shares, 0)
    for part, share in zip(parts, shares, strict=True):
        assert all(abs(number - share * count) <= 1 for number in members(images, part))
    assert sum(map(len, parts)) <= 2 * count


def shown(part: Labelled) -> set[str]:
    """The classes that a split has images of, by their names on disk; its labels must say the same."""
    assert [part.classes[k] for k in part.labels.tolist()] == [name.split("/")[0] for name in part.names]
    return {name.split("/")[0] for name in part.names}


def test_train_and_val_are_carved_from_train_and_test_is_its_own(root):
    parts = data.datasets(TINY, root)
    counts = {split: torch.bincount(part.labels, minlength=6).tolist() for split, part in parts.items()}
    assert counts == {"train": [12] * 6, "val": [10] * 6, "test": [11] * 6}
    pixels = [{image.numpy().tobytes() for image in part.items} for part in parts.values()]
    assert sum(map(len, pixels)) == len(set.union(*pixels)) == 6 * (12 + 10 + 11)  # none in two splits
    assert all(shown(part) == set(CLASSES) for part in parts.values())
    assert data.distribution(TINY, root)["val"] == {"images": 60, "classes": 6}


def test_splits_follow_the_seed(root):
    names = [data.datasets(replace(TINY, seed=seed), root)["val"].names for seed in (42, 42, 1)]
    assert names[0] == names[1] != names[2]


def test_test_may_be_carved_too(root):
    parts = data.datasets(replace(TINY, per_class=(0.5, 0.25, 0.2)), root)
    assert {split: len(part) for split, part in parts.items()} == {"train": 66, "val": 36, "test": 24}
    assert len(set().union(*(part.names for part in parts.values()))) == 126
    test = data.read(root, "test", SIDE).items
    assert not (parts["test"].items[:, None] == test[None]).flatten(2).all(2).any()


def test_unseen_classes_are_in_no_other_split(root):
    parts = data.datasets(replace(TINY, unseen=2), root)
    unseen = shown(parts["unseen"])
    assert len(unseen) == 2 and len(parts["unseen"]) == 2 * COUNTS["train"]
    for split, count in {"train": 12, "val": 10, "test": 11}.items():
        assert shown(parts[split]) == set(CLASSES) - unseen and len(parts[split]) == 4 * count


def test_test_may_have_other_classes_beside_those_asked_for(root, tmp_path):
    """Parts number their classes each for itself."""
    shutil.copytree(root, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy/test/ant")
    write_image(picture(np.random.default_rng(0), 0), tmp_path / "copy/test/aphid/0.png")
    parts = data.datasets(replace(TINY, classes=("fox", "first3"), exclude=("ant",)), tmp_path / "copy")
    assert all(shown(part) == {"bee", "fox", "cat"} for part in parts.values())
    with pytest.raises(settings.InputError, match="no class ant"):
        data.datasets(TINY, tmp_path / "copy")


def test_a_data_set_without_test_images_has_no_test_split(root, tmp_path):
    shutil.copytree(root / "train", tmp_path / "copy/train")
    assert set(data.datasets(TINY, tmp_path / "copy")) == {"train", "val"}


def test_class_folders_directly_are_not_divided(root):
    """All their images count as the split that is evaluated: some of them would have been trained on."""
    with pytest.raises(DataError, match=f"{root}/test holds no train/<class>.*./download.sh cifar100"):
        data.datasets(replace(TINY, per_class=(6, 5)), root / "test")


def test_mini_data_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(glyphs, "CLASSES", glyphs.CLASSES[:2])
    data.write_mini(tmp_path / "sets")
    counts = Counter(path.parent.parent.name for path in (tmp_path / "sets").rglob("*.png"))
    assert counts == {split: 2 * count for split, count in glyphs.COUNTS.items()}
