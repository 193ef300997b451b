"""What the system draws: every file of ``draw`` on tiny textures, and what the single figures show of which numbers."""

import shutil
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from src import defects, plots, settings, system
from src.__main__ import main
from src.defects import data, figures, fitting, scores
from src.defects.evaluation import Meter, Scored, auroc
from tests.defects.conftest import TINY

HISTORY = {
    "teacher 33": [{"epoch": e, "distillation": 1 / e, "effective_rank": 2.0 * e} for e in (1, 2, 3)],
    "fabric 33": [{"epoch": e, "regression_error": 0.5 / e} for e in (1, 2)],
    "tiles 33": [{"epoch": e, "regression_error": 0.7 / e} for e in (1, 2)],
}


@pytest.fixture(scope="module")
def untrained(textures_root, tmp_path_factory) -> system.Trained:
    """A model as it was initialised, calibrated: it can score and draw."""
    val = {category: splits["val"] for category, splits in defects.datasets(TINY, textures_root).items()}
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    return fitting.finish(TINY, defects.build_model(TINY), val, HISTORY, path)


@pytest.fixture(autouse=True)
def closed():
    """No figure is open before a test, or left open."""
    plt.close("all")
    yield
    plt.close("all")


@pytest.fixture
def of_fabric(untrained) -> system.Trained:
    return replace(untrained, config=replace(TINY, categories=("fabric",)))


def picture(path: Path) -> np.ndarray:
    """The grey levels of a PNG, after checks that hold for every figure."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        levels = np.array(image.convert("L"))
    assert 350 < levels.shape[1] < 1400 and 100 < levels.shape[0] < 2200
    assert levels.std() > 8 and path.stat().st_size < 500_000
    return levels


# ------------------------------------------------------------------------------------------------- draw
def test_the_command_draws_and_names_every_figure(untrained, folders, capsys):
    assert main(["defects", "figures", "--weights", str(untrained.source)]) == 0
    names = ("failures_fabric", "failures_tiles", "heatmaps", "roc", "scores", "curves")
    paths = [folders / f"figures/defects/mini_{name}.png" for name in names]
    assert capsys.readouterr().out.splitlines() == [f"wrote {path}" for path in paths]
    assert sorted(paths) == sorted((folders / "figures").rglob("*.*"))
    drawn = [picture(path) for path in paths]
    assert len({levels.tobytes() for levels in drawn}) == len(drawn)
    assert not plt.get_fignums()


def write_folder(textures_root: Path, root: Path, kinds: tuple[str, ...], masks: bool) -> Path:
    """The fabric of the test split in the layout ``folder``."""
    for kind in kinds:
        for path in sorted((textures_root / "fabric/test" / kind).iterdir()):
            target = root / "images" / ("good" if kind == "good" else "defect") / f"{kind}{path.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
            if masks and kind != "good":
                (root / "masks").mkdir(exist_ok=True)
                truth = textures_root / "fabric/ground_truth" / kind / f"{path.stem}_mask.png"
                shutil.copy(truth, root / "masks" / target.name)
    return root


@pytest.mark.parametrize("masks", [True, False])
def test_other_data_is_drawn_without_the_curves_of_training(of_fabric, textures_root, folders, masks):
    root = write_folder(textures_root, folders / "own", ("good", "hole", "stain"), masks)
    paths = system.write_figures(defects, of_fabric, root, "folder")
    assert [path.stem for path in paths] == ["folder_failures_fabric", "folder_heatmaps", "folder_roc", "folder_scores"]
    assert all(len(picture(path)) for path in paths)


@pytest.mark.parametrize("kinds, only", [(("good",), "normal"), (("hole",), "anomalous")])
def test_images_of_one_class_are_refused(of_fabric, textures_root, folders, kinds, only):
    write_folder(textures_root, folders / "own", kinds, True)
    table = folders / "own/labels.csv"
    files = [path.relative_to(folders / "own").as_posix() for path in sorted((folders / "own/images").rglob("*.png"))]
    table.write_text("\n".join(["filename,is_anomalous", *(f"{file},{int('good' not in file)}" for file in files)]))
    with pytest.raises(settings.InputError, match=f"csv has only {only} images of fabric.*ROC"):
        defects.draw(of_fabric, folders / "own", "csv")
    assert not (folders / "figures").exists()


def test_images_that_cannot_be_found_are_named(untrained, of_fabric, folders):
    with pytest.raises(data.DataError, match=f"{folders / 'nowhere'}"):
        defects.draw(of_fabric, folders / "nowhere", None)
    with pytest.raises(data.DataError, match="kitti"):
        defects.draw(of_fabric, None, "kitti")
    with pytest.raises(settings.InputError, match="fabric, tiles: choose one with categories=NAME"):
        defects.draw(untrained, write_one(folders), "folder")


def write_one(folder: Path) -> Path:
    (folder / "one/images/good").mkdir(parents=True)
    Image.new("RGB", (48, 48)).save(folder / "one/images/good/0.png")
    return folder / "one"


# -------------------------------------------------------------------------------------------- by hand
def item(name: str, defect: str, score: float, masked: bool = True) -> Scored:
    """A dark image of 40 x 60; its maps of 20 x 30 are -1 but for ``score`` where defects have their defect."""
    score_map = torch.full((20, 30), -1.0)
    score_map[8:13, 12:18] = score
    mask = torch.zeros(40, 60, dtype=torch.bool)
    mask[16:26, 24:36] = defect != data.NORMAL
    image = torch.full((3, 40, 60), 50, dtype=torch.uint8)
    return Scored(
        name,
        defect,
        image,
        mask if masked else None,
        dict.fromkeys(("error", "uncertainty", "sum", "calibrated"), score_map),
    )


ITEMS = [
    item(f"{number}.png", defect, score)
    for number, (defect, score) in enumerate(
        [
            ("good", 1.0),
            ("good", 5.0),
            ("hole", 2.0),
            ("good", 3.0),
            ("stain", 9.0),
            ("hole", 6.0),
            ("good", 2.5),
        ]
    )
]
OUTLINE = np.array((60, 250, 240))


def test_defects_are_outlined_at_the_size_of_the_maps():
    (hole,) = (one for one in ITEMS if one.name == "2.png")
    image = figures.outlined(hole)
    marked = (image == OUTLINE).all(2)
    rows, columns = np.nonzero(marked)
    assert image.shape == (20, 30, 3) and image.dtype == np.uint8
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (6, 14, 10, 19)  # two pixels around 8:13, 12:18
    assert not marked[8:13, 12:18].any() and (image[~marked] == 50).all()


@pytest.mark.parametrize("other", [item("a", "good", 1.0), item("b", "hole", 1.0, masked=False)])
def test_nothing_to_outline(other):
    assert np.array_equal(figures.outlined(other), np.full((20, 30, 3), 50, dtype=np.uint8))


def panels(figure) -> list[np.ndarray]:
    return [np.asarray(axis.images[0].get_array()) for axis in figure.axes if axis.images]


@pytest.mark.parametrize("threshold", [-3.0, 0.0, 2.0, 9.0, 1e6])
def test_heat_maps_show_what_exceeds_the_threshold_on_one_scale(threshold):
    """Below it the picture in dark grey, whatever the image holds; above it colours up to twice its value."""
    one, unit = ITEMS[4], max(abs(threshold), 1)
    one = replace(one, maps={name: torch.linspace(-6, 24, 600).view(20, 30) for name in one.maps})
    score, heat = one.maps["calibrated"].numpy(), one.heat(threshold)
    below = score < threshold
    assert (heat[below] == 25).all()  # half of 50
    assert np.array_equal(heat[~below], plots.heat(score, threshold - unit / 2, threshold + unit)[~below])
    assert not (heat[~below] == 25).all(1).any()


def test_good_parts_stay_dark():
    """However they compare with each other: maps are not stretched to their own range."""
    assert all((one.heat(10.0) == 25).all() for one in ITEMS)


def test_heat_maps_stand_beside_the_signals_of_the_method():
    figure = figures.heatmap_grid(ITEMS[2:4], [4.0, 2.0])
    images = panels(figure)
    assert len(images) == 8 and all(image.shape == (192, 192, 3) for image in images)
    assert [axis.get_title() for axis in figure.axes[:4]] == ["image", "error", "uncertainty", "calibrated"]
    assert [figure.axes[row].get_ylabel() for row in (0, 4)] == ["hole\n2.0 / 4.0", "good\n3.0 / 2.0"]
    middle = [tuple(images[panel][99, 96]) for panel in (3, 7)]
    assert middle == [(25, 25, 25), tuple(plots.heat(np.array([[3.0]]), 1, 4)[0, 0])]
    for panel in (3, 7):
        assert tuple(images[panel][96, 5]) == (25, 25, 25) and tuple(images[panel][3, 96]) == (255, 255, 255)
    one = replace(ITEMS[2], maps={"distance": ITEMS[2].maps["error"], "calibrated": ITEMS[2].maps["calibrated"]})
    titles = [axis.get_title() for axis in figures.heatmap_grid([one], [4.0]).axes[:3]]
    assert titles == ["image", "distance", "calibrated"]


def test_histogram_counts_every_image_once():
    meters = {"a_part": Meter.of(ITEMS), "other": Meter.of(ITEMS[:3])}
    figure = figures.score_histogram(meters, {"a_part": 4.0, "other": 1})
    left, right = figure.axes
    assert [sum(bar.get_height() for bar in container) for container in left.containers] == [4, 3]
    assert [sum(bar.get_height() for bar in container) for container in right.containers] == [2, 1]
    assert [axis.lines[0].get_xdata()[0] for axis in figure.axes] == [4.0, 1]
    assert left.get_title() == "a part"
    assert {text.get_text() for text in left.get_legend().get_texts()} == {"normal", "anomalous", "threshold"}


def test_roc_has_the_area_of_the_record():
    meter, unmasked = Meter.of(ITEMS), Meter.of([item(one.name, one.defect, one.score(), False) for one in ITEMS])
    figure = figures.roc({"a_part": meter, "unmasked": unmasked})
    left, right = figure.axes
    expected = auroc(meter.truth(), np.array(meter.images[scores.HEADLINE]))
    for line in left.lines[:2]:
        assert np.trapezoid(line.get_ydata(), line.get_xdata()) == pytest.approx(expected) and 0.5 < expected < 1
    curve = meter.regions[scores.HEADLINE].curve()
    assert np.array_equal(right.lines[0].get_xdata(), curve["fpr"])
    assert np.array_equal(right.lines[0].get_ydata(), curve["pro"])
    assert len(right.lines) == 2 and list(right.lines[1].get_xdata()) == [0.3, 0.3]  # none for what has no regions
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["a part", "unmasked"]


def test_curves_show_the_history():
    axes = figures.curves(HISTORY).axes
    drawn = [[(line.get_label(), list(line.get_xdata()), list(line.get_ydata())) for line in a.lines] for a in axes]
    assert drawn == [
        [("teacher 33", [1, 2, 3], [1, 1 / 2, 1 / 3])],
        [("teacher 33", [1, 2, 3], [2, 4, 6])],
        [("fabric 33", [1, 2], [0.5, 0.25]), ("tiles 33", [1, 2], [0.7, 0.35])],
    ]


@pytest.mark.parametrize(
    "count, titles",
    [
        (2, ["normal\n5.0", "normal\n3.0", "hole\n2.0", "hole\n6.0"]),
        (4, ["normal\n5.0", "normal\n3.0", "normal\n2.5", "normal\n1.0", "hole\n2.0", "hole\n6.0", "stain\n9.0"]),
    ],
)
def test_failures_are_the_worst_of_both_kinds(count, titles):
    figure = figures.failures(ITEMS, 4.0, count)
    assert [axis.get_title() for axis in figure.axes[: len(titles)]] == titles
    images = panels(figure)
    assert len(images) == 2 * len(titles)
    has_outline = [(image == OUTLINE).all(2).any() for image in images[: len(titles)]]
    assert has_outline == ["normal" not in title for title in titles]
    shades = [tuple(plots.heat(np.array([[5.0]]), 2, 8)[0, 0]), (25, 25, 25)]
    assert [tuple(image[99, 96]) for image in images[len(titles) :][:2]] == shades


def test_images_of_any_shape_share_a_grid():
    wide, high = (figures._square(np.full((*size, 3), 9, dtype=np.uint8)) for size in ((10, 40), (300, 100)))
    assert wide.shape == high.shape == (192, 192, 3)
    for image, box in ((wide, (slice(72, 120), slice(0, 192))), (high, (slice(0, 192), slice(64, 128)))):
        assert (image[box] == 9).all() and (image == 9).all(2).sum() == image[box][..., 0].size
        assert ((image == 9) | (image == 255)).all()


@pytest.mark.parametrize("count", [3, 5, 99])
def test_typical_images_of_every_kind_in_turn(count):
    """The medians are 2.75 for good and 4 for hole; of images equally near, the first."""
    names = [f"{number}.png" for number in (3, 2, 4, 6, 5, 0, 1)]
    assert [one.name for one in figures.typical(ITEMS, count)] == names[:count]


# ------------------------------------------------------------------------------------- samples, descriptors
def test_samples_grid_shows_one_image_of_each_kind(textures_root):
    sets = {category: parts["test"] for category, parts in defects.datasets(TINY, textures_root).items()}
    kinds = ("good", "hole", "stain")
    figure = figures.samples_grid(sets, kinds)
    images = panels(figure)
    assert [axis.get_title() for axis in figure.axes[:3]] == list(kinds)
    assert [figure.axes[row].get_ylabel() for row in (0, 3)] == ["fabric", "tiles"]
    assert np.array_equal(images[0], np.array(Image.open(textures_root / "fabric/test/good/000.png")))
    outlined = [(image == OUTLINE).all(2).any() for image in images]
    assert outlined == [False, True, True] * 2


def test_samples_grid_of_categories_whose_kinds_differ(stripes):
    """And of a defect without mask."""
    wood, wire = stripes(("good", "hole", "cut")), stripes(("good", "dent"), seed=1)
    wire.items[1] = replace(wire.items[1], mask=None)
    figure = figures.samples_grid({"wood": wood, "wire": wire}, ("good", "hole", "cut"))
    assert [axis.get_title() for axis in figure.axes] == ["good", "hole", "cut", "", "dent", ""]
    images = panels(figure)
    assert np.array_equal(images[4], wire[1]["image"].permute(1, 2, 0)) and (images[5] == 255).all()


def test_descriptors_as_colours(textures_root):
    sample = defects.datasets(TINY, textures_root)["fabric"]["test"][2]
    colors = figures.descriptor_colors(defects.build_model(TINY), "fabric", sample["image"], TINY)
    assert list(colors) == ["teacher", "students' mean"]
    assert all(c.shape == (48, 48, 3) and c.dtype == np.uint8 and c.std() > 10 for c in colors.values())
    assert not np.array_equal(*colors.values())


def test_students_that_know_the_teacher_have_its_colours(textures_root):
    sample = defects.datasets(TINY, textures_root)["fabric"]["test"][2]
    model = defects.build_model(replace(TINY, width=TINY.teacher_width))
    before, _ = figures.descriptor_colors(model, "fabric", sample["image"], TINY).values()
    for net in model.students["fabric"]["33"].nets:
        net.load_state_dict(model.teachers["33"].state_dict())
    teacher, students = figures.descriptor_colors(model, "fabric", sample["image"], TINY).values()
    assert np.array_equal(teacher, students) and np.array_equal(teacher, before)


def test_descriptors_are_shown_of_the_last_defect_of_a_kind(untrained, textures_root):
    images = {name: splits["test"] for name, splits in defects.datasets(TINY, textures_root).items()}
    figure = figures.descriptors_grid(untrained, images, "hole")
    assert [axis.get_ylabel() for axis in figure.axes[:-1:4]] == list(images)
    category, dataset = next(iter(images.items()))
    last = [item for item in dataset.items if item.defect == "hole"][-1:]
    (item,) = figures.scored(untrained, category, data.DefectDataset(last, dataset.root))
    assert np.array_equal(figure.axes[0].images[0].get_array(), figures.outlined(item))
