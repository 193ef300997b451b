"""Four on-disk layouts read into one kind of sample, their errors, masks, and exact counts of the splits."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from src import settings
from src.defects import data

SIZE = (6, 8)
BLOB = np.zeros(SIZE, dtype=np.uint8)
BLOB[1:3, 2:5] = 255
HALF = (50, 25, 25)
GOLDEN = {
    "train": ["g0", "g3", "g4", "g6", "g7"],
    "val": ["g1", "g5", "g9", "h0", "h1"],
    "test": ["g2", "g8", "h2", "h3"],
}


def write(path: Path, array: np.ndarray | int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.broadcast_to(np.uint8(array), SIZE) if np.ndim(array) == 0 else array).save(path)
    return path


@pytest.fixture
def mvtec_root(tmp_path) -> Path:
    """Category ``tile``: 10 normal images to train on; to test on, 4 normal ones, 3 holes and 2 scratches."""
    base = tmp_path / "mvtec" / "tile"
    for number in range(10):
        write(base / "train/good" / f"{number}.png")
    for kind, count in {"good": 4, "hole": 3, "scratch": 2}.items():
        for number in range(count):
            write(base / "test" / kind / f"{number:03d}.png")
            if kind != "good":
                write(base / "ground_truth" / kind / f"{number:03d}_mask.png", BLOB)
    return base.parent


@pytest.fixture
def folder_root(tmp_path) -> Path:
    """4 normal images and 4 defective ones, of which the first two have masks, each in its own way of naming."""
    root = tmp_path / "folder"
    for number in range(4):
        write(root / "images/good" / f"{number}.png")
        write(root / "images/defect" / f"{number}.JPG")
    write(root / "masks/0.png", BLOB)
    write(root / "masks/1_mask.png", BLOB)
    return root


@pytest.fixture
def csv_root(tmp_path) -> Path:
    root = tmp_path / "csv"
    for name in ("a/1.png", "a/2.png", "a/10.png", "a/11.png", "b/x.png", "b/y.png", "masks/x.png"):
        write(root / name, BLOB)
    write(tmp_path / "outside.png")
    rows = ["filename,is_anomalous,mask_path", "a/10.png,0,", "a/2.png,0", "a/1.png,0,", "a/11.png,0,"]
    (root / "labels.csv").write_text("\n".join([*rows, "b/x.png,1,masks/x.png", "b/y.png,1,"]) + "\n")
    return root


def tile_root(root: Path, inner: str) -> Path:
    """The magnetic tile set's layout: 4 free of defects, 4 blowholes and 2 cracks, with grey-edged masks."""
    for folder, count in {"MT_Free": 4, "MT_Blowhole": 4, "MT_Crack": 2}.items():
        for number in range(count):
            write(root / folder / inner / f"exp{number}.jpg")
            write(root / folder / inner / f"exp{number}.png", np.where(BLOB, 128, 127).astype(np.uint8))
    return root


def error_of(call) -> str:
    with pytest.raises(settings.InputError) as caught:
        call()
    return str(caught.value)


def names(items: list[data.Item], root: Path) -> list[str]:
    return [sample["name"] for sample in data.DefectDataset(items, root)]


def everything(splits: data.Splits) -> list[data.Item]:
    return [item for part in splits.values() for item in part]


# ------------------------------------------------------------------------------------------- MVTec style
def test_mvtec_keeps_its_test_split_and_divides_train(mvtec_root):
    splits = data.read("mvtec", mvtec_root, "tile")
    expected = {"train": {"good": 9}, "val": {"good": 1}, "test": {"good": 4, "hole": 3, "scratch": 2}}
    assert data.counts(splits) == expected
    assert list(data.counts({"all": splits["test"][::-1]})["all"]) == ["good", "hole", "scratch"]
    assert {item.image.parent.parent.name for item in splits["val"]} == {"train"}
    masks = {item.image.name: item.mask.name for item in splits["test"] if item.is_anomalous}
    assert masks == {f"{n:03d}.png": f"{n:03d}_mask.png" for n in range(3)}
    assert all(item.mask.parent.name == item.defect for item in splits["test"] if item.mask)


def test_mini_and_an_empty_category_read_the_same_layout(mvtec_root):
    assert data.read("mini", mvtec_root, "tile") == data.read("mvtec", mvtec_root / "tile")


def test_mvtec_pooled(mvtec_root):
    splits = data.read("mvtec", mvtec_root, "tile", HALF)
    good = [data.counts(splits)[name]["good"] for name in ("train", "val", "test")]
    assert good == [7, 4, 3] and len(everything(splits)) == 19
    assert {item.image.parent.parent.name for item in splits["train"]} == {"train", "test"}


def test_mvtec_accepts_masks_named_like_their_image(mvtec_root):
    mask = mvtec_root / "tile/ground_truth/hole/001_mask.png"
    mask.rename(mask.with_name("001.png"))
    masks = {item.mask.name for item in data.read("mvtec", mvtec_root, "tile")["test"] if item.defect == "hole"}
    assert masks == {"000_mask.png", "001.png", "002_mask.png"}


def test_mvtec_missing_mask_is_an_error_unless_there_are_none(mvtec_root):
    truth = mvtec_root / "tile/ground_truth"
    (truth / "hole/001_mask.png").unlink()
    assert "test/hole/001.png has no mask" in error_of(lambda: data.read("mvtec", mvtec_root, "tile"))
    for path in sorted(truth.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert "test/hole/000.png has no mask" in error_of(lambda: data.read("mvtec", mvtec_root, "tile"))
    truth.rmdir()
    test = data.read("mvtec", mvtec_root, "tile")["test"]
    assert [item.mask for item in test] == [None] * 9 and sum(item.is_anomalous for item in test) == 5


def test_categories_hold_train_good(mvtec_root):
    write(mvtec_root / "teacher/000.png")
    write(mvtec_root / "carpet/train/good/000.png")
    assert data.categories(mvtec_root) == ["carpet", "tile"]
    assert data.categories(mvtec_root / "tile") == []
    assert "nowhere is not a folder" in error_of(lambda: data.categories(mvtec_root / "nowhere"))


def test_files_of_the_system_are_ignored_others_named_and_order_is_natural(mvtec_root, capsys):
    for number in range(10, 30):
        write(mvtec_root / "tile/train/good" / f"{number}.png")
    for name in ("train/good/.DS_Store", "train/good/._3.png", "test/hole/Thumbs.db", "test/hole/notes.txt"):
        (mvtec_root / "tile" / name).write_bytes(b"x")
    (mvtec_root / "tile/test/.ipynb_checkpoints").mkdir()
    splits = data.read("mvtec", mvtec_root, "tile")
    numbers = [int(item.image.stem) for item in splits["train"]]
    assert numbers == sorted(numbers) and len(everything(splits)) == 39
    assert "left out 1 file(s) of another kind, notes.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test/hole/001.bmp", "001.bmp and 001.png share one name"),
        ("train/good/3.JPEG", "3.JPEG and 3.png share one name"),
        ("train/hole/1.png", "train must hold the folder 'good' alone"),
        ("ground_truth/hole/9_mask.png", "9_mask.png is a mask of no 'hole' image"),
        ("ground_truth/hole/000.png", "000_mask.png share one name"),
    ],
)
def test_mvtec_files_that_do_not_belong(mvtec_root, name, message):
    path = mvtec_root / "tile" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    assert message in error_of(lambda: data.read("mvtec", mvtec_root, "tile"))


@pytest.mark.parametrize("folder", ["train/good", "test/hole", "test/good"])
def test_empty_classes_are_refused(mvtec_root, folder):
    for path in (mvtec_root / "tile" / folder).iterdir():
        path.unlink()
    assert f"{folder} holds no" in error_of(lambda: data.read("mvtec", mvtec_root, "tile"))


def test_missing_folders_are_named(mvtec_root):
    assert "carpet/train is not a folder" in error_of(lambda: data.read("mvtec", mvtec_root, "carpet"))
    (mvtec_root / "tile/test").rename(mvtec_root / "elsewhere")
    assert "tile/test is not a folder" in error_of(lambda: data.read("mvtec", mvtec_root, "tile"))
    (mvtec_root / "tile/test").mkdir()
    assert "tile/test is empty" in error_of(lambda: data.read("mvtec", mvtec_root, "tile"))


# ------------------------------------------------------------------------------------------- folder, tile
def test_folder_with_some_masks(folder_root):
    splits = data.read("folder", folder_root, percent=HALF)
    share = {"good": 1, "defect": 2}
    assert data.counts(splits) == {"train": {"good": 2}, "val": share, "test": share}
    masks = {item.image.stem: item.mask and item.mask.name for item in everything(splits) if item.is_anomalous}
    assert masks == {"0": "0.png", "1": "1_mask.png", "2": None, "3": None}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("images/scratch/1.png", "not ['defect', 'good', 'scratch']"),
        ("masks/7.png", "masks/7.png is a mask of no 'defect' image"),
    ],
)
def test_folder_files_that_do_not_belong(folder_root, name, message):
    write(folder_root / name)
    assert message in error_of(lambda: data.read("folder", folder_root, percent=HALF))


def test_folder_needs_neither_masks_nor_defects_but_good_images(folder_root):
    for path in (folder_root / "masks").iterdir():
        path.unlink()
    (folder_root / "masks").rmdir()
    assert {item.mask for item in everything(data.read("folder", folder_root, percent=HALF))} == {None}
    (folder_root / "images/defect").rename(folder_root / "elsewhere")
    assert not any(item.is_anomalous for item in everything(data.read("folder", folder_root, percent=HALF)))
    (folder_root / "images/good").rename(folder_root / "images/fine")
    assert "must hold the folder good" in error_of(lambda: data.read("folder", folder_root, percent=HALF))


@pytest.mark.parametrize("inner", ["", "Imgs"])
def test_magnetic_tile_in_both_layouts(tmp_path, inner):
    root = tile_root(tmp_path, inner)
    (root / "README.md").write_text("not a class")
    splits = data.read("magnetic_tile", root, percent=HALF)
    share = {"good": 1, "blowhole": 2, "crack": 1}
    assert data.counts(splits) == {"train": {"good": 2}, "val": share, "test": share}
    for sample in data.DefectDataset(splits["val"], root):  # 128 is defect, 127 is not
        assert torch.equal(sample["mask"][0], torch.from_numpy(BLOB > 0) & sample["is_anomalous"])


def test_magnetic_tile_errors(tmp_path):
    root = tile_root(tmp_path / "tile", "")
    (root / "MT_Free/exp0.png").unlink()  # masks of normal images do not matter
    data.read("magnetic_tile", root, percent=HALF)
    (root / "MT_Crack/exp1.png").unlink()
    assert "MT_Crack/exp1.jpg has no mask" in error_of(lambda: data.read("magnetic_tile", root, percent=HALF))
    assert "no folders MT_Free" in error_of(lambda: data.read("magnetic_tile", tmp_path, percent=HALF))


# ---------------------------------------------------------------------------------------------------- CSV
def test_csv_from_its_folder_or_the_file_itself(csv_root):
    splits = data.read("csv", csv_root, percent=HALF)
    assert data.read("csv", csv_root / "labels.csv", percent=HALF) == splits
    anomalous = {item.image.name: item.mask and item.mask.name for item in everything(splits) if item.is_anomalous}
    assert anomalous == {"x.png": "x.png", "y.png": None}
    for root in (csv_root, csv_root / "labels.csv"):
        listed = sorted(name for part in splits.values() for name in names(part, root))
        assert listed == ["a/1.png", "a/10.png", "a/11.png", "a/2.png", "b/x.png", "b/y.png"]


def test_csv_with_byte_order_mark_and_two_columns(csv_root):
    text = "\ufefffilename,is_anomalous\r\na/1.png, 0\r\na/2.png,0\r\na/10.png,0\r\na/11.png,0\r\n"
    (csv_root / "labels.csv").write_text(text, newline="")
    counts = data.counts(data.read("csv", csv_root, percent=HALF))
    assert counts == {"train": {"good": 2}, "val": {"good": 1}, "test": {"good": 1}}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("b/none.png,0,", "line 8: 'b/none.png' does not exist"),
        (",0,", "line 8: '' does not exist"),
        ("b,0,", "line 8: 'b' does not exist"),
        ("labels.csv,0,", "line 8: 'labels.csv' is not an image"),
        ("../outside.png,0,", "line 8: ../outside.png is outside"),
        ("link.png,0,", "line 8: link.png is outside"),
        ("/etc/hostname,0,", "line 8: /etc/hostname is outside"),
        ("masks/x.png,1,../outside.png", "line 8: ../outside.png is outside"),
        ("masks/x.png,1,b/none.png", "line 8: 'b/none.png' does not exist"),
        ("masks/x.png,0,b/x.png", "line 8: .*masks/x.png is normal but has a mask"),
        ("masks/x.png,2,", "line 8: is_anomalous is '2'; write 0 or 1"),
        ("masks/x.png,true,", "line 8: is_anomalous is 'true'"),
        ("masks/x.png", "line 8: is_anomalous is ''"),
        ("a/1.png,0,", "line 8: .*a/1.png repeats .*a/1.png"),
        ("b/../a/1.png,1,", "line 8: .*a/1.png repeats"),
        ("a/1.bmp,0,", "line 8: .*a/1.bmp repeats .*a/1.png or its name"),
        ("masks/x.png,0,,more", "line 8: more than 3 fields"),
        ('"masks/x.png,0', "not a table"),
    ],
)
def test_csv_rows_that_cannot_be_used(csv_root, row, message):
    (csv_root / "link.png").symlink_to(csv_root.parent / "outside.png")
    write(csv_root / "a/1.bmp")
    with (csv_root / "labels.csv").open("a") as file:
        file.write(row + "\n")
    with pytest.raises(data.DataError, match=f"labels.csv.*{message}"):
        data.read("csv", csv_root, percent=HALF)


@pytest.mark.parametrize(
    "header", ["", "filename", "filename,label", "filename,is_anomalous,extra", "filename,is_anomalous,filename"]
)
def test_csv_columns(csv_root, header):
    (csv_root / "labels.csv").write_text(f"{header}\na/1.png,0\n")
    assert "labels.csv, line 1: expected columns" in error_of(lambda: data.read("csv", csv_root, percent=HALF))


def test_csv_that_is_missing_or_no_text(csv_root):
    (csv_root / "labels.csv").write_bytes(b"filename,is_anomalous\n\xff\xfe,0\n")
    assert "labels.csv is not a table" in error_of(lambda: data.read("csv", csv_root, percent=HALF))
    assert "a/labels.csv is not a table" in error_of(lambda: data.read("csv", csv_root / "a", percent=HALF))


# ------------------------------------------------------------------------------------------- what read refuses
def test_requests_that_read_refuses(mvtec_root, folder_root):
    assert "'coco' is unknown: choose from mini, mvtec" in error_of(lambda: data.read("coco", mvtec_root))
    assert "folder data comes with no split" in error_of(lambda: data.read("folder", folder_root))
    assert "no category 'tile'" in error_of(lambda: data.read("folder", folder_root, "tile", HALF))
    assert "nowhere" in error_of(lambda: data.read("mvtec", mvtec_root / "nowhere"))
    message = error_of(lambda: data.read("folder", folder_root, percent=(90, 5, 5)))
    assert str(folder_root) in message and "leaves val none of 4" in message


# ------------------------------------------------------------------------------------------- split engine
def pool(**kinds: int) -> list[data.Item]:
    return [data.Item(Path(f"/set/{kind}/{n}.png"), kind) for kind, count in kinds.items() for n in range(count)]


@pytest.mark.parametrize(
    ("kinds", "percent", "train", "val", "test"),
    [
        (
            {"good": 560, "blowhole": 115, "crack": 57},
            (70, 15, 15),
            {"good": 392},
            {"good": 84, "blowhole": 58, "crack": 28},
            {"good": 84, "blowhole": 57, "crack": 29},
        ),
        ({"good": 100, "hole": 30}, (70, 15, 15), {"good": 70}, {"good": 15, "hole": 15}, {"good": 15, "hole": 15}),
        ({"good": 100, "hole": 30}, (70, 20, 10), {"good": 70}, {"good": 20, "hole": 20}, {"good": 10, "hole": 10}),
        ({"good": 100, "hole": 100}, (70, 20, 10), {"good": 70}, {"good": 20, "hole": 67}, {"good": 10, "hole": 33}),
        ({"good": 50, "hole": 9}, (80, 10, 10), {"good": 40}, {"good": 5, "hole": 5}, {"good": 5, "hole": 4}),
        ({"good": 10, "hole": 8}, (60, 30, 10), {"good": 6}, {"good": 3, "hole": 6}, {"good": 1, "hole": 2}),
        (
            {"good": 7, "a": 1, "b": 1, "c": 1},
            (60, 20, 20),
            {"good": 4},
            {"good": 2, "a": 1, "b": 1},
            {"good": 1, "c": 1},
        ),
        ({"good": 10, "a": 3, "b": 5}, (90, 0, 10), {"good": 9}, {}, {"good": 1, "a": 3, "b": 5}),
        ({"good": 10, "a": 3}, (90, 10, 0), {"good": 9}, {"good": 1, "a": 3}, {}),
        ({"good": 5}, (100, 0, 0), {"good": 5}, {}, {}),
    ],
)
def test_exact_counts(kinds, percent, train, val, test):
    splits = data.split(pool(**kinds), percent, seed=0)
    assert data.counts(splits) == {"train": train, "val": val, "test": test}


@pytest.mark.parametrize("percent", [(70, 15, 15), (70, 20, 10), (80, 10, 10), (60, 30, 10), (34, 33, 33)])
def test_every_image_in_one_split_and_every_kind_at_its_share(percent):
    for seed in range(20):
        rng = random.Random(seed)
        items = pool(good=rng.randint(20, 80), **{kind: rng.randint(1, 12) for kind in "abcd"[: 1 + seed % 4]})
        splits = data.split(items, percent, seed)
        assert Counter(everything(splits)) == Counter(items)
        assert not any(item.is_anomalous for item in splits["train"])
        total, ratio = Counter(item.defect for item in items), percent[1] / (percent[1] + percent[2])
        val = data.counts(splits)["val"]
        assert all(abs(val.get(kind, 0) - total[kind] * ratio) < 1 for kind in total if kind != "good")
        anomalous = len(items) - total["good"]
        assert abs(sum(val.values()) - val["good"] - anomalous * ratio) <= 0.5 + 1e-9
        for part, share in zip(splits.values(), percent, strict=True):
            assert abs(sum(not item.is_anomalous for item in part) - total["good"] * share / 100) < 1


def test_split_depends_on_the_seed_and_not_on_the_order():
    items = pool(good=40, hole=10, crack=10)
    splits = data.split(items, (70, 15, 15), 3)
    for seed in range(5):
        assert data.split(random.Random(seed).sample(items, len(items)), (70, 15, 15), 3) == splits
    other = data.split(items, (70, 15, 15), 4)
    assert all(other[name] != splits[name] for name in splits)
    without = data.split(pool(good=40, hole=10), (70, 15, 15), 3)  # other kinds leave a kind where it was
    assert without["train"] == splits["train"]
    assert [i for i in without["val"] if i.defect == "hole"] == [i for i in splits["val"] if i.defect == "hole"]


def test_split_is_shuffled_and_stays_what_it_was():
    splits = data.split(pool(good=10, hole=4), HALF, 42)
    assert {name: [f"{item.defect[0]}{item.image.stem}" for item in part] for name, part in splits.items()} == GOLDEN


@pytest.mark.parametrize(
    ("kinds", "percent", "message"),
    [
        ({"hole": 5}, (70, 15, 15), "leaves train none of 0 normal"),
        ({}, (70, 15, 15), "leaves train none of 0 normal"),
        ({"good": 2, "hole": 5}, (70, 15, 15), "leaves val none of 2 normal"),
        ({"good": 10}, (98, 1, 1), "leaves val none of 10 normal"),
        ({"good": 10, "hole": 1}, (100, 0, 0), "val and test have no share"),
    ],
)
def test_splits_that_cannot_be_made(kinds, percent, message):
    assert message in error_of(lambda: data.split(pool(**kinds), percent, 0))


def test_an_image_listed_twice_is_refused():
    items = pool(good=10, hole=3)
    twice = data.Item(items[0].image, "hole")
    assert "/set/good/0.png is listed twice" in error_of(lambda: data.split([*items, twice], (70, 15, 15), 0))


# ------------------------------------------------------------------------------------------------ samples
def test_samples(folder_root):
    items = data.read("folder", folder_root, percent=HALF)
    dataset = data.DefectDataset(sorted(everything(items), key=lambda item: item.image), folder_root)
    samples = list(dataset)
    assert len(dataset) == len(samples) == 8
    for sample, item in zip(samples, dataset.items, strict=True):
        assert type(sample["image"]) is tv_tensors.Image and sample["image"].dtype == torch.uint8
        assert sample["image"].shape == (3, *SIZE) and (sample["image"] == 90).float().mean() > 0.99
        assert sample["is_anomalous"] is item.is_anomalous and sample["defect"] == item.defect
    assert [sample["name"] for sample in samples[3:5]] == ["images/defect/3.JPG", "images/good/0.png"]
    known, unknown, normal = (samples[i]["mask"] for i in (1, 2, 4))
    assert type(known) is tv_tensors.Mask and known.dtype == torch.bool and known.shape == (1, *SIZE)
    assert torch.equal(known[0], torch.from_numpy(BLOB > 0)) and unknown is None
    assert type(normal) is tv_tensors.Mask and normal.shape == (1, *SIZE) and not normal.any()


def palette(levels: np.ndarray, *colors: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(levels.astype(np.uint8)).convert("P")
    image.putpalette([channel for color in colors for channel in color])
    return image


SHAPE = np.uint8(BLOB > 0)
MARKED = {
    "0 and 255": BLOB,
    "0 and 1": SHAPE,
    "0, 1 and 255": np.where(BLOB, np.uint8(1), 0) + np.uint8(254) * (np.indices(SIZE)[1] == 3) * SHAPE,
    "a few small labels": SHAPE * np.uint8(2) + SHAPE * np.uint8(np.indices(SIZE)[0] == 2),
    "a faint grey": BLOB // 2,
    "many greys": np.where(BLOB, 200 + np.arange(48).reshape(SIZE), np.arange(48).reshape(SIZE)).astype(np.uint8),
    "colours of a palette": palette(SHAPE, (0, 0, 0), (128, 0, 0)),
    "white and black of a palette": palette(1 - SHAPE, (255, 255, 255), (0, 0, 0)),
    **{f"mode {mode}": Image.fromarray(BLOB).convert(mode) for mode in ("1", "P", "RGB", "RGBA")},
}


@pytest.mark.parametrize("mask", MARKED.values(), ids=MARKED)
def test_masks_mark_by_value_label_or_palette(tmp_path, mask):
    image, path = write(tmp_path / "image.png"), tmp_path / "mask.png"
    (Image.fromarray(mask) if isinstance(mask, np.ndarray) else mask).save(path)
    sample = data.DefectDataset([data.Item(image, "hole", path)], tmp_path)[0]
    assert torch.equal(sample["mask"][0], torch.from_numpy(BLOB > 0))


def test_a_mask_of_another_size_is_refused(tmp_path):
    item = data.Item(write(tmp_path / "image.png"), "hole", write(tmp_path / "mask.png", BLOB.T.copy()))
    with pytest.raises(data.DataError, match="mask.png is 6x8, but .*image.png is 8x6: export the mask"):
        data.DefectDataset([item], tmp_path)[0]


@pytest.mark.parametrize("is_grey", [False, True])
def test_a_mask_that_marks_nothing_is_said_once_and_counts_as_unknown(tmp_path, capsys, is_grey):
    """Of a mask that was a JPEG, faint greys too are nothing."""
    mask = write(tmp_path / "mask.png", BLOB // 50 if is_grey else BLOB * 0)
    dataset = data.DefectDataset([data.Item(write(tmp_path / "image.png"), "hole", mask, is_grey)], tmp_path)
    assert dataset[0]["mask"] is dataset[0]["mask"] is None and dataset[0]["is_anomalous"]
    assert capsys.readouterr().err.splitlines() == [
        f"{mask}: marks nothing, but {tmp_path / 'image.png'} is anomalous: left out of pixel metrics"
    ]


def test_inverted_masks_are_refused(tmp_path):
    images = [write(tmp_path / f"{number}.png") for number in range(3)]
    masks = [write(tmp_path / f"{number}_mask.png", array) for number, array in enumerate((BLOB, 255 - BLOB))]
    items = [data.Item(image, "hole", mask) for image, mask in zip(images, [*masks, None], strict=True)]
    data.require_upright_masks(data.DefectDataset([items[0], items[2]], tmp_path))
    with pytest.raises(data.DataError, match="1_mask.png mark 88% of all pixels.*inverted?"):
        data.require_upright_masks(data.DefectDataset(items[1:], tmp_path))


def test_damaged_files_are_named(tmp_path):
    intact = write(tmp_path / "intact.png", np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8))
    (tmp_path / "cut.png").write_bytes(intact.read_bytes()[:900])
    (tmp_path / "text.png").write_text("no image")
    for name in ("cut.png", "text.png", "missing.png"):
        item, masked = data.Item(tmp_path / name), data.Item(intact, "hole", tmp_path / name)
        for broken in (item, masked):
            assert name in error_of(lambda broken=broken: data.DefectDataset([broken], tmp_path)[0])


def test_images_of_more_than_eight_bits_are_refused(tmp_path):
    Image.fromarray(np.full(SIZE, 40000, dtype=np.uint16)).save(tmp_path / "deep.png")
    item = data.Item(tmp_path / "deep.png")
    assert "deep.png holds more than 8 bits" in error_of(lambda: data.DefectDataset([item], tmp_path)[0])
