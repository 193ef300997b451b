"""The system's public functions and its command line on tiny textures: train, load, evaluate, predict, report, errors."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src import checkpoints, defects, settings
from src.__main__ import main
from src.defects import data, evaluation, scores
from src.defects import model as models
from src.defects.teacher import TeacherConfig
from src.synthetic import textures
from tests.defects.conftest import TEXTURE_COUNTS

TINY = defects.Config(
    categories=("fabric", "tiles"), image_size=48, epochs=2, batch_size=3, lr=3e-3, stride=4, width=4, descriptor=8,
    patch_sizes=(33,), students=2, workers=0, amp=False, pretrained="none", patch_pixels=32, teacher_width=4,
    teacher_images="mini/defects/teacher", teacher_image_size=(40, 64), teacher_epochs=1, teacher_batch_size=6,
    patches_per_image=8,
)  # fmt: skip
HEADLINE = ("image_auroc", "pixel_auroc", "pixel_aupr", "aupro", "precision", "recall", "f1")
PROVENANCE = ("command", "git_revision", "config", "seed", "data", "protocol", "wall_time", "device")


def redirect(patch: pytest.MonkeyPatch, data_dir: Path, folder: Path) -> None:
    """Every folder that is written to, inside ``folder``."""
    patch.setattr(settings, "DATA_DIR", data_dir)
    for name in ("WEIGHTS", "RESULTS", "FIGURES", "RUNS"):
        patch.setattr(settings, f"{name}_DIR", folder / name.lower())


@pytest.fixture(scope="module")
def house(textures_root, tmp_path_factory):
    """A house in which ``TINY`` has been trained; (its folder, what ``train`` gave)."""
    folder = tmp_path_factory.mktemp("house")
    with pytest.MonkeyPatch.context() as patch:
        redirect(patch, textures_root.parents[1], folder)
        yield folder, defects.train(TINY)


@pytest.fixture
def weights(house) -> Path:
    return house[1].source


@pytest.fixture
def one_category(weights) -> defects.Trained:
    return defects.load(weights, TINY, ["categories=fabric"])


def tensors(model) -> list[torch.Tensor]:
    return list(model.state_dict().values())


# ---------------------------------------------------------------------------------------- train and load
def test_training_leaves_weights_and_what_belongs_to_them(house, textures_root):
    folder, trained = house
    assert trained.source == folder / "weights/defects/mini.pth" == defects.weights_path(TINY)
    assert (folder / "weights/defects/teacher_mini_33.pth").exists()
    assert set(trained.history) == {"teacher 33", "fabric 33", "tiles 33"}
    assert [len(rows) for rows in trained.history.values()] == [1, 2, 2]
    assert "effective_rank" in trained.history["teacher 33"][0]
    assert set(trained.calibration) == set(trained.thresholds) == {"fabric", "tiles"}
    assert "95%" in trained.thresholds["fabric"]["rule"]  # val holds no anomalies
    content = checkpoints.load(trained.source)
    assert content["config"] == TINY.plain()
    assert (folder / "runs/defects/mini_fabric_33/last.pth").exists()
    sets = defects.datasets(TINY)
    assert {split: len(part) for split, part in sets["tiles"].items()} == {"train": 6, "val": 1, "test": 6}
    assert sets["tiles"]["test"][0]["name"].startswith("tiles/test/good/")


def test_a_loaded_model_is_the_trained_one(house):
    trained = house[1]
    loaded = defects.load(trained.source, TINY)
    assert loaded.config == TINY and loaded.source == trained.source
    assert all(map(torch.equal, tensors(loaded.model), tensors(trained.model)))
    assert json.dumps(loaded.calibration) == json.dumps(trained.calibration)  # which may hold NaN
    assert (loaded.thresholds, loaded.history) == (trained.thresholds, trained.history)


def test_the_same_numbers_come_out_twice(house):
    trained = house[1]
    models_alike = (trained, trained, defects.load(trained.source, TINY))
    metrics = [defects.measure(one, None, None, "test") for one in models_alike]
    assert json.dumps(metrics[0]) == json.dumps(metrics[1]) == json.dumps(metrics[2])
    found, described, protocol = metrics[0]
    assert set(found["categories"]) == {"fabric", "tiles"} and protocol == evaluation.PROTOCOL
    assert all(0 <= found[key] <= 1 for key in HEADLINE)
    assert found["aupro"] == np.mean([part["aupro"] for part in found["categories"].values()])
    assert found["categories"]["fabric"]["images"] == 6 and set(found["categories"]["fabric"]["per_defect"]) == {
        "scratch", "hole", "stain", "misplaced"}  # fmt: skip
    assert {key: described[key] for key in ("dataset", "split", "stride", "files")} == {
        "dataset": "mini", "split": "test", "stride": 4, "files": 2 * (2 + 4 + 4)}  # fmt: skip


def test_training_anew_gives_the_same_weights(house, tmp_path):
    again = defects.train(replace(TINY, categories=("fabric",)), run_dir=tmp_path / "runs", out=tmp_path / "again.pth")
    first = house[1].model.students["fabric"]
    assert all(map(torch.equal, tensors(again.model.students["fabric"]), tensors(first)))
    assert again.thresholds["fabric"] == house[1].thresholds["fabric"]


@pytest.mark.parametrize("pair, stride, categories", [
    ("stride=8", 8, ("fabric", "tiles")), ("categories=tiles", 4, ("tiles",)),
    ("categories=tiles,fabric", 4, ("tiles", "fabric")),
])  # fmt: skip
def test_stride_and_categories_may_be_chosen_anew(weights, pair, stride, categories):
    trained = defects.load(weights, TINY, [pair])
    assert (trained.config.stride, trained.config.categories) == (stride, categories)
    metrics, described, _ = defects.measure(trained, None, None, "test")
    assert described["stride"] == stride and described["files"] == 10 * len(categories)
    assert ("categories" in metrics) == (len(categories) > 1)


def test_a_category_alone_has_the_numbers_that_it_has_among_others(house, one_category):
    alone = defects.measure(one_category, None, None, "test")[0]
    among = defects.measure(house[1], None, None, "test")[0]["categories"]["fabric"]
    assert json.dumps({key: alone[key] for key in among}) == json.dumps(among)


@pytest.mark.parametrize("pair, named", [
    ("image_size=64", "image_size: 48 in the file, 64 asked for"), ("epochs=7", "epochs: 2 in the file"),
    ("students=3", "students"), ("seed=1", "seed"), ("patch_sizes=17", r"knows the patch sizes \(33,\), not \(17,\)"),
    ("categories=bolt", r"mini.pth knows the categories .*fabric.*, not bolt"), ("speed=2", "speed=2: unknown setting"),
])  # fmt: skip
def test_other_settings_are_those_of_the_file(weights, pair, named):
    with pytest.raises(settings.InputError, match=named):
        defects.load(weights, TINY, [pair])


def test_strides_that_cannot_be_are_refused(weights):
    with pytest.raises(settings.InputError, match="stride=3"):
        defects.measure(defects.load(weights, TINY, ["stride=3"]), None, None, "test")


def test_students_are_chosen_and_thresholds_too_by_the_right_images(house, tmp_path, monkeypatch):
    """Where val holds anomalies, they choose the threshold and neither epoch nor calibration."""
    seen = {}

    def fit(net, teacher, train, val, config, run_dir):
        seen.update(train={item.defect for item in train.items}, val={item.defect for item in val.items})
        return []

    monkeypatch.setattr(defects.students, "fit", fit)
    config = replace(TINY, categories=("fabric",), percent=(50, 30, 20))
    assert any(item.is_anomalous for item in defects.datasets(config)["fabric"]["val"].items)
    trained = defects.train(config, run_dir=tmp_path, out=tmp_path / "out.pth")
    assert seen == {"train": {"good"}, "val": {"good"}}
    assert trained.thresholds["fabric"]["rule"].startswith("best F1")


# ----------------------------------------------------------------------------------------------- teacher
@pytest.fixture
def no_distillation(monkeypatch):
    def distill(*arguments):
        raise AssertionError("a teacher is trained")

    monkeypatch.setattr(defects.teacher, "distill", distill)


@pytest.mark.parametrize("changes", [{}, {"seed": 1}, {"epochs": 9, "lr": 1.0}, {"workers": 2, "amp": True}])
def test_a_kept_teacher_is_used_again(house, no_distillation, changes):
    """Whatever changes of the students, and of how a run is run."""
    net, history = defects.train_teacher(replace(TINY, **changes), 33, None, house[0] / "unused")
    assert all(map(torch.equal, tensors(net), tensors(house[1].model.teachers["33"])))
    assert history == house[1].history["teacher 33"]


@pytest.mark.parametrize("changes, named", [
    ({"descriptor": 4}, "descriptor: 8 in the file, 4 asked for"), ({"teacher_width": 8}, "width: 4 in the file"),
    ({"teacher_epochs": 3}, "epochs"), ({"backbone_depth": "last"}, "depth: 'middle'"),
    ({"compactness_weight": 0.5}, "compactness_weight"), ({"teacher_image_size": (40, 50)}, "image_size"),
])  # fmt: skip
def test_a_teacher_of_another_config_is_refused(house, no_distillation, changes, named):
    with pytest.raises(checkpoints.CheckpointError, match=f"teacher_mini_33.pth was made with another.*\n.*{named}"):
        defects.train_teacher(replace(TINY, **changes), 33, None, house[0] / "unused")


@pytest.fixture
def folders(monkeypatch, tmp_path, textures_root) -> Path:
    redirect(monkeypatch, textures_root.parents[1], tmp_path)
    return tmp_path


ONE = replace(TINY, categories=("fabric",), epochs=1)


def test_a_new_teacher_is_kept_in_the_folder_named(house, tmp_path):
    """Even where there is one beside the weights, which is neither used nor written over."""
    beside = house[0] / "weights/defects/teacher_mini_33.pth"
    before = beside.read_bytes()
    config = replace(ONE, teacher_epochs=2)  # with which the one beside would be refused
    trained = defects.train(config, run_dir=tmp_path / "runs", out=tmp_path / "out.pth", teachers=tmp_path / "teachers")
    (kept,) = (tmp_path / "teachers").iterdir()
    assert kept.name == beside.name and checkpoints.load(kept)["config"]["epochs"] == 2
    assert len(trained.history["teacher 33"]) == 2 and beside.read_bytes() == before
    weights = checkpoints.load(kept)["weights"]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in trained.model.teachers["33"].state_dict().items())


def test_no_teacher_is_kept_beside_the_weights_if_a_folder_is_named(folders):
    defects.train(ONE, teachers=folders / "teachers")
    assert [path.name for path in (folders / "teachers").iterdir()] == ["teacher_mini_33.pth"]
    assert [path.name for path in (folders / "weights/defects").iterdir()] == ["mini.pth"]


def test_a_teacher_kept_in_the_folder_named_is_used(house, folders, no_distillation):
    (folders / "teachers").mkdir()
    shutil.copy(house[0] / "weights/defects/teacher_mini_33.pth", folders / "teachers")
    trained = defects.train(ONE, teachers=folders / "teachers")
    assert all(map(torch.equal, tensors(trained.model.teachers["33"]), tensors(house[1].model.teachers["33"])))
    assert not defects.teacher_path(ONE, 33).exists()


# ---------------------------------------------------------------------------------------- load_or_train
def test_weights_are_loaded_or_made_or_missed(house, monkeypatch):
    calls = []
    monkeypatch.setattr(defects, "train", lambda *given, **options: calls.append(given))
    assert defects.load_or_train(TINY, run_training=True).thresholds == house[1].thresholds and not calls
    with pytest.raises(checkpoints.CheckpointError, match="another config"):
        defects.load_or_train(replace(TINY, epochs=9), run_training=True)
    monkeypatch.setattr(settings, "DATA_DIR", house[0] / "nowhere")  # what is loaded needs no data
    assert defects.load_or_train(TINY, run_training=False).config == TINY
    missing = replace(TINY, dataset="folder")
    with pytest.raises(checkpoints.CheckpointError, match="folder.pth(.|\n)*defects train --profile real"):
        defects.load_or_train(missing, run_training=False)
    with pytest.raises(checkpoints.CheckpointError, match="folder.pth"):
        defects.load_or_train(missing, run_training=True)  # training by name only leaves nothing to load
    assert calls == [(missing, None)]


def test_categories_that_nobody_names_are_those_of_the_root(folders, textures_root):
    config = replace(TINY, dataset="mvtec", categories=(), epochs=1)
    trained = defects.load_or_train(config, textures_root, run_training=True)
    loaded = defects.load_or_train(config, textures_root, run_training=False)
    assert loaded.config.categories == tuple(sorted(textures.CATEGORIES))
    assert all(map(torch.equal, tensors(loaded.model), tensors(trained.model)))
    options = {"calibration": loaded.calibration, "thresholds": loaded.thresholds}
    found = defects.evaluate(config, loaded.model, textures_root, **options)
    assert json.dumps(found) == json.dumps(defects.evaluate(loaded.config, loaded.model, textures_root, **options))
    assert set(found["categories"]) == set(textures.CATEGORIES)


# ----------------------------------------------------------------------------------- other data to score
@pytest.fixture
def layouts(textures_root, tmp_path) -> dict[str, Path]:
    """The fabric of the test split as ``folder`` with masks, and as ``csv`` without."""
    base = textures_root / "fabric"
    roots = {"folder": tmp_path / "folder", "csv": tmp_path / "csv"}
    for path in sorted((base / "test").rglob("*.png")):
        kind = path.parent.name
        target = roots["folder"] / "images" / ("good" if kind == "good" else "defect") / f"{kind}{path.name}"
        for copy in (target, roots["csv"] / "photos" / target.name):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
        if kind != "good":
            (roots["folder"] / "masks").mkdir(exist_ok=True)
            mask = base / "ground_truth" / kind / f"{path.stem}_mask.png"
            shutil.copy(mask, roots["folder"] / "masks" / target.name)
    rows = [f"photos/{path.name},{int(not path.name.startswith('good'))}" for path in (tmp_path / "csv").rglob("*.png")]
    (roots["csv"] / "labels.csv").write_text("\n".join(["filename,is_anomalous", *rows]) + "\n")
    return roots


def test_other_layouts_are_scored_alike(one_category, layouts):
    """All their images, with masks where there are some."""
    own = defects.measure(one_category, None, None, "test")[0]
    folder, described, _ = defects.measure(one_category, layouts["folder"], "folder", "test")
    assert {key: folder[key] for key in HEADLINE} == pytest.approx({key: own[key] for key in HEADLINE})
    assert (described["dataset"], described["files"]) == ("folder", 10)
    assert list(folder["per_defect"]) == ["defect"] and folder["threshold"] == own["threshold"]
    table = defects.measure(one_category, layouts["csv"], "csv", "test")[0]
    assert (table["image_auroc"], table["f1"]) == pytest.approx((own["image_auroc"], own["f1"]))
    assert np.isnan(table["aupro"]) and table["images"] == 6


def test_a_table_may_be_named_itself(one_category, layouts):
    table = defects.measure(one_category, layouts["csv"] / "labels.csv", "csv", "test")[0]
    assert table["images"] == 6


def test_a_category_of_another_mvtec_root(one_category, textures_root, tmp_path):
    shutil.copytree(textures_root / "fabric", tmp_path / "fabric")
    found, described, _ = defects.measure(one_category, tmp_path, "mvtec", "test")
    assert found["images"] == 6 and described["dataset"] == "mvtec"


def test_one_set_of_images_needs_one_category(house, layouts):
    with pytest.raises(settings.InputError, match="folder is one set of images.*fabric, tiles.*categories=NAME"):
        defects.measure(house[1], layouts["folder"], "folder", "test")


def test_wrong_data_sets_are_named(one_category, tmp_path):
    with pytest.raises(data.DataError, match="kitti"):
        defects.measure(one_category, None, "kitti", "test")
    with pytest.raises(data.DataError, match=str(tmp_path)):
        defects.measure(one_category, tmp_path, None, "test")


def test_wrong_splits_are_named(one_category):
    with pytest.raises(settings.InputError, match="holdout"):
        defects.measure(one_category, None, None, "holdout")


def test_students_for_a_folder_of_ones_own(house, layouts, tmp_path):
    """Trained on images/good alone, with a threshold from val, which holds defects."""
    config = replace(TINY, dataset="folder", categories=(), percent=(50, 50, 0), epochs=1, batch_size=1)
    trained = defects.train(config, layouts["folder"], run_dir=tmp_path / "runs")
    assert trained.source.name == "folder.pth" and set(trained.thresholds) == {"folder"}
    assert defects.measure(trained, layouts["folder"], None, "val")[0]["images"] == 5


def test_every_category_of_an_mvtec_root_is_used(textures_root):
    config = defects.with_categories(defects.Config(dataset="mvtec"), textures_root)
    assert config.categories == tuple(sorted(textures.CATEGORIES))
    assert defects.with_categories(TINY, textures_root) == TINY
    assert list(defects.datasets(defects.Config(dataset="mvtec"), textures_root)) == sorted(textures.CATEGORIES)


# ------------------------------------------------------------------------------ settings that cannot work
@pytest.mark.parametrize("changes, named", [
    ({"image_size": 12}, "12 x 12 pixels is too small for patches of 33"),
    ({"batch_size": 50}, "6 training samples do not fill one batch of 50"),
])  # fmt: skip
def test_settings_that_do_not_fit_the_images_are_refused(house, tmp_path, changes, named):
    with pytest.raises(settings.InputError, match=named):
        defects.train(replace(TINY, **changes), run_dir=tmp_path / "runs", out=tmp_path / "out.pth")


@pytest.mark.parametrize("changes, named", [
    ({"percent": (70, 0, 30)}, "val holds no normal images for fabric"), ({"crop_size": 16}, "crop_size"),
    ({"stride": 3}, "stride"), ({"students": 0}, "students"), ({"patch_sizes": ()}, "patch_sizes"),
    ({"teacher_image_size": (64, 40)}, "teacher_image_size"), ({"teacher_image_size": (64,)}, "teacher_image_size"),
    ({"patch_sizes": (33, 65)}, r"teacher_image_size=\(40, 64\).*65"), ({"categories": ("part.1",)}, "part.1.*rename"),
])  # fmt: skip
def test_settings_that_cannot_work_are_refused_before_training(folders, monkeypatch, tmp_path, changes, named):
    """That of teachers too, which are yet to be made here."""
    monkeypatch.setattr(defects.students.training, "fit", lambda *arguments, **options: pytest.fail("training began"))
    with pytest.raises(settings.InputError, match=named):
        defects.train(replace(TINY, **changes), run_dir=tmp_path / "runs", out=tmp_path / "out.pth")


# --------------------------------------------------------------------------------------- predict, report
def test_predict_gives_a_record_and_pictures_of_each_file(one_category, textures_root, tmp_path, monkeypatch):
    monkeypatch.chdir(textures_root / "fabric")
    files = [Path("test/good/001.png"), Path("test/hole/000.png")]
    rows = defects.predict(one_category, files, tmp_path / "out")
    images = defects.datasets(one_category.config)["fabric"]["test"]
    scored = evaluation.scored(one_category.model, "fabric", images, one_category.calibration["fabric"], TINY)
    expected = {item.name: item.score() for item in scored}
    threshold = one_category.thresholds["fabric"]["value"]
    for file, row in zip(files, rows, strict=True):
        assert row["filename"] == file.name and row["threshold"] == threshold
        assert row["anomaly_score"] == pytest.approx(expected[f"fabric/{file}"], abs=1e-5)
        assert row["prediction"] == {"is_anomalous": row["anomaly_score"] >= threshold} and row["mask_path"] is None
        for kind in ("image", "heatmap", "uncertainty"):
            picture = Image.open(tmp_path / "out" / row[f"{kind}_path"])
            assert picture.size == (48, 48) and np.ptp(np.array(picture)) > 0


def test_predict_takes_absolute_paths(one_category, textures_root, tmp_path):
    (row,) = defects.predict(one_category, [textures_root / "fabric/test/good/000.png"], tmp_path / "out")
    assert row["filename"] == "000.png" and (tmp_path / "out" / row["heatmap_path"]).exists()


def test_predict_needs_one_category_and_different_names(house, one_category, tmp_path):
    with pytest.raises(settings.InputError, match="of which category.*fabric, tiles.*categories=NAME"):
        defects.predict(house[1], [Path("a.png")], tmp_path)
    with pytest.raises(settings.InputError, match="same name"):
        defects.predict(one_category, [Path("a/x.png"), Path("b/x.jpg")], tmp_path)
    with pytest.raises(data.DataError, match="lost.png"):
        defects.predict(one_category, [Path("lost.png")], tmp_path)


def test_the_report_has_a_page_for_each_category(house, tmp_path):
    pages = defects.write_report(house[1], None, None, "test", tmp_path)
    assert pages == [tmp_path / "fabric.html", tmp_path / "tiles.html"]
    for page in pages:
        summary = json.loads((tmp_path / page.stem / "records.json").read_text())
        assert len(summary["images"]) == 6 and summary["threshold"] == house[1].thresholds[page.stem]["value"]
        assert "data:image/" in page.read_text() and f"{page.stem}/test/hole/000.png" in page.read_text()
        assert sum(path.suffix == ".png" for path in (tmp_path / page.stem).rglob("*")) == 3 * 6 + 4  # 4 masks


# ------------------------------------------------------------------------------------------- command line
PAIRS = [f"{key}={value}" for key, value in {
    "categories": "fabric", "patch_sizes": "17,33", "image_size": 48, "epochs": 1, "batch_size": 3, "width": 4,
    "descriptor": 8, "students": 2, "workers": 0, "amp": False, "patch_pixels": 32, "teacher_width": 4, "warmup": 0,
    "teacher_image_size": "40,64", "teacher_epochs": 1, "teacher_batch_size": 6, "patches_per_image": 4,
}.items()]  # fmt: skip


def run(*arguments) -> int:
    return main([str(argument) for argument in ("defects", *arguments)])


def failure(capsys, *arguments) -> str:
    assert run(*arguments) == 1
    return capsys.readouterr().err


def test_command_line_from_data_to_report(folders, textures_root, monkeypatch, capsys):
    small = partial(textures.write_dataset, counts=TEXTURE_COUNTS)
    monkeypatch.setattr(defects.textures, "write_dataset", small)
    assert run("data", "categories=fabric,bolt") == 0
    record = json.loads((folders / "results/defects/mini_distribution.json").read_text())["distribution"]
    assert list(record) == ["fabric", "bolt"] and record["bolt"]["val"] == {"good": 1}
    assert record["fabric"]["test"] == {"good": 2, "hole": 1, "misplaced": 1, "scratch": 1, "stain": 1}

    assert run("train", *PAIRS) == 0
    assert f"wrote {folders / 'weights/defects/mini.pth'}" in capsys.readouterr().out
    assert {path.name for path in (folders / "weights/defects").iterdir()} == {
        "mini.pth", "teacher_mini_17.pth", "teacher_mini_33.pth"}  # fmt: skip

    assert run("evaluate", "--json", folders / "out.json", "stride=8") == 0
    record = json.loads((folders / "out.json").read_text())
    assert set(PROVENANCE) <= record.keys() and record["score"] == scores.HEADLINE
    assert all(isinstance(record[key], float) for key in HEADLINE)
    assert record["config"]["patch_sizes"] == [17, 33] and record["config"]["stride"] == 8
    assert record["data"]["stride"] == 8 and record["data"]["files"] == 10
    assert record["command"] == "python -m src defects evaluate --json DIR/out.json stride=8"
    assert f"image_auroc {record['image_auroc']:.4f}" in capsys.readouterr().out

    monkeypatch.chdir(textures_root)
    assert run("predict", "fabric/test/good/000.png", "fabric/train/good/001.png", "--out", folders / "pictures") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["filename"] for row in rows] == ["000.png", "001.png"]
    assert all((folders / "pictures" / row["heatmap_path"]).exists() for row in rows)

    assert run("report", "--split", "val", "--out", folders / "report") == 0
    assert f"wrote {folders / 'report/fabric.html'}" in capsys.readouterr().out
    assert len(json.loads((folders / "report/fabric/records.json").read_text())["images"]) == 1


def test_command_line_with_named_weights(house, layouts, tmp_path, capsys):
    arguments = ("--weights", house[1].source, "--dataset", "csv", "--root", layouts["csv"])
    assert "categories=NAME" in failure(capsys, "evaluate", *arguments)
    assert run("evaluate", *arguments, "categories=tiles", "--json", tmp_path / "out.json") == 0
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["data"]["dataset"] == "csv" and record["aupro"] is None and str(tmp_path) not in json.dumps(record)
    assert run("report", *arguments, "categories=tiles", "--out", tmp_path / "report") == 0
    assert (tmp_path / "report/tiles.html").exists()


def test_missing_weights_name_the_command(folders, capsys):
    message = failure(capsys, "evaluate")
    assert "weights/defects/mini.pth" in message and "python -m src defects train --profile mini" in message
    assert "magnetic_tile.pth" in failure(capsys, "report", "--profile", "real")
    assert "lost.pth" in failure(capsys, "predict", "a.png", "--weights", folders / "lost.pth")


def test_weights_of_other_kinds_are_refused(house, tmp_path, capsys):
    best = house[0] / "runs/defects/mini_fabric_33/best.pth"
    assert "best.pth is of a run that has not ended" in failure(capsys, "evaluate", "--weights", best)
    teacher = house[0] / "weights/defects/teacher_mini_33.pth"
    assert "settings unknown to src.defects" in failure(capsys, "evaluate", "--weights", teacher)
    torch.save(models.PatchNet(17, 4, 4).state_dict(), tmp_path / "bare.pth")
    assert "bare.pth was not written by this project" in failure(capsys, "evaluate", "--weights", tmp_path / "bare.pth")


@pytest.mark.parametrize("arguments, named", [
    (("train", "rate=0.1"), "rate=0.1: unknown setting"),
    (("train", "epochs=many"), "epochs=many"),
    (("train", "backbone=vgg16"), "vgg16"),
    (("train", "patch_sizes=34"), "patch size 34: expected one of 17, 33, 65"),
    (("train", "categories=wood"), "wood"),
    (("train", "teacher_images=nowhere"), "nowhere holds 0 images"),
    (("train", "--dataset", "kitti"), "kitti"),
    (("train", "--profile", "real", "--dataset", "folder"), "folder"),
    (("data", "--dataset", "magnetic_tile"), "magnetic_tile"),
    (("predict",), "predict needs image files"),
])  # fmt: skip
def test_wrong_settings_are_named(house, capsys, arguments, named):
    assert named in failure(capsys, *arguments)


def test_only_predict_takes_files(capsys):
    assert run("report", "part.png") == 2
    assert "part.png" in capsys.readouterr().err


def test_road_has_no_report(capsys):
    assert main(["road", "report"]) == 1
    assert "road has no report" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------- profiles
def test_full_is_the_users_recipe():
    config = defects.Config.full()
    students = {"epochs": 25, "batch_size": 1, "optimizer": "adam", "lr": 1e-4, "weight_decay": 1e-5, "students": 3,
                "patch_sizes": (33,), "image_size": 256, "crop_size": 0, "descriptor": 512, "stride": 1,
                "schedule": "constant", "warmup": 0, "accumulate": 1, "clip_norm": 0.0}  # fmt: skip
    assert {key: getattr(config, key) for key in students} == students
    own = config.of_teacher(33)
    teacher = {"epochs": 200, "batch_size": 64, "optimizer": "adam", "lr": 2e-4, "weight_decay": 1e-5, "patch_size": 33,
               "descriptor": 512, "backbone": "resnet18", "pretrained": "imagenet", "depth": "last",
               "image_size": (256, 256), "augmentation": "flip_rotate", "patches_per_image": 1, "schedule": "constant",
               "warmup": 0, "width": 128}  # fmt: skip
    assert {key: getattr(own, key) for key in teacher} == teacher and isinstance(own, TeacherConfig)
    channels = models.BACKBONES["resnet18"]["last"][1]
    teacher = models.Teacher(models.PatchNet(33, own.descriptor, own.width), channels)
    assert channels == 512 and isinstance(teacher.decoder, torch.nn.Identity)
    assert not [parameter for name, parameter in teacher.named_parameters() if name.startswith("decoder")]


def test_mini_needs_no_download_and_real_takes_data_of_ones_own():
    mini = defects.Config.mini()
    assert (mini.dataset, mini.pretrained, mini.image_size, mini.descriptor) == ("mini", "none", 128, 128)
    assert mini.categories == textures.CATEGORIES and mini.patch_sizes == (33,) and mini.students == 3
    assert mini.teacher_images.startswith("mini/")
    for dataset in ("magnetic_tile", "folder", "csv"):
        real = defects.Config.real(dataset)
        assert (real.dataset, real.percent, real.crop_size, real.categories) == (dataset, (70, 15, 15), 128, ())
    assert defects.Config.real("mvtec").percent == () and set(defects.REAL) <= set(data.FORMATS)


@pytest.mark.parametrize("profile", ["mini", "real", "full"])
def test_a_config_survives_its_checkpoint(profile):
    config = getattr(defects.Config, profile)()
    assert defects.Config.from_plain(config.plain()) == config
    own = config.of_teacher(65)
    assert TeacherConfig.from_plain(own.plain()) == own
