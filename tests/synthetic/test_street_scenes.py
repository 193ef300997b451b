"""The generator keeps StreetHazards' layout and labels, true perspective and determinism."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from src.synthetic import street_anomalies, street_objects, street_scenes
from src.synthetic.street_canvas import Canvas, X, Z

SIZE, COUNTS, SEED = (90, 160), {"train": 3, "val": 3, "test": 3}, 7
TOWNS = {"train": {"t1", "t2", "t3"}, "val": {"t4"}, "test": {"t5", "t6"}}
ODGT = {"train": "train/train.odgt", "val": "train/validation.odgt", "test": "test/test.odgt"}
DEFAULTS = {"counts": COUNTS, "size": SIZE, "seed": SEED, "workers": 1}
PLACE = {"train": "train/{}/training", "val": "train/{}/validation", "test": "test/{}/test"}


def write(root, **changes):
    street_scenes.write_dataset(root, **(DEFAULTS | changes))


def files_of(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes") / "mini"
    write(root)
    return root


@pytest.mark.parametrize("split", COUNTS)
def test_layout_and_lists_are_the_official_ones(dataset, split):
    rows = json.loads((dataset / ODGT[split]).read_text())
    assert len(rows) == COUNTS[split]
    assert {row["fpath_img"].split("/")[-2] for row in rows} == TOWNS[split]
    for row in rows:
        town, name = row["fpath_img"].split("/")[-2:]
        assert row["fpath_img"] == f"{PLACE[split].format('images')}/{town}/{name}"
        assert row["fpath_segm"] == f"{PLACE[split].format('annotations')}/{town}/{name}"
        assert (row["height"], row["width"]) == SIZE
        image, annotation = Image.open(dataset / row["fpath_img"]), Image.open(dataset / row["fpath_segm"])
        assert (image.mode, annotation.mode) == ("RGB", "L")
        assert image.size == annotation.size == SIZE[::-1]


def test_there_are_no_files_beyond_lists_images_and_marker(dataset):
    assert len(files_of(dataset)) == 2 * sum(COUNTS.values()) + len(ODGT) + 1


def test_annotations_hold_one_to_thirteen_and_fourteen_in_test_alone(dataset):
    for split in COUNTS:
        for row in json.loads((dataset / ODGT[split]).read_text()):
            values = np.unique(np.asarray(Image.open(dataset / row["fpath_segm"])))
            assert values.min() >= 1
            assert values.max() == 14 if split == "test" else values.max() <= 13


@pytest.mark.parametrize("split", COUNTS)
def test_every_known_class_appears_in_every_split(split):
    seen = {
        label
        for index in range(6)
        for label in np.unique(street_scenes.render_scene(split, index, SIZE, 42)[1]).tolist()
    }
    assert seen == set(range(14 if split == "test" else 13))


def test_boxes_of_anomalies_enclose_their_pixels():
    for index in range(6):
        image, mask, info = street_scenes.render_scene("test", index, SIZE, SEED)
        assert image.shape == (*SIZE, 3) and image.dtype == mask.dtype == np.uint8
        inside = np.zeros(SIZE, bool)
        for anomaly in info["anomalies"]:
            assert anomaly["family"] in street_anomalies.ANOMALY_FAMILIES
            x0, y0, x1, y1 = anomaly["box"]
            assert (mask[y0:y1, x0:x1] == 13).any()
            inside[y0:y1, x0:x1] = True
        assert (mask == 13).mean() >= 0.0005 and not (mask[~inside] == 13).any()


def test_anomalies_can_be_asked_for_in_any_split():
    for split, usual in (("val", False), ("test", True)):
        image, mask, info = street_scenes.render_scene(split, 0, SIZE, SEED)
        plain, without, nothing = street_scenes.render_scene(split, 0, SIZE, SEED, anomalous=False)
        added, holds, info_added = street_scenes.render_scene(split, 0, SIZE, SEED, anomalous=True)
        assert np.array_equal(image, added if usual else plain) and np.array_equal(mask, holds if usual else without)
        assert info == (info_added if usual else nothing)
        assert info_added["anomalies"] and not nothing["anomalies"] and info_added["town"] == nothing["town"]
        is_anomaly = holds == street_anomalies.ANOMALY
        assert is_anomaly.any() and not (without == street_anomalies.ANOMALY).any()
        assert np.array_equal(holds[~is_anomaly], without[~is_anomaly])  # the same street


def test_objects_by_themselves():
    drawn = [street_anomalies.draw_object(np.random.default_rng(seed)) for seed in (*range(20), 0)]
    for colour, solid in drawn:
        assert colour.shape == (street_anomalies.SPRITE, solid.shape[1], 3) and colour.dtype == np.float32
        assert solid.shape[0] == street_anomalies.SPRITE and solid.dtype == bool and 0.1 < solid.mean() < 1
        assert colour.min() >= 0 and colour.max() <= 1 and colour[solid].std() > 0.01
    assert all(map(np.array_equal, drawn[0], drawn[-1]))
    assert len({solid.shape for _, solid in drawn}) > 3  # of several families


def test_there_are_many_families_and_all_can_be_drawn(monkeypatch):
    assert len(street_anomalies.ANOMALY_FAMILIES) >= 12
    canvas, plan, _ = empty_street()
    canvas.quad(-500 * X, X, Z, (1000, 600), plan.ground)
    for name in street_anomalies.ANOMALY_FAMILIES:
        monkeypatch.setattr(street_anomalies, "ANOMALY_FAMILIES", (name,))
        canvas.label[canvas.label == street_anomalies.ANOMALY] = street_objects.ROAD
        canvas.depth[:] = np.inf
        added = street_anomalies.add_anomalies(canvas, plan, np.random.default_rng(SEED))
        assert {anomaly["family"] for anomaly in added} == {name}


@pytest.mark.parametrize("places", [2, 1, 0])
def test_as_many_anomalies_as_find_a_place(monkeypatch, places):
    """Two are wanted."""
    canvas, plan, _ = empty_street()
    tries, rng = [], SimpleNamespace(random=lambda: 0.0, choice=lambda names: names[0])

    def paint(canvas, *others):
        tries.append(1)
        if len(tries) <= places:
            canvas.label[100:180, 200 * len(tries) : 200 * len(tries) + 100] = street_anomalies.ANOMALY

    monkeypatch.setattr(street_anomalies, "_paint_one", paint)
    if places:
        added = street_anomalies.add_anomalies(canvas, plan, rng)
        assert [row["box"] for row in added] == [(100, 50, 150, 90), (200, 50, 250, 90)][:places]
    else:
        with pytest.raises(RuntimeError, match="no visible place for an anomaly in 60 tries"):
            street_anomalies.add_anomalies(canvas, plan, rng)
    assert len(tries) == (2 if places == 2 else street_anomalies.TRIES)


def test_bytes_do_not_depend_on_the_number_of_workers(dataset, tmp_path):
    write(tmp_path / "again", workers=2)
    assert files_of(tmp_path / "again") == files_of(dataset)


def test_seed_split_and_index_change_the_scene():
    first = street_scenes.render_scene("train", 0, SIZE, SEED)[0]
    for other in (("train", 3, SIZE, SEED), ("val", 0, SIZE, SEED), ("train", 0, SIZE, SEED + 1)):
        assert (street_scenes.render_scene(*other)[0] != first).any()


def empty_street(seed=0):
    """A canvas and a straight street without crossings in town t1."""
    rng, town = np.random.default_rng(seed), street_scenes.TOWNS["t1"]
    plan = street_objects.Street(town, rng)
    plan.bend, plan.cross, plan.zebra = 0.0, 1e4, 1e4
    return Canvas((180, 320), street_scenes.WEATHERS["clear"], rng), plan, town


@pytest.mark.parametrize("z", [8.0, 12.0])
def test_a_car_twice_as_far_covers_about_a_quarter(z):
    areas = []
    for distance in (z, 2 * z):
        canvas, _, town = empty_street()
        at = canvas.eye * (1, 0, 1) + canvas.ahead * (distance, 0, distance)
        street_objects.draw_car(canvas, town, np.random.default_rng(3), at, Z)
        areas.append((canvas.label == street_objects.CAR).sum())
    assert 3.0 < areas[0] / areas[1] < 6.5


def test_the_road_narrows_linearly_towards_the_horizon():
    canvas, plan, _ = empty_street()
    canvas.quad(-500 * X, X, Z, (1000, 600), plan.ground)
    horizon = canvas.project(canvas.eye + canvas.ahead * (1e6, 0, 1e6))[0]
    road = np.isin(canvas.label, (street_objects.ROAD, street_objects.LINE))
    assert not road[: int(horizon)].any()
    rows = [row for row in np.flatnonzero(road.any(1)) if row > horizon + 20 and not road[row, [0, -1]].any()]
    ratios = road[rows].sum(1) / (np.array(rows) + 0.5 - horizon)
    assert len(rows) > 10 and np.ptp(ratios) < 0.15 * ratios.mean()


def test_a_whole_equal_data_set_is_left_alone(dataset, monkeypatch):
    monkeypatch.setattr(street_scenes, "render_scene", None)  # drawing anything would raise
    write(dataset)


@pytest.mark.parametrize("change", [{"seed": 8}, {"counts": {"train": 1}}, {"size": (45, 80)}])
def test_another_data_set_is_drawn_anew(dataset, tmp_path, monkeypatch, change):
    root = tmp_path / "mini"
    shutil.copytree(dataset, root)
    monkeypatch.setattr(street_scenes, "render_scene", None)
    with pytest.raises(TypeError):
        write(root, **change)
    assert files_of(root) == files_of(dataset)  # until the new one is whole


def test_unknown_split_is_an_error():
    with pytest.raises(ValueError, match="night.*train"):
        street_scenes.render_scene("night", 0)
