"""Images are read as they lie on disk, splits are disjoint and exact, and every set holds one odd image and no more."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR100

from src import settings
from src.sets import data, default_root
from src.sets.data import DataError, Images, Sampler, Sets, check, distinct, fixed_sets
from tests.sets.conftest import CLASSES, COUNTS, SIDE, picture, write_image

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


def labelled(*counts: int, seed: int = 0) -> Images:
    """Images of one pixel, in random order, counts[k] of class k; the pixel of image i is i modulo 256."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    pixels = (torch.arange(len(labels)) % 256).to(torch.uint8)[:, None, None, None].expand(-1, 3, 1, 1)
    names = tuple(f"{CLASSES[k]}/{i:03d}" for i, k in enumerate(labels.tolist()))
    return Images(pixels.contiguous(), labels, CLASSES[: len(counts)], names)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_uniform(counts: torch.Tensor) -> None:
    """Every count within five standard deviations of an equal share."""
    total, share = int(counts.sum()), 1 / len(counts)
    assert ((counts / total - share).abs() < 5 * (share * (1 - share) / total) ** 0.5).all(), counts


# -------------------------------------------------------------------------------------- from the disk
def test_images_come_in_order_of_class_and_name(root):
    images = data.read(root, "train", SIDE)
    assert images.classes == CLASSES and len(images) == 6 * COUNTS["train"]
    assert images.labels.tolist() == [k for k in range(6) for _ in range(COUNTS["train"])]
    assert images.names == tuple(f"{name}/{i:03d}.png" for name in CLASSES for i in range(COUNTS["train"]))
    assert (images.pixels.dtype, images.pixels.shape[1:]) == (torch.uint8, (3, SIDE, SIDE))
    for index in (0, 25, 131):
        expected = np.array(Image.open(root / "train" / images.names[index]))
        assert np.array_equal(images.pixels[index].permute(1, 2, 0).numpy(), expected)


def test_parts_are_read_apart(root):
    test = data.read(root, "test", SIDE)
    assert len(test) == 6 * COUNTS["test"] and data.has_part(root, "test")
    assert not (test.pixels[:, None] == data.read(root, "train", SIDE).pixels[None]).flatten(2).all(2).any()
    assert data.files(root, "test") == [root / "test" / name for name in test.names]


def test_class_folders_may_lie_in_the_root(root):
    assert not data.has_part(root / "test", "test")
    for part in ("train", "val", "anything"):
        assert data.read(root / "test", part, SIDE).names == data.read(root, "test", SIDE).names


def test_other_files_and_empty_folders_are_no_images(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("b/2.JPG", "b/1.png", "a/0.bmp", "a/9.tif"):
        write_image(picture(rng, 0), tmp_path / name)
    write_image(picture(rng, 0)[..., 0], tmp_path / "a/grey.png")
    write_image(np.dstack([picture(rng, 0), picture(rng, 0)[..., 0]]), tmp_path / "a/alpha.png")
    (tmp_path / "a/notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    images = data.read(tmp_path, "train", SIDE)
    assert images.classes == ("a", "b") and images.labels.tolist() == [0] * 4 + [1] * 2
    assert images.names == ("a/0.bmp", "a/9.tif", "a/alpha.png", "a/grey.png", "b/1.png", "b/2.JPG")
    assert (images.pixels[3] == images.pixels[3, :1]).all()  # grey in all three channels


@pytest.mark.parametrize("sizes, side", [
    ([(16, 16)] * 3, 16),  # kept, for the encoder to enlarge
    ([(32, 32)] * 3, 32),
    ([(40, 40)] * 3, 32),  # larger than the encoder sees
    ([(20, 28)] * 3, 32),  # no squares
    ([(16, 16), (20, 20), (64, 40)], 32),  # mixed
])  # fmt: skip
def test_sizes(tmp_path, sizes, side):
    for number, size in enumerate(sizes):
        write_image(picture(np.random.default_rng(number), 0, size), tmp_path / f"a/{number}.png")
    assert data.read(tmp_path, "train", 32).pixels.shape == (3, 3, side, side)


def test_what_is_not_square_is_cut_in_its_middle(tmp_path):
    array = np.zeros((20, 40, 3), dtype=np.uint8)
    array[:, 10:30] = 200  # the middle square
    for name, image in {"wide": array, "high": array.transpose(1, 0, 2)}.items():
        write_image(image, tmp_path / f"a/{name}.png")
    assert (data.read(tmp_path, "train", 10).pixels[..., 1:-1, 1:-1] == 200).all()


def test_files_without_classes(root):
    found = [root / "test" / name for name in ("fox/003.png", "ant/001.png", "bee/010.png")]
    images = data.from_files(found, SIDE)
    assert images.names == ("fox/003.png", "ant/001.png", "bee/010.png") and images.labels.tolist() == [0, 0, 0]
    assert np.array_equal(images.pixels[0].permute(1, 2, 0).numpy(), np.array(Image.open(found[0])))


def test_a_damaged_file_is_named(tmp_path):
    for name in ("good", "torn"):
        write_image(picture(np.random.default_rng(0), 0), tmp_path / f"a/{name}.png")
    torn = tmp_path / "a/torn.png"
    torn.write_bytes(torn.read_bytes()[:300])
    with pytest.raises(DataError, match="a/torn.png is not a readable image"):
        data.read(tmp_path, "train", SIDE)


def test_a_folder_without_images_is_named(tmp_path, root):
    for folder in (tmp_path, tmp_path / "lost"):
        with pytest.raises(DataError, match=f"{folder} holds neither train/<class>.*--root DIR"):
            data.read(folder, "train", SIDE)
    with pytest.raises(DataError, match="neither val/<class>"):
        data.read(root, "val", SIDE)


# ----------------------------------------------------------------------------------- CIFAR-100's own form
def test_the_official_form_is_read(tmp_path, official):
    pixels = official(tmp_path)
    for part, expected in pixels.items():
        images = data.read(tmp_path, part, 32)
        assert np.array_equal(images.pixels.numpy(), expected) and images.classes == CLASSES
        assert images.labels.tolist() == [5 * i % 6 for i in range(len(expected))]
        assert images.names[:3] == ("ant/00000", "fox/00001", "eel/00002")
        assert data.has_part(tmp_path, part) and data.files(tmp_path, part) == [tmp_path / data.OFFICIAL / part]


def test_the_official_test_images_are_those_of_no_other_part(tmp_path, official):
    official(tmp_path)
    assert not data.has_part(tmp_path, "val")
    with pytest.raises(settings.InputError, match="val"):
        data.read(tmp_path, "val", 32)


@pytest.mark.parametrize("name", ["train", "test", "meta"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"damaged")])
def test_an_official_form_that_is_not_whole_is_refused(tmp_path, official, name, damage):
    official(tmp_path)
    damage(tmp_path / data.OFFICIAL / name)
    with pytest.raises(
        DataError,
        match=f"{tmp_path / data.OFFICIAL} is incomplete or damaged.*remove that folder and run ./download.sh cifar100",
    ):
        data.read(tmp_path, "train", 32)


def test_the_download_script_fetches_what_torchvision_expects():
    rows = (settings.ROOT / "assets/datasets.tsv").read_text().splitlines()
    (row,) = [row.split("\t") for row in rows if row.startswith("cifar100\t")]
    assert row[1] == default_root("cifar100").name and row[2] == CIFAR100.filename and row[3] == "."
    assert row[4] == f"md5:{CIFAR100.tgz_md5}" and row[7].split()[0] == CIFAR100.url
    assert CIFAR100.base_folder == data.OFFICIAL


# ------------------------------------------------------------------------------------------------ classes
def test_the_diverse_classes_are_one_of_each_superclass():
    groups = [group.split() for group in SUPERCLASSES.replace("\n", "/").split("/")]
    assert len(CIFAR) == 100 and [len(group) for group in groups] == [5] * 20
    assert tuple(min(group) for group in groups) == data.DIVERSE


@pytest.mark.parametrize("wanted, exclude, expected", [
    ((), (), CIFAR),
    (("first20",), (), CIFAR[:20]),
    ((), ("first20",), CIFAR[20:]),
    (("diverse20",), (), list(data.DIVERSE)),
    ((), ("diverse20",), [name for name in CIFAR if name not in data.DIVERSE]),
    (("wolf", "apple"), (), ["wolf", "apple"]),
    (("wolf", "first2", "apple"), (), ["wolf", "apple", "aquarium_fish"]),  # none twice
    (("first3",), ("apple",), ["aquarium_fish", "baby"]),
    (("first20",), ("wolf",), CIFAR[:20]),
])  # fmt: skip
def test_classes_are_chosen(wanted, exclude, expected):
    assert data.choose_classes(CIFAR, wanted, exclude) == tuple(expected)


def test_the_first_classes_are_so_by_name():
    assert data.choose_classes(("dog", "cat", "ant"), ("first2",)) == ("ant", "cat")


@pytest.mark.parametrize("wanted, exclude, named", [
    (("unicorn",), (), "no class unicorn here"), ((), ("unicorn",), "no class unicorn here"),
    (("apple",), (), "two are needed"), (("first2",), ("apple",), "two are needed"),
    (("first1",), (), "two are needed"), (("first101",), (), "first101"), (("firsts",), (), "no class firsts here"),
])  # fmt: skip
def test_classes_that_are_not_there_are_named(wanted, exclude, named):
    with pytest.raises(settings.InputError, match=named):
        data.choose_classes(CIFAR, wanted, exclude)


def test_classes_may_be_named_by_numbers():
    """As the command line gives them: ``classes=3,7`` becomes (3, 7)."""
    assert data.choose_classes(("3", "5", "7"), (3, 7)) == ("3", "7")


def test_images_of_some_classes():
    images = labelled(3, 4, 5, 6)
    found = images.of(("dog", "bee"))
    assert found.dtype == torch.int64 and found.tolist() == [
        i for i, k in enumerate(images.labels.tolist()) if k in (1, 3)
    ]
    part = images.subset(found)
    assert part.classes == images.classes and Counter(part.labels.tolist()) == {1: 4, 3: 6}
    assert part.names == tuple(images.names[i] for i in found)
    assert torch.equal(part.pixels[:, 0, 0, 0], found.to(torch.uint8))
    with pytest.raises(settings.InputError, match="no class fly; there are ant, bee, cat, dog"):
        images.of(("ant", "fly"))


# ------------------------------------------------------------------------------------------------- splits
def members(images: Images, part: torch.Tensor) -> Counter:
    return Counter(images.labels[part].tolist())


@pytest.mark.parametrize("shares, expected", [
    ((9, 1), [[9, 9, 9], [1, 1, 1]]), ((4, 3, 2), [[4] * 3, [3] * 3, [2] * 3]), ((10, 2), None),
    ((0.5, 0.25), [[5, 10, 6], [2, 5, 3]]),  # halves are rounded to the even number
    ((0.6, 0.2, 0.15), [[6, 12, 8], [2, 4, 3], [2, 3, 2]]), ((0.8, 0.2), [[8, 16, 10], [2, 4, 3]]),
    ((0.99, 0.01), None), ((0, 5), None), ((5, 0), None), ((8, 1, 2), None),
])  # fmt: skip
def test_splits_hold_what_was_asked_of_every_class(shares, expected):
    images = labelled(10, 20, 13)
    if expected is None:
        with pytest.raises(settings.InputError, match="class ant has 10 images.*per_class"):
            data.split(images, images.classes, shares, 42)
        return
    parts = data.split(images, images.classes, shares, 42)
    assert [[members(images, part)[k] for k in range(3)] for part in parts] == expected
    rows = torch.cat(parts)
    assert len(rows.unique()) == len(rows)


@pytest.mark.parametrize("shares", [(0.9, 0.1), (0.5, 0.5), (0.7, 0.15, 0.15), (0.55, 0.34, 0.11)])
@pytest.mark.parametrize("count", [10, 11, 15, 19, 35])
def test_fractions_of_a_whole_never_ask_for_more_than_there_is(shares, count):
    """0.9 and 0.1 of 15 are 13.5 and 1.5, which must not both be rounded up."""
    images = labelled(count, count)
    parts = data.split(images, images.classes, shares, 0)
    for part, share in zip(parts, shares, strict=True):
        assert all(abs(found - share * count) <= 1 for found in members(images, part).values())
    assert sum(map(len, parts)) <= 2 * count


def test_splits_depend_on_the_seed_alone():
    images = labelled(10, 20, 13)
    first, again, other = (data.split(images, images.classes, (5, 4), seed) for seed in (1, 1, 2))
    assert all(map(torch.equal, first, again))
    assert all(set(a.tolist()) != set(b.tolist()) for a, b in zip(first, other, strict=True))


def test_splits_hold_the_classes_asked_for_alone():
    images = labelled(10, 20, 13)
    for part in data.split(images, ("cat", "ant"), (5, 4), 0):
        assert set(members(images, part)) == {0, 2}


def test_class_disjoint_splits():
    seen, unseen = data.hold_out_classes(CIFAR, 20, 42)
    assert len(seen) == 80 and len(unseen) == 20 and sorted({*seen, *unseen}) == CIFAR
    assert list(seen) == sorted(seen) and list(unseen) == sorted(unseen)
    assert data.hold_out_classes(CIFAR, 20, 42) == (seen, unseen) != data.hold_out_classes(CIFAR, 20, 43)
    for count in (-1, 1, 5, 6, 7):
        with pytest.raises(settings.InputError, match=f"unseen={count} of 6 classes"):
            data.hold_out_classes(CLASSES, count, 0)
    assert [len(part) for part in data.hold_out_classes(CLASSES, 4, 0)] == [2, 4]


# --------------------------------------------------------------------------------------------------- sets
UNEQUAL = (10, 31, 12, 11, 47)


def test_a_set_is_nine_of_one_class_and_one_of_another():
    images = labelled(*UNEQUAL)
    sets = Sampler(images.labels, images.classes).draw(3000, generator())
    assert sets.indices.shape == (3000, 10) and sets.indices.dtype == sets.position.dtype == torch.int64
    for indices, position in zip(sets.indices.tolist(), sets.position.tolist(), strict=True):
        classes = [int(images.labels[i]) for i in indices]
        odd = classes.pop(position)
        assert len(set(classes)) == 1 and odd not in classes and len(set(indices)) == 10


@pytest.mark.parametrize("size", [3, 7, 10])
def test_positions_and_classes_are_uniform(size):
    images = labelled(*UNEQUAL)
    sets = Sampler(images.labels).draw(40_000, generator(), size)
    assert_uniform(torch.bincount(sets.position, minlength=size))
    classes = images.labels[sets.indices]
    anchor = classes.mode(1).values
    odd = classes.gather(1, sets.position[:, None])[:, 0]
    assert_uniform(torch.bincount(anchor, minlength=5))
    pairs = torch.bincount(anchor * 5 + odd, minlength=25).reshape(5, 5)
    assert (pairs.diagonal() == 0).all()
    assert_uniform(pairs[~torch.eye(5, dtype=torch.bool)])
    assert check(sets, images.labels)["images"] == len(images)


@pytest.mark.parametrize("labels", [labelled(12, 10, 30).labels, labelled(30, 12, 10).labels,
                                    torch.tensor([7, 2, 9]).repeat(11)])  # fmt: skip
def test_every_image_of_a_class_is_as_likely_as_the_others(labels):
    sets = Sampler(labels).draw(20_000, generator())
    is_odd = torch.zeros_like(sets.indices, dtype=torch.bool).scatter(1, sets.position[:, None], True)
    for of_role in (sets.indices[is_odd], sets.indices[~is_odd]):
        counts = torch.bincount(of_role, minlength=len(labels))
        for label in labels.unique():
            assert_uniform(counts[labels == label])


def test_distinct_numbers_are_every_subset_alike_often():
    below = torch.tensor([5, 3, 7]).repeat_interleave(20_000)
    found = distinct(below, 3, generator()).sort(1).values
    assert (found[:, 1:] > found[:, :-1]).all() and (found >= 0).all() and (found < below[:, None]).all()
    for top, subsets in ((5, 10), (7, 35)):
        rows, counts = found[below == top].unique(dim=0, return_counts=True)
        assert len(rows) == subsets
        assert_uniform(counts)
    assert (found[below == 3] == torch.arange(3)).all()


def test_the_same_generator_draws_the_same_sets():
    images = labelled(*UNEQUAL)
    sampler, drawing = Sampler(images.labels), generator(5)
    first, second = sampler.draw(50, drawing), sampler.draw(50, drawing)
    assert all(map(torch.equal, first, sampler.draw(50, generator(5))))
    assert not torch.equal(first.indices, second.indices) and not torch.equal(first.position, second.position)
    state = torch.random.get_rng_state()
    fixed = fixed_sets(images, 50, 5)
    assert all(map(torch.equal, fixed, first)) and not torch.equal(fixed.indices, fixed_sets(images, 50, 6).indices)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_sets_without_an_odd_image():
    images = labelled(*UNEQUAL)
    sets = fixed_sets(images, 2000, 0, odd=False)
    classes = images.labels[sets.indices]
    assert (classes == classes[:, :1]).all() and (sets.position == -1).all()
    assert all(len(set(row)) == 10 for row in sets.indices.tolist())
    assert_uniform(torch.bincount(classes[:, 0]))


def test_a_class_that_is_too_small_is_named():
    images = labelled(20, 9, 20)
    with pytest.raises(settings.InputError, match="bee has 9 images: too few for sets of 10"):
        fixed_sets(images, 5, 0)
    with pytest.raises(settings.InputError, match="class 1 has 9 images"):
        Sampler(images.labels).draw(5, generator())
    check(fixed_sets(images, 500, 0, size=9), images.labels)
    few = images.subset((images.labels > 0).nonzero()[:, 0])  # bee is the first of the classes left
    with pytest.raises(settings.InputError, match="bee has 9 images"):
        fixed_sets(few, 5, 0)
    with pytest.raises(settings.InputError, match="at least two classes"):
        Sampler(torch.zeros(20, dtype=torch.int64))


def test_a_pool_is_so_many_images_of_so_many_classes():
    images = labelled(*UNEQUAL)
    sampler, drawing, chosen = Sampler(images.labels, images.classes), generator(), Counter()
    for _ in range(500):
        pool = sampler.pool(3, 10, drawing)
        assert len(pool.unique()) == 30
        grouped = images.labels[pool].reshape(3, 10)
        assert (grouped == grouped[:, :1]).all() and len(grouped[:, 0].unique()) == 3
        chosen.update(grouped[:, 0].tolist())
    assert_uniform(torch.tensor([chosen[k] for k in range(5)]))
    assert torch.equal(sampler.pool(2, 4, generator(1)), sampler.pool(2, 4, generator(1)))


@pytest.mark.parametrize("classes, each", [(6, 10), (2, 11)])
def test_a_pool_that_does_not_fit_is_refused(classes, each):
    images = labelled(*UNEQUAL)
    with pytest.raises(settings.InputError, match=f"{classes} classes x {each} images.*5 classes.*ant has 10 images"):
        Sampler(images.labels, images.classes).pool(classes, each, generator())


# -------------------------------------------------------------------------------------------------- check
@pytest.fixture
def drawn() -> tuple[Images, Sets]:
    images = labelled(*UNEQUAL)
    return images, fixed_sets(images, 400, 0)


def test_check_describes_good_sets(drawn):
    images, sets = drawn
    found = check(sets, images.labels)
    counts = Counter(sets.position.tolist())
    assert found == {"sets": 400, "images": len(set(sets.indices.flatten().tolist())),
                     "largest_share": pytest.approx(max(counts.values()) / 400)}  # fmt: skip


def spoil(kind: str, images: Images, sets: Sets) -> Sets:
    """The same sets, one of them (or, for positions, each) broken."""
    indices, position = sets.indices.clone(), sets.position.clone()
    row, odd = indices[7], int(position[7])  # a view: what is changed in it is changed in indices
    normal, other = (odd + 1) % 10, (odd + 2) % 10
    label, odd_label = int(images.labels[row[normal]]), int(images.labels[row[odd]])
    third = next(k for k in range(5) if k not in (label, odd_label))
    used = set(row.tolist())
    if kind == "twice":
        row[normal] = row[other].clone()
    elif kind == "two odd":
        row[normal] = (images.labels == third).nonzero()[0, 0]
    elif kind == "two odd of one class":
        row[normal] = next(i for i in (images.labels == odd_label).nonzero()[:, 0].tolist() if i not in used)
    elif kind == "none odd":
        row[odd] = next(i for i in (images.labels == label).nonzero()[:, 0].tolist() if i not in used)
    elif kind == "elsewhere":
        position[7] = normal
    elif kind == "unnamed":
        position[7] = -1
    elif kind == "always last":
        rows = torch.arange(len(position))
        indices[rows, position], indices[:, 9] = sets.indices[:, 9], sets.indices[rows, position]
        position[:] = 9
    return Sets(indices, position)


@pytest.mark.parametrize("kind, named", [
    ("twice", "occurs twice"), ("two odd", "exactly one odd image"), ("two odd of one class", "exactly one odd image"),
    ("none odd", "exactly one odd image"), ("elsewhere", "at the position named"), ("unnamed", "at the position named"),
    ("always last", "not uniform"),
])  # fmt: skip
def test_check_refuses_broken_sets(drawn, kind, named):
    images, sets = drawn
    broken = spoil(kind, images, sets)
    if kind == "always last":
        assert all(len(set(row)) == 10 for row in broken.indices.tolist())
    with pytest.raises(ValueError, match=named):
        check(broken, images.labels)


def test_check_refuses_sets_without_an_odd_image(drawn):
    with pytest.raises(ValueError, match="exactly one odd image"):
        check(fixed_sets(drawn[0], 100, 0, odd=False), drawn[0].labels)
