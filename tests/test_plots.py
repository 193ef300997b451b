"""The shared figures show what they are given, in the figure style, and are closed once written."""

import base64
import io

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.patches import Patch
from PIL import Image

from src import plots, settings
from src.__main__ import SYSTEMS


@pytest.fixture(autouse=True)
def tidy():
    with plt.rc_context():
        plots.style()
        yield
    plt.close("all")


def lines(axis) -> dict[str, np.ndarray]:
    """label -> (n, 2) points of an axis' lines."""
    return {line.get_label(): line.get_xydata() for line in axis.get_lines()}


def test_style_sets_the_colour_cycle():
    assert tuple(plt.rcParams["axes.prop_cycle"].by_key()["color"]) == plots.COLORS
    assert plots.COLORS[0] == "#0072B2" and len(set(plots.COLORS)) == 8
    assert plots.SCORE_MAP in ("inferno", "viridis", "magma", "plasma", "cividis")  # perceptually uniform


def test_save_writes_a_png_and_closes_the_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "FIGURES_DIR", tmp_path / "figures")
    path = plots.save(plots.bars({"a": 1.0}, "score"), "road/bars")
    assert path == tmp_path / "figures" / "road" / "bars.png"
    with Image.open(path) as image:
        assert image.format == "PNG" and 1200 <= image.width < 1400
    assert not plt.get_fignums()


def test_colours_that_mean_something_survive_the_reduction(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "FIGURES_DIR", tmp_path)
    photo = np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8)
    photo[:, 80:] |= 252  # a pale half, close to white
    meant = [(255, 255, 255), plots.OUTLINE, *plots.OUTCOMES.values(), (0, 60, 100), (0, 80, 100)]
    for index, color in enumerate(meant):
        photo[5:10, 20 * index : 20 * index + 5] = color
    figure = plots.image_grid([[photo]])
    figure.legend(handles=[Patch(facecolor=np.array(color) / 255) for color in meant[2:]])
    with Image.open(plots.save(figure, "photo")) as picture:
        pixels = np.array(picture.convert("RGB"))
    drawn = set(map(tuple, pixels.reshape(-1, 3).tolist()))
    assert (pixels[:5] == 255).all()  # the margin
    assert set(meant) <= drawn and len(drawn) <= 256


@pytest.fixture
def shown(tmp_path, monkeypatch) -> list[tuple[dict, dict]]:
    """(data, metadata) of all that a notebook would show, filled as it is shown."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    shell, outputs = InteractiveShell.instance(), []
    monkeypatch.setattr(shell.display_pub, "publish", lambda data, metadata, **_: outputs.append((data, metadata)))
    yield outputs
    InteractiveShell.clear_instance()


def test_a_figure_is_shown_once_with_its_text(shown):
    figure = plots.bars({"a": 1.0}, "score")
    plots.show(figure, alt="One bar.")
    ((data, metadata),) = shown
    assert metadata["image/png"] == {"alt": "One bar."}
    with Image.open(io.BytesIO(base64.b64decode(data["image/png"]))) as image:
        assert image.format == "PNG" and 1200 <= image.width < 1400
    assert not plt.get_fignums()


def test_a_file_is_shown_with_its_text(shown, tmp_path):
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    plots.show_file(tmp_path / "a.png", alt="Black.")
    ((data, metadata),) = shown
    assert base64.b64decode(data["image/png"]) == (tmp_path / "a.png").read_bytes()
    assert metadata["image/png"] == {"alt": "Black."}


def test_image_grid():
    photo = np.zeros((6, 12, 3), np.uint8)
    heat = np.full((6, 12, 3), 200, np.uint8)
    figure = plots.image_grid([[photo, heat], [photo, heat // 2]], ["image", "score"], ["first", "second"])
    axes = np.array(figure.axes).reshape(2, 2)
    assert [axis.get_title() for axis in axes[0]] == ["image", "score"]
    assert [axis.get_ylabel() for axis in axes[:, 0]] == ["first", "second"]
    assert np.array_equal(axes[1, 1].images[0].get_array(), heat // 2)
    assert figure.get_figwidth() == plots.WIDTH
    with pytest.raises(ValueError, match="shorter|longer"):
        plots.image_grid([[photo, heat], [photo]])


def test_overlay_blends():
    image, colors = np.full((2, 2, 3), 100, np.uint8), np.full((2, 2, 3), 201, np.uint8)
    assert plots.overlay(image, colors).dtype == np.uint8
    assert (plots.overlay(image, colors) == 150).all()  # 150.5, rounded to the even one


def test_heat_is_brighter_for_higher_scores():
    score = np.linspace(-2, 2, 20).reshape(4, 5)
    colors = plots.heat(score, -2, 2)
    assert colors.shape == (4, 5, 3) and colors.dtype == np.uint8
    assert (np.diff(colors.astype(int).sum(-1).ravel()) > 0).all()
    clipped = plots.heat(score, 0.0, 1.0)
    assert (clipped[score <= 0] == clipped[0, 0]).all() and (clipped[score >= 1] == clipped[-1, -1]).all()
    assert np.isfinite(plots.heat(np.ones((2, 2)), 1.0, 1.0)).all()  # a map of one value


def test_only_what_reaches_the_threshold_is_coloured():
    image, score = np.full((1, 4, 3), 120, np.uint8), np.array([[-1.0, 2.99, 3.0, 99.0]])
    (colors,) = plots.above_threshold(image, score, 3.0, 9.0)
    assert (colors[:2] == colors[0, 0]).all() and len(set(colors[2].tolist())) == 3
    assert np.array_equal(colors[3], plots.above_threshold(image, np.full((1, 4), 9.0), 3.0, 9.0)[0, 0])
    assert colors[3].sum() > colors[2].sum() + 200


def test_learning_curves_draw_the_history():
    history = [{"epoch": e, "loss": 1 / e, "lr": 0.1, "miou": 0.2 * e, "pixel_accuracy": 0.3 * e} for e in (1, 2, 3)]
    left, middle, right = plots.learning_curves(history, ["miou", "pixel_accuracy"], best=2).axes
    assert np.allclose(left.get_lines()[0].get_xydata(), [(1, 1), (2, 1 / 2), (3, 1 / 3)])
    drawn = lines(middle)
    assert np.allclose(drawn["pixel accuracy"][:, 1], [0.3, 0.6, 0.9])
    assert (drawn["chosen epoch 2"][:, 0] == 2).all()
    assert np.allclose(right.get_lines()[0].get_ydata(), 0.1)
    assert all(axis.get_xlabel() == "epoch" for axis in (left, middle, right))


def test_pr_roc():
    curve = {"recall": [0, 0.9, 1], "precision": [1, 0.5, 0.1], "fpr": [0, 0.2, 1]}
    curve = {name: np.array(values) for name, values in curve.items()}
    left, right = plots.pr_roc({"MSP": curve}, base_rate=0.0123).axes
    assert np.array_equal(lines(left)["MSP"], [(0, 1), (0.9, 0.5), (1, 0.1)])
    assert (lines(left)["chance 0.012"][:, 1] == 0.0123).all()
    assert np.array_equal(lines(right)["MSP"], [(0, 0), (0.2, 0.9), (1, 1)])
    assert (left.get_xlabel(), left.get_ylabel()) == ("recall", "precision")
    assert (right.get_xlabel(), right.get_ylabel()) == ("false positive rate", "true positive rate")


def test_bars_mark_the_references_there_are():
    (axis,) = plots.bars({"a": 0.2, "b": 0.6}, "AUPR", {"b": 0.5, "c": 0.9}, "published").axes
    assert [patch.get_width() for patch in axis.patches] == [0.2, 0.6]
    assert lines(axis)["published"][:, 0].tolist() == [0.5]
    assert axis.yaxis_inverted() and axis.get_xlabel() == "AUPR"


def test_dots_draw_every_run_by_factor_and_variant():
    runs = {
        "head": {"mlp": np.array([0.1, 0.2]), "attention": np.array([0.5, 0.6, 0.9])},
        "layers": {"2": np.array([0.4]), "4": np.array([0.7, 0.3]), "8": np.array([0.8, 0.8])},
    }
    in_use = {"head": "attention", "layers": "4"}
    figure = plots.dots(runs, in_use, "accuracy")
    assert [axis.get_title(loc="left") for axis in figure.axes] == list(runs)
    assert [axis.get_xlabel() for axis in figure.axes] == ["", "accuracy"]
    for axis, (factor, variants) in zip(figure.axes, runs.items(), strict=True):
        drawn = {mark: [line.get_xydata() for line in axis.get_lines() if line.get_marker() == mark] for mark in "o|"}
        for place, values in enumerate(variants.values()):
            assert np.array_equal(drawn["o"][place], [(value, place) for value in values])
            assert np.allclose(drawn["|"][place], [(values.mean(), place)])
        assert len(drawn["o"]) == len(drawn["|"]) == len(variants) and axis.yaxis_inverted()
        names = {label.get_text(): label.get_fontweight() for label in axis.get_yticklabels()}
        assert names == {name: "bold" if name == in_use[factor] else "normal" for name in variants}
        assert axis.get_yticks().tolist() == list(range(len(variants)))
        (line,) = (line for line in axis.get_lines() if line.get_marker() == "None")
        assert np.allclose(line.get_xdata(), variants[in_use[factor]].mean())
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()


@pytest.mark.parametrize("in_use", [{}, {"head": "transformer"}])
def test_dots_without_the_variant_in_use_are_an_error(in_use):
    with pytest.raises(KeyError, match="head|transformer"):
        plots.dots({"head": {"mlp": np.array([0.1, 0.2])}}, in_use, "accuracy")


@pytest.mark.parametrize(("width", "line"), [(64, 2), (320, 2), (1280, 8)])
def test_an_outline_is_as_wide_as_the_image_asks_and_outside_the_region(width, line):
    region = np.zeros((80, width), dtype=bool)
    region[30:50, 20:40] = True
    marked = plots.outline(np.zeros((80, width, 3), np.uint8), region)
    drawn = (marked == plots.OUTLINE).all(2)
    assert not drawn[region].any()
    assert drawn[40, 20 - line : 20].all() and not drawn[40, : 20 - line].any()
    assert drawn[30 - line : 30, 30].all() and not drawn[: 30 - line, 30].any()


def test_arrows_of_a_diagram_join_the_boxes_named():
    places = {"image": (0, 0), "network": (1, 0), "score": (2, 1)}
    (axis,) = plots.flow_diagram(places, [("image", "network"), ("network", "score")], trained=["network"]).axes
    boxes = {text.get_text(): text for text in axis.texts if text.get_text()}
    assert {name: box.get_position() for name, box in boxes.items()} == places
    arrows = [text for text in axis.texts if not text.get_text()]
    assert [(arrow.xyann, arrow.xy) for arrow in arrows] == [((0, 0), (1, 0)), ((1, 0), (2, 1))]
    widths = {name: box.get_bbox_patch().get_linewidth() for name, box in boxes.items()}
    assert widths["network"] > widths["image"] == widths["score"]


def test_the_diagram_of_the_package_names_modules_that_every_system_has():
    (axis,) = plots.package_diagram().axes
    names = {text.get_text() for text in axis.texts}
    modules = {"data", "model", "fitting", "evaluation", "figures"}
    assert modules <= names
    assert all((settings.ROOT / "src" / system / f"{name}.py").is_file() for system in SYSTEMS for name in modules)
