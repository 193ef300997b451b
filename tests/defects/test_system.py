"""The system's public functions and its command line on tiny textures: train, load, evaluate, predict, report."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src import checkpoints, defects, settings, system
from src.__main__ import main
from src.defects import data, evaluation, fitting, scores, students
from src.defects import model as models
from src.defects.config import TeacherConfig
from src.synthetic import textures
from src.system import Trained
from tests.defects.conftest import TEXTURE_COUNTS, TINY, redirect

HEADLINE = ("image_auroc", "pixel_auroc", "pixel_aupr", "aupro", "precision", "recall", "f1")
COMMITTED = settings.ROOT / "assets/weights/defects"
PROVENANCE = ("command", "git_revision", "config", "seed", "data", "protocol", "wall_time", "device")


@pytest.fixture(scope="module")
def project(textures_root, tmp_path_factory):
    """A project in which ``TINY`` has been trained: (its folder, what ``train`` gave)."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        redirect(patch, textures_root.parents[1], folder)
        yield folder, defects.train(TINY)


@pytest.fixture
def weights(project) -> Path:
    return project[1].source


@pytest.fixture
def one_category(weights) -> Trained:
    return system.load(defects, weights, TINY, ["categories=fabric"])


def tensors(model) -> list[torch.Tensor]:
    return list(model.state_dict().values())


def same(one, other) -> bool:
    return all(map(torch.equal, tensors(one), tensors(other)))


def measure(trained, root=None, dataset=None, split="test"):
    return system.measure(defects, trained, root, dataset, split)


# ---------------------------------------------------------------------------------------- train and load
def test_training_leaves_weights_and_what_belongs_to_them(project, textures_root):
    folder, trained = project
    assert trained.source == folder / "weights/defects/mini.pth" == system.weights_path(defects, TINY)
    assert (folder / "weights/defects/teacher_mini_33.pth").exists()
    assert set(trained.history) == {"teacher 33", "fabric 33", "tiles 33"}
    assert [len(rows) for rows in trained.history.values()] == [1, 2, 2]
    assert set(trained.calibration) == set(trained.extras["thresholds"]) == {"fabric", "tiles"}
    assert "95%" in trained.extras["thresholds"]["fabric"]["rule"]  # val holds no anomalies
    assert checkpoints.load(trained.source)["config"] == TINY.plain()
    splits = defects.datasets(TINY)
    assert {split: len(part) for split, part in splits["tiles"].items()} == {"train": 6, "val": 1, "test": 6}
    assert splits["tiles"]["test"][0]["name"].startswith("tiles/test/good/")


def test_a_loaded_model_is_the_trained_one(project):
    trained = project[1]
    loaded = system.load(defects, trained.source, TINY)
    assert loaded.config == TINY and same(loaded.model, trained.model)
    assert json.dumps(loaded.extras) == json.dumps(trained.extras)  # which may hold NaN
    metrics, description = measure(trained)
    assert json.dumps(metrics) == json.dumps(measure(loaded)[0])
    assert set(metrics["categories"]) == {"fabric", "tiles"} and all(0 <= metrics[key] <= 1 for key in HEADLINE)
    assert metrics["aupro"] == np.mean([part["aupro"] for part in metrics["categories"].values()])
    fabric = metrics["categories"]["fabric"]
    assert fabric["images"] == 6 and set(fabric["per_defect"]) == set(textures.DEFECTS)
    assert list(description)[:4] == ["dataset", "split", "stride", "files"]
    assert (description["stride"], description["files"]) == (4, 2 * (2 + 4 + 4))


def test_a_killed_training_resumes_to_the_same_weights(project, tmp_path, killed_at):
    config = replace(TINY, categories=("fabric",))
    train = partial(defects.train, config, run_dir=tmp_path / "runs", out=tmp_path / "again.pth")
    calls = killed_at(students, 5)  # validation included: in the second epoch
    with pytest.raises(KeyboardInterrupt):
        train()
    again = train()
    assert len(calls) > 5 and same(again.model.students["fabric"], project[1].model.students["fabric"])
    assert again.extras["thresholds"]["fabric"] == project[1].extras["thresholds"]["fabric"]


def test_a_run_is_not_resumed_with_other_images(project, textures_root, tmp_path):
    config = replace(TINY, categories=("fabric",), epochs=1)
    defects.train(config, textures_root, run_dir=tmp_path / "runs", out=tmp_path / "first.pth")
    shutil.copytree(textures_root / "fabric", tmp_path / "other/fabric")
    Image.new("RGB", (48, 48), (9, 9, 9)).save(next((tmp_path / "other/fabric/train/good").iterdir()))
    with pytest.raises(checkpoints.CheckpointError, match="mini_fabric_33 holds a run on other data"):
        defects.train(config, tmp_path / "other", run_dir=tmp_path / "runs", out=tmp_path / "second.pth")


@pytest.mark.parametrize(
    "pair, stride, categories",
    [
        ("stride=8", 8, ("fabric", "tiles")),
        ("categories=tiles", 4, ("tiles",)),
        ("categories=tiles,fabric", 4, ("tiles", "fabric")),
    ],
)
def test_stride_and_categories_may_be_chosen_anew(weights, pair, stride, categories):
    trained = system.load(defects, weights, TINY, [pair])
    assert (trained.config.stride, trained.config.categories) == (stride, categories)
    metrics, description = measure(trained)
    assert description["stride"] == stride and description["files"] == 10 * len(categories)
    assert ("categories" in metrics) == (len(categories) > 1)


def test_a_category_alone_has_the_numbers_that_it_has_among_others(project, one_category):
    alone, among = measure(one_category)[0], measure(project[1])[0]["categories"]["fabric"]
    assert json.dumps({key: alone[key] for key in among}) == json.dumps(among)


@pytest.mark.parametrize(
    "pair, expected",
    [
        ("image_size=64", "image_size: 48 in the file, 64 asked for"),
        ("epochs=7", "epochs: 2 in the file"),
        ("seed=1", "seed"),
        ("patch_sizes=17", "mini.pth knows the patch sizes 33, not 17"),
        ("categories=bolt", "mini.pth knows the categories fabric, tiles, not bolt"),
        ("speed=2", "speed=2: unknown"),
        ("stride=3", "stride=3"),
    ],
)
def test_other_settings_are_those_of_the_file(weights, pair, expected):
    with pytest.raises(settings.InputError, match=expected):
        measure(system.load(defects, weights, TINY, [pair]))


def test_epochs_and_thresholds_are_chosen_by_the_right_images(project, tmp_path, monkeypatch):
    """Where val holds anomalies, they choose the threshold and neither epoch nor calibration."""
    kinds = {}

    def fit(net, teacher, train, val, config, run_dir):
        kinds.update(train={item.defect for item in train.items}, val={item.defect for item in val.items})
        return []

    monkeypatch.setattr(students, "fit", fit)
    config = replace(TINY, categories=("fabric",), percent=(50, 30, 20))
    assert any(item.is_anomalous for item in defects.datasets(config)["fabric"]["val"].items)
    trained = defects.train(config, run_dir=tmp_path, out=tmp_path / "out.pth")
    assert kinds == {"train": {"good"}, "val": {"good"}}
    assert trained.extras["thresholds"]["fabric"]["rule"].startswith("best F1")


# ----------------------------------------------------------------------------------------------- teacher
@pytest.fixture
def no_distillation(monkeypatch):
    monkeypatch.setattr(fitting.teacher, "distill", lambda *arguments: pytest.fail("a teacher is trained"))


@pytest.mark.parametrize("changes", [{}, {"seed": 1, "epochs": 9, "lr": 1.0}, {"workers": 2, "amp": True}])
def test_a_kept_teacher_is_used_again(project, no_distillation, changes):
    """Whatever changes of the students, and of how a run is run."""
    net, history = defects.train_teacher(replace(TINY, **changes), 33, None, project[0] / "unused")
    assert same(net, project[1].model.teachers["33"]) and history == project[1].history["teacher 33"]


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"descriptor": 4}, "descriptor: 8 in the file, 4 asked for"),
        ({"teacher_width": 8}, "width: 4 in the file"),
        ({"teacher_epochs": 3}, "epochs"),
        ({"teacher_image_size": (40, 50)}, "image_size"),
    ],
)
def test_a_teacher_of_another_config_is_refused(project, no_distillation, changes, expected):
    with pytest.raises(checkpoints.CheckpointError, match=f"teacher_mini_33.pth was made with another.*\n.*{expected}"):
        defects.train_teacher(replace(TINY, **changes), 33, None, project[0] / "unused")


def test_a_new_teacher_is_kept_in_the_folder_named(project, tmp_path):
    """Even where there is one beside the weights, which is neither used nor written over."""
    beside = project[0] / "weights/defects/teacher_mini_33.pth"
    before = beside.read_bytes()
    config = replace(TINY, categories=("fabric",), epochs=1, teacher_epochs=2)  # the one beside would be refused
    options = {"run_dir": tmp_path / "runs", "out": tmp_path / "out.pth", "teachers": tmp_path / "teachers"}
    trained = defects.train(config, **options)
    (kept,) = (tmp_path / "teachers").iterdir()
    assert kept.name == beside.name and checkpoints.load(kept)["config"]["epochs"] == 2
    assert len(trained.history["teacher 33"]) == 2 and beside.read_bytes() == before


@pytest.mark.parametrize(
    "name, config",
    [
        ("teacher_mini_33", defects.Config.mini()),
        (
            "teacher_imagenet_sample_33",
            replace(defects.Config.real(), backbone="squeezenet1_0", method="uninformed_students"),
        ),
    ],
)
def test_committed_teachers_are_used(no_distillation, tmp_path, name, config):
    assert defects.teacher_path(config, 33).stem == name
    net, history = defects.train_teacher(config, 33, None, tmp_path, teachers=COMMITTED)
    assert net.descriptor == 128 and len(history) == config.teacher_epochs


def test_checkpoints_of_earlier_versions_are_read():
    old = TINY.plain() | {"teacher_augmentation": "user", "accumulate": 1, "per_epoch": False}
    del old["backbone_epochs"]
    assert defects.Config.from_plain(old) == replace(TINY, teacher_augmentation="flip_rotate")
    assert defects.Config().override(["teacher_augmentation=user"]).teacher_augmentation == "flip_rotate"
    old = TINY.teacher_config(33).plain() | {"augmentation": "user"}
    assert TeacherConfig.from_plain(old).augmentation == "flip_rotate"
    for name in ("mini", "magnetic_tile"):
        trained = system.load(defects, COMMITTED / f"{name}.pth", TINY)
        assert trained.config.dataset == name and set(trained.calibration) == set(trained.extras["thresholds"])


def test_categories_that_nobody_names_are_those_of_the_root(folders, textures_root):
    config = replace(TINY, dataset="mvtec", categories=(), epochs=1)
    trained = system.load_or_train(defects, config, textures_root, run_training=True)
    loaded = system.load(defects, trained.source, config)
    assert set(loaded.calibration) == set(textures.CATEGORIES) and same(loaded.model, trained.model)
    assert set(measure(loaded, textures_root)[0]["categories"]) == set(textures.CATEGORIES)
    again = system.load_or_train(defects, config, textures_root, run_training=True)
    assert again.source == trained.source and same(again.model, trained.model)


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


def test_other_layouts_are_scored_alike(one_category, layouts, textures_root, capsys):
    """All their images, with masks where there are some."""
    expected = measure(one_category)[0]
    folder, description = measure(one_category, layouts["folder"], "folder")
    assert {key: folder[key] for key in HEADLINE} == pytest.approx({key: expected[key] for key in HEADLINE})
    assert (description["dataset"], description["files"]) == ("folder", 10)
    assert list(folder["per_defect"]) == ["defect"] and folder["threshold"] == expected["threshold"]
    assert measure(one_category, textures_root, "mvtec")[0]["images"] == 6
    assert not capsys.readouterr().out
    for root in (layouts["csv"], layouts["csv"] / "labels.csv"):
        table = measure(one_category, root, "csv")[0]
        assert (table["image_auroc"], table["f1"]) == pytest.approx((expected["image_auroc"], expected["f1"]))
        assert np.isnan(table["aupro"]) and table["images"] == 6
        assert capsys.readouterr().out == "fabric: no anomalous image has a mask, so the pixel metrics are undefined\n"


def test_masks_that_mark_nothing_or_all_but_the_defects(one_category, layouts, capsys):
    complete = measure(one_category, layouts["folder"], "folder")[0]
    masks = sorted((layouts["folder"] / "masks").iterdir())
    Image.fromarray(np.array(Image.open(masks[0])) * 0).save(masks[0])
    metrics = measure(one_category, layouts["folder"], "folder")[0]
    assert metrics["image_auroc"] == complete["image_auroc"] and metrics["images"] == complete["images"]
    assert metrics["pixel_aupr"] != complete["pixel_aupr"]
    assert capsys.readouterr().err.count("marks nothing") == 1
    for path in masks:
        Image.fromarray(255 - np.array(Image.open(path))).save(path)
    with pytest.raises(data.DataError, match="inverted?"):
        measure(one_category, layouts["folder"], "folder")


def test_images_of_one_class_are_measured_as_far_as_they_go(one_category, layouts, capsys):
    shutil.rmtree(layouts["folder"] / "images/defect")
    shutil.rmtree(layouts["folder"] / "masks")
    metrics = measure(one_category, layouts["folder"], "folder")[0]
    assert all(np.isnan(metrics[key]) for key in HEADLINE) and metrics["normal"] == metrics["images"] == 2
    assert "fabric: no image is anomalous" in capsys.readouterr().out


def test_data_that_cannot_be_scored_is_named(project, one_category, layouts, tmp_path):
    with pytest.raises(settings.InputError, match="folder is one set of images.*fabric, tiles.*categories=NAME"):
        measure(project[1], layouts["folder"], "folder")
    with pytest.raises(data.DataError, match="kitti"):
        measure(one_category, None, "kitti")
    with pytest.raises(data.DataError, match=str(tmp_path)):
        measure(one_category, tmp_path)
    with pytest.raises(settings.InputError, match="holdout"):
        measure(one_category, split="holdout")


def test_students_for_a_folder_of_ones_own(project, layouts, tmp_path):
    """Trained on images/good alone, with a threshold from val, which holds defects."""
    config = replace(TINY, dataset="folder", categories=(), percent=(50, 50, 0), epochs=1, batch_size=1)
    trained = defects.train(config, layouts["folder"], run_dir=tmp_path / "runs")
    assert trained.source.name == "folder.pth" and set(trained.calibration) == {"folder"}
    loaded = system.load(defects, trained.source, config)
    assert measure(loaded, layouts["folder"], split="val")[0]["images"] == 5
    with pytest.raises(settings.InputError, match="test holds no images of folder"):
        measure(loaded, layouts["folder"])


# ------------------------------------------------------------------------------ settings that cannot work
@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"image_size": 12}, "12 x 12 pixels is too small for patches of 33"),
        ({"batch_size": 50}, "6 training samples do not fill one batch of 50"),
        ({"percent": (70, 0, 30)}, "val holds no normal images for fabric"),
    ],
)
def test_settings_that_do_not_fit_the_images_are_refused(project, tmp_path, changes, expected):
    with pytest.raises(settings.InputError, match=expected):
        defects.train(replace(TINY, **changes), run_dir=tmp_path / "runs", out=tmp_path / "out.pth")


@pytest.mark.parametrize(
    "pair",
    [
        "crop_size=16",
        "stride=3",
        "students=0",
        "patch_sizes=()",
        "patch_sizes=34",
        "teacher_image_size=64,40",
        "teacher_image_size=64",
        "categories=part.1",
        "categories=1,2",
        "percent=70,15,14",
        "percent=0,50,50",
        "percent=70,30",
        "percent=70.0,15.0,15.0",
        "percent=110,-5,-5",
        "image_size=0",
        "width=-1",
        "teacher_width=0",
        "descriptor=1",
        "backbone=vgg16",
        "pretrained=coco",
        "backbone_depth=first",
        "teacher_augmentation=blur",
        "compactness=max",
        "compactness_weight=-1",
        "teacher_lr=-1",
        "teacher_epochs=0",
        "teacher_batch_size=0",
        "patches_per_image=0",
        "patch_pixels=8",
        "backbone_epochs=-1",
        "lr=-1",
        "epochs=0",
    ],
)
def test_values_that_cannot_work_are_named(pair):
    with pytest.raises(settings.InputError, match=f"^{pair.partition('=')[0]}=.*: expected "):
        TINY.override([pair])


# --------------------------------------------------------------------------------------- predict, report
def test_predict_gives_a_record_and_pictures_of_each_file(one_category, textures_root, tmp_path):
    base = textures_root / "fabric"
    files = [base / "test/good/001.png", base / "test/hole/000.png"]
    rows = system.predict(defects, one_category, files, tmp_path / "out")
    images = defects.datasets(one_category.config)["fabric"]["test"]
    expected = {item.name: item.score() for item in evaluation.scored(one_category, "fabric", images)}
    threshold = one_category.extras["thresholds"]["fabric"]["value"]
    for file, row in zip(files, rows, strict=True):
        assert row["filename"] == file.name and row["threshold"] == threshold
        assert row["anomaly_score"] == pytest.approx(expected[file.relative_to(textures_root).as_posix()], abs=1e-5)
        assert row["prediction"] == {"is_anomalous": row["anomaly_score"] >= threshold} and row["mask_path"] is None
        for kind in ("image", "heatmap", "uncertainty"):
            picture = Image.open(tmp_path / "out" / row[f"{kind}_path"])
            assert picture.size == (48, 48) and np.ptp(np.array(picture)) > 0


def test_predict_needs_one_category_and_readable_files(project, one_category, tmp_path):
    with pytest.raises(settings.InputError, match="of which category.*fabric, tiles.*categories=NAME"):
        defects.predict(project[1], [Path("a.png")], tmp_path)
    with pytest.raises(data.DataError, match="lost.png"):
        defects.predict(one_category, [Path("lost.png")], tmp_path)


def test_the_report_has_a_page_and_records_for_each_category(project, tmp_path):
    pages = defects.write_report(project[1], None, None, "test", tmp_path)
    assert pages == [tmp_path / "fabric.html", tmp_path / "tiles.html"]
    metrics = defects.evaluate(project[1])["categories"]
    for page in pages:
        folder, category = tmp_path / page.stem, page.stem
        content = json.loads((folder / "records.json").read_text())
        threshold = project[1].extras["thresholds"][category]
        assert (content["dataset"], content["split"]) == (category, "test") and len(content["images"]) == 6
        assert (content["threshold"], content["threshold_rule"]) == (threshold["value"], threshold["rule"])
        assert content["metrics"]["aupro"] == metrics[category]["aupro"]
        text = page.read_text()
        assert "data:image/" in text and all(row["filename"] in text for row in content["images"])
        for row in content["images"]:
            is_anomalous = "/good/" not in row["filename"]
            assert row["ground_truth"] == {"type": "anomaly", "is_anomalous": is_anomalous}
            assert row["prediction"] == {"is_anomalous": row["anomaly_score"] >= content["threshold"]}
            assert row["correct"] == (row["prediction"]["is_anomalous"] == is_anomalous)
            assert (row["mask_path"] is None) != is_anomalous
            assert all(Image.open(folder / row[f"{kind}_path"]).size == (48, 48) for kind in ("image", "heatmap"))


def test_a_report_on_normal_images_has_null_for_what_is_undefined(project, tmp_path):
    defects.write_report(project[1], None, None, "val", tmp_path)
    assert json.loads((tmp_path / "fabric/records.json").read_text())["metrics"]["aupro"] is None


# ------------------------------------------------------------------------------------------- command line
PAIRS = [
    f"{key}={value}"
    for key, value in {
        "categories": "fabric",
        "patch_sizes": "17,33",
        "image_size": 48,
        "epochs": 1,
        "batch_size": 3,
        "width": 4,
        "descriptor": 8,
        "students": 2,
        "workers": 0,
        "amp": False,
        "patch_pixels": 32,
        "teacher_width": 4,
        "warmup": 0,
        "teacher_image_size": "40,64",
        "teacher_epochs": 1,
        "teacher_batch_size": 6,
        "patches_per_image": 4,
    }.items()
]


def run(*arguments) -> int:
    return main([str(argument) for argument in ("defects", *arguments)])


def failure(capsys, *arguments) -> str:
    assert run(*arguments) == 1
    return capsys.readouterr().err


def test_command_line_from_data_to_report(folders, textures_root, monkeypatch, capsys):
    monkeypatch.setattr(textures, "write_dataset", partial(textures.write_dataset, counts=TEXTURE_COUNTS))
    assert run("data", "categories=fabric,bolt") == 0
    record = json.loads((folders / "results/defects/mini_distribution.json").read_text())["distribution"]
    assert list(record) == ["fabric", "bolt"] and record["bolt"]["val"] == {"good": 1}
    assert record["fabric"]["test"] == {"good": 2, "hole": 1, "misplaced": 1, "scratch": 1, "stain": 1}

    assert run("train", *PAIRS) == 0
    assert f"wrote {folders / 'weights/defects/mini.pth'}" in capsys.readouterr().out
    assert {path.name for path in (folders / "weights/defects").iterdir()} == {
        "mini.pth",
        "teacher_mini_17.pth",
        "teacher_mini_33.pth",
    }

    assert run("evaluate", "--json", folders / "out.json", "stride=8") == 0
    record = json.loads((folders / "out.json").read_text())
    assert set(PROVENANCE) <= record.keys() and record["score"] == scores.HEADLINE
    assert all(isinstance(record[key], float) for key in HEADLINE)
    assert record["config"]["patch_sizes"] == [17, 33] and record["config"]["stride"] == 8
    assert record["data"]["stride"] == 8 and record["data"]["files"] == 10
    assert f"image_auroc {record['image_auroc']:.4f}" in capsys.readouterr().out

    monkeypatch.chdir(textures_root)
    assert run("predict", "fabric/test/good/000.png", "fabric/train/good/001.png", "--out", folders / "pictures") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["filename"] for row in rows] == ["000.png", "001.png"]
    assert all((folders / "pictures" / row["heatmap_path"]).exists() for row in rows)
    assert run("predict", "fabric/test/good", "--out", folders / "pictures") == 0
    of_folder = json.loads(capsys.readouterr().out)
    assert [row["filename"] for row in of_folder] == sorted(file.name for file in Path("fabric/test/good").iterdir())
    assert len(of_folder) > 1 and of_folder[0]["anomaly_score"] == pytest.approx(rows[0]["anomaly_score"], abs=1e-4)

    assert run("report", "--split", "val", "--out", folders / "report") == 0
    assert f"wrote {folders / 'report/fabric.html'}" in capsys.readouterr().out


def test_command_line_with_named_weights(project, layouts, tmp_path, capsys):
    arguments = ("--weights", project[1].source, "--dataset", "csv", "--root", layouts["csv"])
    assert "categories=NAME" in failure(capsys, "evaluate", *arguments)
    assert run("evaluate", *arguments, "categories=tiles", "--json", tmp_path / "out.json") == 0
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["data"]["dataset"] == "csv" and record["aupro"] is None and str(tmp_path) not in json.dumps(record)


def test_weights_of_other_kinds_are_refused(project, tmp_path, capsys):
    best = project[0] / "runs/defects/mini_fabric_33/best.pth"
    assert "best.pth is of a run that has not ended" in failure(capsys, "evaluate", "--weights", best)
    teacher = project[0] / "weights/defects/teacher_mini_33.pth"
    assert "settings unknown to src.defects" in failure(capsys, "evaluate", "--weights", teacher)
    torch.save(models.PatchNet(17, 4, 4).state_dict(), tmp_path / "bare.pth")
    assert "bare.pth was not written by this project" in failure(capsys, "evaluate", "--weights", tmp_path / "bare.pth")


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (("train", "categories=wood"), "wood"),
        (("train", "teacher_images=nowhere"), "nowhere holds 0 images"),
        (("train", "--dataset", "kitti"), "kitti"),
        (("train", "--profile", "real", "--dataset", "folder"), "folder"),
        (("data", "--dataset", "magnetic_tile"), "magnetic_tile"),
    ],
)
def test_wrong_arguments_are_named(project, capsys, arguments, expected):
    assert expected in failure(capsys, *arguments)


# ----------------------------------------------------------------------------------------------- profiles
def test_full_is_the_courses_recipe():
    config = defects.Config.full()
    expected = {
        "epochs": 25,
        "batch_size": 1,
        "optimizer": "adam",
        "lr": 1e-4,
        "weight_decay": 1e-5,
        "students": 3,
        "patch_sizes": (33,),
        "image_size": 256,
        "crop_size": 0,
        "descriptor": 512,
        "stride": 1,
        "schedule": "constant",
        "warmup": 0,
        "clip_norm": 0.0,
    }
    assert {key: getattr(config, key) for key in expected} == expected
    teacher = config.teacher_config(33)
    expected = {
        "epochs": 200,
        "batch_size": 64,
        "optimizer": "adam",
        "lr": 2e-4,
        "weight_decay": 1e-5,
        "patch_size": 33,
        "descriptor": 512,
        "backbone": "resnet18",
        "pretrained": "imagenet",
        "depth": "last",
        "image_size": (256, 256),
        "augmentation": "flip_rotate",
        "patches_per_image": 1,
        "schedule": "constant",
        "warmup": 0,
        "width": 128,
    }
    assert {key: getattr(teacher, key) for key in expected} == expected
    decoder = models.Teacher(models.PatchNet(33, teacher.descriptor, teacher.width), 512).decoder
    assert isinstance(decoder, torch.nn.Identity)


def test_mini_needs_no_download_and_real_takes_data_of_ones_own():
    mini = defects.Config.mini()
    assert (mini.dataset, mini.pretrained, mini.image_size, mini.descriptor) == ("mini", "none", 128, 128)
    assert mini.categories == textures.CATEGORIES and mini.teacher_images.startswith("mini/")
    for dataset in ("magnetic_tile", "folder", "csv"):
        real = defects.Config.real(dataset)
        assert (real.dataset, real.percent, real.crop_size, real.categories) == (dataset, (70, 15, 15), 128, ())
    assert defects.Config.real("mvtec").percent == () and set(defects.REAL) <= set(data.FORMATS)


@pytest.mark.parametrize("profile", ["mini", "real", "full"])
def test_a_config_survives_its_checkpoint(profile):
    config = getattr(defects.Config, profile)()
    assert defects.Config.from_plain(config.plain()) == config
    assert TeacherConfig.from_plain(config.teacher_config(65).plain()) == config.teacher_config(65)
