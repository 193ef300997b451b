"""On-disk layouts read into one kind of sample, and their errors."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from src import road, settings, system
from src.road import data, figures, fitting

SIZE = (6, 8)


def write(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def write_street(root: Path, name: str, labels: np.ndarray | int = 1, split: str = "train") -> tuple[Path, Path]:
    """One StreetHazards pair; ``labels`` as on disk, 1..14. Returns the paths of image and label map."""
    part, folder = data.StreetHazards.folders[split]
    labels = np.broadcast_to(np.uint8(labels), SIZE)
    image = np.repeat(labels[..., None] * np.uint8(10), 3, axis=2)
    pair = [(root / part / kind / folder / f"{name}.png") for kind in ("images", "annotations")]
    return write(pair[0], image), write(pair[1], labels.copy())


def error_of(call) -> str:
    with pytest.raises(settings.InputError) as caught:
        call()
    return str(caught.value)


# --------------------------------------------------------------------------------------------- reading
def test_official_layout_is_read_in_numeric_order(tmp_path):
    for name in ("t2/1", "t1/10", "t1/9", "t1/b", "t1/100"):
        write_street(tmp_path, name)
    names = [sample["name"] for sample in data.StreetHazards(tmp_path, "train")]
    expected = ["t1/9", "t1/10", "t1/100", "t1/b", "t2/1"]
    assert names == [f"train/images/training/{name}.png" for name in expected]


@pytest.mark.parametrize("suffix", [".jpg", ".WEBP", ".tif", ".bmp"])
def test_images_of_any_kind_are_read(tmp_path, suffix):
    image, _ = write_street(tmp_path, "t1/1")
    Image.open(image).save(image.with_suffix(suffix))
    image.unlink()
    (image.parent / "._1.png").write_bytes(b"a desktop's")
    (sample,) = data.StreetHazards(tmp_path, "train")
    assert sample["image"].shape == (3, *SIZE) and sample["name"].endswith(suffix)


def test_two_images_of_one_name_are_refused(camvid_root, tmp_path):
    shutil.copytree(camvid_root, tmp_path / "camvid")
    image = sorted((tmp_path / "camvid" / "test").iterdir())[0]
    shutil.copy(image, image.with_suffix(".png"))
    with pytest.raises(data.DataError, match=f"{image.stem}.*share one name"):
        data.CamVid(tmp_path / "camvid", "test")


def test_each_split_has_its_own_folder(mini_root):
    sets = road.datasets(road.Config(), mini_root)
    assert {split: len(dataset) for split, dataset in sets.items()} == {"train": 8, "val": 4, "test": 6}
    for dataset in sets.values():
        assert all(image.stem == mask.stem and image != mask for image, mask in dataset.pairs)
    assert len(set(data.paths(sets["test"]))) == 12


def test_labels_on_disk_start_at_one(tmp_path):
    labels = np.arange(48, dtype=np.uint8).reshape(SIZE) % 14 + 1
    write_street(tmp_path, "t5/1", labels, "test")
    sample = data.StreetHazards(tmp_path, "test")[0]
    assert np.array_equal(sample["mask"][0].numpy(), labels - 1)
    assert sample["mask"].max() == data.StreetHazards.anomaly


@pytest.mark.parametrize("fixture, kind", [("mini_root", "mini"), ("camvid_root", "camvid"),
                                           ("road_anomaly_root", "road_anomaly")])  # fmt: skip
def test_samples_have_one_form(fixture, kind, request):
    sample = data.KINDS[kind](request.getfixturevalue(fixture), "test")[0]
    height, width = sample["mask"].shape[1:]
    assert isinstance(sample["image"], tv_tensors.Image) and isinstance(sample["mask"], tv_tensors.Mask)
    assert sample["image"].dtype == sample["mask"].dtype == torch.uint8
    assert sample["image"].shape == (3, height, width) and sample["mask"].shape == (1, height, width)
    assert isinstance(sample["name"], str)


def test_camvid_void_is_ignored(camvid_root):
    dataset = data.CamVid(camvid_root, "train")
    raw = np.array(Image.open(dataset.pairs[0][1]))
    mask = dataset.read_mask(0)
    assert (raw == 11).any() and set(np.unique(mask)) <= {*range(11), data.IGNORE}
    assert np.array_equal(mask == data.IGNORE, raw == 11) and np.array_equal(mask[raw < 11], raw[raw < 11])
    assert dataset.anomaly is None and len(dataset.classes) == 11


@pytest.fixture(scope="module")
def cyclists_root(tmp_path_factory) -> Path:
    """CamVid's layout: 50 train frames, in every fifth a cyclist (label 10), 4 test frames, and a val folder in ruins.

    A frame's number is its grey; each has void (label 11) in its last row.
    """
    root = tmp_path_factory.mktemp("cyclists")
    for split, count in (("train", 50), ("test", 4)):
        for number in range(count):
            labels = np.full(SIZE, number % 10, np.uint8)
            labels[-1] = 11
            if split == "test" or number % 5 == 3:
                labels[2, : number // 5 + 1] = 10
            name = f"{'0006R0_f' if number < 30 else '0016E5_'}{number:05d}.png"
            write(root / split / name, np.full((*SIZE, 3), number, np.uint8))
            write(root / f"{split}annot" / name, labels)
    write(root / "val" / "alone.png", np.zeros((*SIZE, 3), np.uint8))
    (root / "valannot").mkdir()
    (root / "valannot" / "broken.png").write_text("no picture")
    return root


def test_cyclists_are_held_out_of_training_and_validation(cyclists_root):
    sets = {split: data.CamVidCyclists(cyclists_root, split) for split in ("train", "val")}
    frames = {split: [int(sample["image"][0, 0, 0]) for sample in dataset] for split, dataset in sets.items()}
    free = [number for number in range(50) if number % 5 != 3]
    assert sorted(frames["train"] + frames["val"]) == free and not set(frames["train"]) & set(frames["val"])
    assert frames["val"] == sorted(frames["val"]) and frames["train"] == sorted(frames["train"])
    assert frames["val"] == [free[i] for block in (2, 7, 12, 17) for i in range(2 * block, 2 * block + 2)]
    for dataset in sets.values():
        masks = [dataset.read_mask(index) for index in range(len(dataset))]
        assert set(np.unique(masks)) == {*{number % 10 for number in frames[dataset.split]}, data.IGNORE}
        assert all(path.parent.name in ("train", "trainannot") for path in data.paths(dataset))


@pytest.mark.parametrize("frames", [40, 47])
def test_blocks_are_runs_of_neighbouring_frames(cyclists_root, tmp_path, frames):
    """Also where the blocks are not all as long."""
    for folder in ("train", "trainannot"):
        for path in sorted((cyclists_root / folder).iterdir())[:frames]:
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / path.name).symlink_to(path)
    train, val = (data.CamVidCyclists(tmp_path, split).pairs for split in ("train", "val"))
    held_out = [pair in val for pair in sorted(train + val)]
    assert sum(held_out) == pytest.approx(len(held_out) / 5, abs=4)  # less than a frame a block
    starts = [index for index in range(1, len(held_out)) if held_out[index] > held_out[index - 1]]
    assert len(starts) == 4 and starts[0] >= 3


def test_cyclists_are_to_be_found_in_every_official_test_frame(cyclists_root):
    dataset = data.CamVidCyclists(cyclists_root, "test")
    assert len(dataset) == 4 and dataset.anomaly == 10
    for index in range(4):
        raw, mask = np.array(Image.open(dataset.pairs[index][1])), dataset.read_mask(index)
        assert (raw == 10).any() and np.array_equal(mask == dataset.anomaly, raw == 10)
        assert np.array_equal(mask == data.IGNORE, raw == 11)
    known = data.known_only(torch.from_numpy(mask), dataset)
    assert not (known == 10).any() and (known == data.IGNORE).sum() > (mask == data.IGNORE).sum()


def test_cyclists_are_no_class(cyclists_root):
    assert [entry.name for entry in data.CamVidCyclists.classes] == [c.name for c in data.CamVid.classes[:-1]]
    config = road.Config.real("camvid_cyclists")
    assert system.default_root(road, config.dataset) == system.default_root(road, "camvid")
    assert road.build_model(road.Config(dataset="camvid_cyclists", width=0.25)).classifier[4].out_channels == 10
    with pytest.raises(settings.InputError, match="classes of camvid_cyclists.*on camvid"):
        data.open_compatible(config, "camvid", cyclists_root, "test")


def test_road_anomaly_has_a_test_split_alone(road_anomaly_root):
    dataset = data.RoadAnomaly(road_anomaly_root, "test")
    assert [sample["name"] for sample in dataset] == ["images/1.jpg", "images/2.jpg", "images/10.jpg"]
    raw = np.array(Image.open(dataset.pairs[0][1]))
    assert np.array_equal(dataset.read_mask(0), (raw == 2).astype(np.uint8)) and not dataset.classes
    assert "test" in error_of(lambda: data.RoadAnomaly(road_anomaly_root, "train"))


# ---------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize("split, label", [("train", 14), ("val", 14), ("train", 0), ("test", 0), ("test", 15)])
def test_label_out_of_range_names_the_file(tmp_path, split, label):
    labels = np.ones(SIZE, np.uint8)
    labels[2, 3] = label
    _, path = write_street(tmp_path, "t1/7", labels, split)
    message = error_of(lambda: data.StreetHazards(tmp_path, split)[0])
    assert str(path) in message and f"label {label}" in message


def test_anomalies_are_allowed_in_test_alone(tmp_path):
    write_street(tmp_path, "t5/1", 14, "test")
    assert (data.StreetHazards(tmp_path, "test").read_mask(0) == 13).all()


@pytest.mark.parametrize("missing, kind", [(0, "image"), (1, "label map")])
def test_unpaired_file_is_named(tmp_path, missing, kind):
    write_street(tmp_path, "t1/1")
    write_street(tmp_path, "t1/2")[missing].unlink()
    message = error_of(lambda: data.StreetHazards(tmp_path, "train"))
    assert "t1/2" in message and f"no {kind}" in message and str(tmp_path) in message


def test_no_images_names_folder_and_remedy(tmp_path):
    message = error_of(lambda: data.StreetHazards(tmp_path / "nothing", "train"))
    assert str(tmp_path / "nothing") in message and "python -m src road data" in message


def test_different_sizes_name_both_files(tmp_path):
    image, mask = write_street(tmp_path, "t1/1")
    write(image, np.zeros((5, 8, 3), np.uint8))
    message = error_of(lambda: data.StreetHazards(tmp_path, "train")[0])
    assert str(image) in message and str(mask) in message


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) - 30], lambda b: b[:20], lambda b: b"<html>" + b])
def test_damaged_file_is_named(tmp_path, which, damage):
    path = write_street(tmp_path, "t1/1", np.arange(48).reshape(SIZE) % 13 + 1)[which]
    path.write_bytes(damage(path.read_bytes()))
    message = error_of(lambda: data.StreetHazards(tmp_path, "train")[0])
    assert str(path) in message and "fetch it again" in message


def test_file_that_vanished_is_named(tmp_path):
    image, _ = write_street(tmp_path, "t1/1")
    dataset = data.StreetHazards(tmp_path, "train")
    image.unlink()
    assert str(image) in error_of(lambda: dataset[0])


@pytest.mark.parametrize("labels", [np.ones((*SIZE, 3), np.uint8), np.ones(SIZE, np.uint16)])
def test_label_map_of_another_kind_is_named(tmp_path, labels):
    _, path = write_street(tmp_path, "t1/1")
    write(path, labels)
    assert str(path) in error_of(lambda: data.StreetHazards(tmp_path, "train")[0])


# -------------------------------------------------------------------------------------------- loaders
def test_dataloaders_train_shuffled_and_the_rest_in_order(mini_root, tiny_config):
    sets = road.datasets(tiny_config, mini_root)
    loaders = fitting.get_dataloaders(tiny_config, sets)
    assert list(loaders) == ["train", "val", "test"] and len(loaders["train"]) == 2
    batch = next(iter(loaders["train"]))
    assert batch["image"].shape == (4, 3, 48, 80) and batch["mask"].shape == (4, 48, 80)
    orders = []
    for epoch in (0, 1):
        loaders["train"].set_epoch(epoch)
        orders.append([index for keys in loaders["train"].batch_sampler for _, index in keys])
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]) == list(range(8))
    batches = list(loaders["test"])
    assert batches[0]["image"].shape == (4, 3, 48, 80) and batches[0]["mask"].dtype == torch.int64
    masks = torch.cat([batch["mask"] for batch in batches])
    assert torch.equal(masks, torch.cat([sample["mask"] for sample in sets["test"]]).long())


def test_training_needs_no_test_split(mini_root, tiny_config, tmp_path):
    (tmp_path / "train").symlink_to(mini_root / "train")
    assert list(road.datasets(tiny_config, tmp_path, ("train", "val"))) == ["train", "val"]


# ------------------------------------------------------------------------------------------ statistics
def test_known_only_hides_anomalies_alone():
    mask = torch.tensor([[0, 12, 13, 255]])
    assert data.known_only(mask, data.StreetHazards).tolist() == [[0, 12, 255, 255]]
    assert data.known_only(mask, data.CamVid).tolist() == mask.tolist()


def test_class_distribution_counts_every_pixel(tmp_path):
    labels = np.full(SIZE, 8, np.uint8)
    labels[0, :4], labels[1, 0] = 1, 14
    write_street(tmp_path, "t5/1", labels, "test")
    write_street(tmp_path, "t5/2", 8, "test")
    rows = data.class_distribution(data.StreetHazards(tmp_path, "test"))
    assert list(rows) == [entry.name for entry in data.StreetHazards.classes] + ["anomaly"]
    assert rows["unlabeled"] == {"pixels": 4, "share": 4 / 96, "images": 1}
    assert rows["road"] == {"pixels": 91, "share": 91 / 96, "images": 2}
    assert rows["anomaly"] == {"pixels": 1, "share": 1 / 96, "images": 1}
    assert rows["car"] == {"pixels": 0, "share": 0.0, "images": 0}


def test_class_distribution_names_what_is_ignored(camvid_root, road_anomaly_root):
    dataset = data.CamVid(camvid_root, "train")
    rows = data.class_distribution(dataset)
    void = sum(int((np.array(Image.open(path)) == 11).sum()) for _, path in dataset.pairs)
    assert list(rows)[-1] == "ignored" and rows["ignored"]["pixels"] == void
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)
    rows = data.class_distribution(data.RoadAnomaly(road_anomaly_root, "test"))
    assert list(rows) == ["normal", "anomaly"] and rows["anomaly"]["pixels"] == 2 * 10 * 12 + 10 * 12
    assert rows["normal"]["images"] == rows["anomaly"]["images"] == 3


def test_class_weights_are_inverse_roots(tmp_path):
    labels = np.full(SIZE, 8, np.uint8)
    labels[0] = 2  # 8 of 48 pixels
    labels[1, :3] = 11  # 3 of 48
    write_street(tmp_path, "t1/1", labels)
    weights = data.class_weights(data.StreetHazards(tmp_path, "train"))
    assert weights.shape == (13,) and weights.mean() == pytest.approx(1)
    assert weights[1] / weights[7] == pytest.approx((37 / 8) ** 0.5)
    assert weights[10] / weights[1] == pytest.approx((8 / 3) ** 0.5)
    assert weights[4] / weights[7] == pytest.approx((37 / 48 / 1e-3) ** 0.5)  # absent: counted as the floor


# --------------------------------------------------------------------------------------------- colours
def test_mask_to_rgb_uses_the_palette():
    mask = np.array([[0, 7, 12], [13, 255, 10]])
    colors = data.mask_to_rgb(mask, data.StreetHazards)
    assert colors.dtype == np.uint8 and colors.shape == (2, 3, 3)
    expected = [[(0, 0, 0), (128, 64, 128), (220, 220, 0)], [(60, 250, 240), (255, 255, 255), (0, 0, 142)]]
    assert np.array_equal(colors, expected)
    assert np.array_equal(data.mask_to_rgb(torch.tensor(mask, dtype=torch.uint8), data.StreetHazards), colors)


@pytest.mark.parametrize("kind", [data.StreetHazards, data.CamVid, data.CamVidCyclists, data.RoadAnomaly])
def test_colours_differ(kind):
    labels = [*range(len(kind.classes)), data.IGNORE, *([kind.anomaly] if kind.anomaly is not None else [])]
    assert len({tuple(color) for color in data.mask_to_rgb(np.array([labels]), kind)[0]}) == len(labels)


def test_legend_and_samples_show_every_class_and_sample(mini_root):
    dataset = data.StreetHazards(mini_root, "test")
    figure = figures.plot_samples(dataset, [0, 5])
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == [f"{i} {entry.name}" for i, entry in enumerate(dataset.classes)] + ["13 anomaly"]
    shown = [axis.images[0].get_array() for axis in figure.axes]
    assert len(shown) == 6 and np.array_equal(shown[3], dataset[5]["image"].permute(1, 2, 0))
    assert np.array_equal(shown[4], data.mask_to_rgb(dataset[5]["mask"][0], dataset))


# ------------------------------------------------------------------------- Cityscapes and SegmentMeIfYouCan
def write_cityscapes(root: Path, split: str, frames: int, kind: str = "labelTrainIds", suffix: str = "png") -> None:
    """Cityscapes' layout; a frame's number is its grey, its labels are a row of each id 0..7, and 255."""
    labels = np.repeat(np.uint8([0, 1, 7, 8, 11, 255])[:, None], 8, axis=1)
    for number in range(frames):
        name = f"{('aachen', 'bremen')[number % 2]}/x_{number:06d}_000019"
        write(root / "leftImg8bit" / split / f"{name}_leftImg8bit.{suffix}", np.full((*SIZE, 3), number, np.uint8))
        write(root / "gtFine" / split / f"{name}_gtFine_{kind}.png", labels)


def test_cityscapes_train_and_val_are_cut_from_the_train_folder(tmp_path):
    write_cityscapes(tmp_path, "train", 25, suffix="jpg")
    train, val = (data.Cityscapes(tmp_path, split) for split in ("train", "val"))
    assert len(train) == 23 and len(val) == 2 and not set(train.pairs) & set(val.pairs)
    assert val.pairs == sorted(train.pairs + val.pairs)[9::10]
    assert train[0]["mask"][0, :, 0].tolist() == [0, 1, 7, 8, 11, 255] and len(train.classes) == 19
    with pytest.raises(data.DataError, match="no images"):
        data.Cityscapes(tmp_path, "test")


def test_cityscapes_test_is_the_official_val_folder_and_label_ids_become_train_ids(tmp_path):
    write_cityscapes(tmp_path, "val", 3, "labelIds")
    (tmp_path / "gtFine" / "val" / "aachen" / "x_000000_000019_gtFine_instanceIds.png").write_bytes(b"not read")
    test = data.Cityscapes(tmp_path, "test")
    assert len(test) == 3
    assert test[0]["mask"][0, :, 0].tolist() == [255, 255, 0, 1, 2, 255]
    official = {"road": 7, "sidewalk": 8, "building": 11, "pole": 17, "sky": 23, "person": 24, "bicycle": 33}
    assert all(test.classes[test.remap[label]].name == name for name, label in official.items())


def test_smiyc_reads_both_ways_of_naming_masks_and_says_which_frames_have_none(tmp_path, capsys):
    mask = np.repeat(np.uint8([0, 1, 255, 0, 0, 0])[:, None], 8, axis=1)
    for name in ("a", "b", "c"):
        write(tmp_path / "images" / f"{name}.jpg", np.zeros((*SIZE, 3), np.uint8))
    write(tmp_path / "labels_masks" / "a.png", mask)
    write(tmp_path / "labels_masks" / "b_labels_semantic.png", mask)
    write(tmp_path / "labels_masks" / "b_labels_semantic_color.png", np.zeros((*SIZE, 3), np.uint8))
    dataset = data.SegmentMeIfYouCan(tmp_path, "test")
    assert len(dataset) == 2 and dataset[1]["mask"][0, :, 0].tolist() == [0, 1, data.IGNORE, 0, 0, 0]
    assert "1 of 3 images have no mask" in capsys.readouterr().err
