"""Pasted objects, the head that learns where they are, its loss by hand, and what the public functions do with it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import average_precision_score
from torch import nn
from torchvision import tv_tensors

from src import checkpoints, road, settings, system
from src.backbones import normalize
from src.road import data, evaluation, outliers, transforms
from src.road import model as models

IGNORE, FLAT = data.IGNORE, (64, 96)
CLASSES = [data.LabelClass("building", (70, 70, 70)), data.LabelClass("road", (128, 64, 128))]
SIZES = [(16, 16), (16, 40), (37, 21), (64, 96)]


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu():
    """The same bits on every machine: several tests compare weights and histories exactly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "DEVICE", torch.device("cpu"))
        yield


def photograph(height: int, width: int) -> torch.Tensor:
    """A soft gradient and noise, float32 (3,H,W): no two neighbours are alike."""
    generator = torch.Generator().manual_seed(height)
    ramp = torch.linspace(-1.5, 1.5, height)[:, None] + torch.linspace(-0.3, 0.3, width)
    return ramp + 0.1 * torch.randn(3, height, width, generator=generator)


def pasted(image: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return outliers.paste(image)


# ------------------------------------------------------------------------------------------ pasted objects
@pytest.mark.parametrize("size", SIZES)
def test_an_image_changes_where_objects_are_and_nowhere_else(size):
    image = photograph(*size)
    before, crisp, soft = image.clone(), 0, 0
    low, high = image.amin((1, 2)) - 1e-5, image.amax((1, 2)) + 1e-5
    for seed in range(40):
        result, where = pasted(image, seed)
        assert torch.equal(image, before)
        assert result.shape == image.shape and result.dtype == torch.float32
        assert where.shape == size and where.dtype == torch.bool
        changed = (result != image).any(0)
        around = F.max_pool2d(where.float()[None], 3, 1, 1)[0] > 0
        for edge in (around[0], around[-1], around[:, 0], around[:, -1]):
            edge[:] = True  # it may lie beside what the image's border has cut off
        assert not (changed & ~around).any()
        assert changed[where].float().mean() > 0.9 or not where.any()
        assert (result.amin((1, 2)) >= low).all() and (result.amax((1, 2)) <= high).all()
        crisp, soft = crisp + bool((changed & ~where).sum() == 0), soft + bool((changed & ~where).any())
    assert crisp > 3 and soft > 10  # of two objects in three, one is often soft


def test_objects_are_given_by_the_state_of_the_generator():
    image = photograph(32, 48)
    for one, other in zip(pasted(image, 1), pasted(image, 1), strict=True):
        assert torch.equal(one, other)
    assert len({pasted(image, seed)[1].sum().item() for seed in range(10)}) > 5


def test_there_are_one_to_three_objects_of_all_sizes(monkeypatch):
    shapes, outline = [], outliers._outline

    def recorded(height, width):
        shapes[-1].append((height, width))
        return outline(height, width)

    monkeypatch.setattr(outliers, "_outline", recorded)
    image, places = torch.zeros(3, 200, 300), torch.zeros(200, 300)
    for seed in range(120):
        shapes.append([])
        places += pasted(image, seed)[1]
    assert {len(row) for row in shapes} == {1, 2, 3}
    heights = np.array([height for row in shapes for height, _ in row])
    assert 8 <= heights.min() < 12 and 100 < heights.max() <= 0.6 * 200
    assert 22 < np.median(heights) < 44  # log-uniform: the root of 0.04 * 0.6 is 0.15
    ratios = [width / height for row in shapes for height, width in row if height > 20]
    assert 0.4 < min(ratios) < 0.6 and 1.8 < max(ratios) < 2.3
    assert (places > 0).float().mean() > 0.7
    edges = (places[:100], places[100:], places[:, :5], places[:, -5:])  # halves and borders alike
    assert all(edge.mean() > 0.4 * places.mean() for edge in edges)


def test_small_objects_stand_on_the_ground():
    image, ground = photograph(200, 300), torch.zeros(200, 300, dtype=torch.bool)
    ground[120:140, 100:200] = True
    for seed in range(40):
        torch.manual_seed(seed)
        where = outliers.paste(image, ground)[1]
        rows, columns = where.any(1).nonzero()[:, 0], where.any(0).nonzero()[:, 0]
        assert rows.min() >= 120 - 0.12 * 200 and rows.max() < 140
        assert columns.min() >= 100 - 26 and columns.max() <= 200 + 26  # half as wide as the widest
        assert 0 < where.sum() < 3 * 24 * 53
    torch.manual_seed(1)
    assert all(map(torch.equal, outliers.paste(image, ground & False), pasted(image, 1)))  # no road: as without


def test_both_textures_are_used(monkeypatch):
    used, image = [], photograph(40, 60)
    for name in ("_piece", "_clouds"):
        texture = getattr(outliers, name)
        monkeypatch.setattr(outliers, name, lambda *given, n=name, t=texture: used.append(n) or t(*given))
    for seed in range(100):
        pasted(image, seed)
    assert 0.5 < used.count("_piece") / len(used) < 0.7
    for size in ((8, 8), (23, 9), (30, 50)):
        for texture in (outliers._piece(image, *size), outliers._clouds(*size)):
            assert texture.shape == (3, *size) and texture.isfinite().all()


def sample(height: int = 40, width: int = 60) -> dict:
    """An image with labels 0, 1, one beyond the two known classes, and void, each a quarter of it."""
    mask = torch.zeros(1, height, width, dtype=torch.uint8)
    mask[:, : height // 2, width // 2 :] = 1
    mask[:, height // 2 :, : width // 2] = 2
    mask[:, height // 2 :, width // 2 :] = IGNORE
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return {"image": tv_tensors.Image(image), "mask": tv_tensors.Mask(mask), "name": "a.png"}


def test_views_say_what_is_pasted_what_is_not_and_what_nobody_knows():
    augment, seen = transforms.Augment("flip_color", 2, (32, 48), (24, 40)), set()
    for seed in range(20):
        torch.manual_seed(seed)
        view = augment(sample())
        small = torch.rand(()) < outliers.SMALL_SHARE
        image, where = outliers.paste(view["image"], view["mask"] == 1 if small else None)
        torch.manual_seed(seed)
        pasted_view = outliers.PastedAnomalies(augment, CLASSES, 0.0)(sample())
        assert pasted_view.keys() == {"image", "mask"} and torch.equal(pasted_view["image"], image)
        assert pasted_view["image"].dtype == torch.float32 and pasted_view["mask"].dtype == torch.int64
        assert pasted_view["mask"].shape == (24, 40) and set(pasted_view["mask"].unique().tolist()) <= {0, 1, IGNORE}
        assert torch.equal(pasted_view["mask"] == 1, where)  # an object hides what is void
        assert torch.equal(pasted_view["mask"] == IGNORE, (view["mask"] == IGNORE) & ~where)
        seen |= set(pasted_view["mask"].unique().tolist())
    assert seen == {0, 1, IGNORE}


def test_another_camera_changes_colours_and_leaves_things_in_place():
    image, augment = normalize(sample()["image"]), transforms.Augment("none", 2, (40, 60), None)
    image[:, 10:30, 20:40] += 1.0
    before, (black, white) = image.clone(), normalize(torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, 3, 1, 1))
    for seed in range(20):
        torch.manual_seed(seed)
        jittered = outliers.photometric_jitter(image)
        assert torch.equal(image, before) and jittered.shape == image.shape and jittered.dtype == torch.float32
        assert (jittered >= black - 1e-5).all() and (jittered <= white + 1e-5).all()
        assert jittered[:, 12:28, 22:38].mean() > jittered[:, 32:].mean() + 0.05  # what was brighter still is
        views = []
        for share in (0.0, 1.0, 1.0):
            torch.manual_seed(seed)
            views.append(outliers.PastedAnomalies(augment, CLASSES, share)(sample()))
        assert torch.equal(views[0]["mask"], views[1]["mask"]) and same(views[1], views[2])
        assert (views[0]["image"] != views[1]["image"]).float().mean() > 0.9


# ------------------------------------------------------------------------------------------------ the head
def features(batch: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = {"fine": (2, 12, 20), "middle": (3, 6, 10), "coarse": (4, 3, 5)}
    return {name: torch.randn(batch, *size, generator=generator) for name, size in sizes.items()}


@pytest.fixture(params=[False, True], ids=["deepest", "fine"])
def head(request) -> models.OutlierHead:
    torch.manual_seed(0)
    return models.OutlierHead(("fine", "middle", "coarse"), (2, 3, 4), request.param).eval()


def test_the_head_scores_at_the_resolution_of_the_deepest_or_the_second_features(head):
    assert (
        head(features()).shape == ((2, 6, 10) if head.size_of == "middle" else (2, 3, 5))
        and head(features()).dtype == torch.float32
    )
    assert torch.equal(head(features() | {"other": torch.zeros(2, 1, 9, 9)}), head(features()))
    for index, row in enumerate(head(features())):
        alone = {name: values[index : index + 1] for name, values in features().items()}
        assert torch.allclose(head(alone)[0], row, atol=1e-6)


@pytest.mark.parametrize("name", ["fine", "middle", "coarse"])
def test_the_head_sees_every_depth(head, name):
    changed = features()
    changed[name][0, 0] += 1
    assert not torch.allclose(head(changed)[0], head(features())[0], atol=1e-4)
    assert torch.equal(head(changed)[1], head(features())[1])


def test_finer_features_are_averaged_and_coarser_ones_interpolated(head):
    resized, (rows, columns) = features(), features()[head.size_of].shape[-2:]
    for name, values in features().items():
        if values.shape[-1] >= columns:
            factor = values.shape[-1] // columns
            means = F.avg_pool2d(values, factor)
            resized[name] = means.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        else:
            resized[name] = F.interpolate(values, (rows, columns), mode="bilinear")
    assert torch.allclose(head(resized), head(features()), atol=1e-5)


# ------------------------------------------------------------------------------------------- loss and value
def entropy(logit: float, target: float) -> float:
    p = 1 / (1 + np.exp(-logit))
    return -target * np.log(p) - (1 - target) * np.log(1 - p)


def loss_of(logits: list[float], mask: list[list[int]]) -> float:
    """Of a head that gives these logits, one for two columns of the mask."""
    batch = {"image": torch.tensor(logits)[None, None], "mask": torch.tensor(mask)[None]}
    return outliers.loss(nn.Identity(), batch, nn.Identity()).item()


def test_loss_by_hand():
    mask = [[1, 1, 0, IGNORE, 1, 1, 0, 0],
            [1, 0, 0, IGNORE, 1, 1, 0, 0]]  # fmt: skip
    logits = [0.7, -0.4, 1.3, 0.2]
    expected = entropy(0.7, 0.75) + 0.5 * entropy(-0.4, 0) + entropy(1.3, 1) + entropy(0.2, 0)
    assert loss_of(logits, mask) == pytest.approx(expected / 3.5, rel=1e-5)


def test_what_nobody_knows_does_not_count():
    known = [[1, 0, 0, 0], [0, 0, 0, 0]]
    padded = [row + [IGNORE, IGNORE] for row in known]
    for logit in (-9.0, 0.0, 9.0):
        assert loss_of([0.3, -0.2, logit], padded) == pytest.approx(loss_of([0.3, -0.2], known), rel=1e-5)
    assert loss_of([5.0], [[IGNORE, IGNORE]] * 2) == 0


def test_validation_is_the_aupr_of_all_known_pixels_pooled():
    rng, config = np.random.default_rng(0), road.Config(amp=False)
    masks, scores = rng.choice([0, 0, 0, 1, IGNORE], (3, 12, 14)), rng.normal(size=(3, 12, 14)).astype(np.float32)
    scores += masks == 1
    views = [{"image": torch.from_numpy(s)[None], "mask": torch.from_numpy(m)}
             for s, m in zip(scores, masks, strict=True)]  # fmt: skip
    metrics = outliers.validate(lambda image: image[:, 0], views, lambda image: image, config)
    known = masks != IGNORE
    assert metrics == {"aupr": pytest.approx(average_precision_score(masks[known] == 1, scores[known]), abs=1e-6)}
    coarse = outliers.validate(lambda image: image[:, 0, ::4, ::4], views, lambda image: image, config)
    assert 0 < coarse["aupr"] != metrics["aupr"]


# ------------------------------------------------------------------------------------------------- training
@pytest.fixture(scope="module")
def flat(tmp_path_factory) -> dict[str, data.StreetHazards]:
    """Twelve train and six val streets of a grey road below a blue sky, on which pasted objects stand out."""
    root, rng = tmp_path_factory.mktemp("flat"), np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6)):
        part, folder = data.StreetHazards.folders[split]
        for number in range(count):
            edge, image, labels = rng.integers(20, 40), np.zeros((*FLAT, 3)), np.full(FLAT, 2, np.uint8)
            image[:edge], image[edge:], labels[edge:] = (150, 180, 220), (90, 90, 90), 8
            image += rng.normal(0, 4, image.shape)
            for kind, array in (("images", np.uint8(image)), ("annotations", labels)):
                path = root / part / kind / folder / "t1" / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    return {split: data.StreetHazards(root, split) for split in ("train", "val")}


HEADED = road.Config(epochs=1, batch_size=4, width=0.25, image_size=FLAT, workers=0, amp=False, augmentation="none",
                     outlier_epochs=5)  # fmt: skip


def state(model: nn.Module, head: bool) -> dict[str, torch.Tensor]:
    """A copy of the weights and statistics of the outlier head, or of all else."""
    return {name: values.clone() for name, values in model.state_dict().items()
            if name.startswith("outlier_head.") == head}  # fmt: skip


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(values, other[name]) for name, values in one.items())


def test_the_head_learns_and_nothing_else_changes(flat, tmp_path, monkeypatch):
    monkeypatch.setattr(outliers, "JITTERED_SHARE", 0.0)  # a few steps are enough
    model, views, validate = road.build_model(HEADED).train(), [], outliers.validate
    monkeypatch.setattr(outliers, "validate", lambda *given, **named: views.append(named) or validate(*given, **named))
    before, untrained = state(model, head=False), state(model, head=True)
    history = outliers.fit(model, flat["train"], flat["val"], HEADED, tmp_path)
    assert same(state(model, head=False), before)
    assert not same(state(model, head=True), untrained)
    masks = torch.stack([view["mask"] for view in views[0]["views"]])
    base_rate = (masks == 1).float().mean().item()
    best = max(row["aupr"] for row in history)
    assert len(history) == len(views) == 5 and 0.005 < base_rate < 0.1 and best > 5 * base_rate
    assert validate(model.outlier_head, **views[0])["aupr"] == best  # the weights are those of the best epoch
    assert all(same(one, other) for one, other in zip(views[0]["views"], views[-1]["views"], strict=True))
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("limit, chosen", [(48, [0, 1, 2, 3, 4, 5]), (3, [0, 2, 4]), (4, [0, 2, 4]), (1, [0])])
def test_validation_images_are_spread_over_the_split(flat, monkeypatch, limit, chosen):
    """Each as it is on disk, but for what is pasted, and whatever seed has been set before."""
    monkeypatch.setattr(outliers, "_VALIDATION", limit)
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        drawn.append(outliers.validation_views(flat["val"], HEADED))
    assert len(drawn[0]) == len(chosen) and all(map(same, *drawn))
    for view, index in zip(drawn[0], chosen, strict=True):
        away = F.max_pool2d((view["mask"] == 1).float()[None], 3, 1, 1)[0] == 0
        plain = transforms.preprocess(flat["val"][index]["image"], FLAT)
        assert torch.equal(view["image"][:, away], plain[:, away]) and not torch.equal(view["image"], plain)


def test_a_killed_training_resumes_to_the_same_weights(flat, tmp_path, killed_at):
    config = replace(HEADED, outlier_epochs=2)
    uninterrupted, resumed = road.build_model(config), road.build_model(config)
    expected = outliers.fit(uninterrupted, flat["train"], flat["val"], config, tmp_path / "uninterrupted")

    calls = killed_at(outliers, 5)  # the second batch of the second epoch
    with pytest.raises(KeyboardInterrupt):
        outliers.fit(resumed, flat["train"], flat["val"], config, tmp_path / "killed")
    history = outliers.fit(resumed, flat["train"], flat["val"], config, tmp_path / "killed")
    assert len(calls) == 5 + 3 and same(resumed.state_dict(), uninterrupted.state_dict())
    assert [{**row, "seconds": 0} for row in history] == [{**row, "seconds": 0} for row in expected]


# ---------------------------------------------------------------------------------------------------- public functions
@pytest.fixture(scope="module")
def headed(mini_root, tiny_config, tmp_path_factory) -> system.Trained:
    """``tiny_config`` with an epoch for the head; beside the file, its run."""
    folder = tmp_path_factory.mktemp("headed")
    config = replace(tiny_config, outlier_epochs=1)
    return road.train(config, mini_root, run_dir=folder / "run", out=folder / "headed.pth")


def test_training_leaves_a_segmenter_and_its_head(headed):
    content, run = checkpoints.load(headed.source), headed.source.parent / "run"
    assert content["config"]["outlier_epochs"] == 1 and len(content["extras"]["outlier_history"]) == 1
    assert set(content["extras"]["calibration"]["thresholds"]) == set(evaluation.SCORE_NAMES)
    assert same(content["weights"], headed.model.state_dict())
    segmenter, head = (checkpoints.load(path / "best.pth") for path in (run, run / "outliers"))
    assert segmenter["config"]["outlier_epochs"] == 0
    assert same(segmenter["weights"], state(headed.model, head=False))
    assert same({f"outlier_head.{name}": v for name, v in head["weights"].items()}, state(headed.model, head=True))


def test_a_headed_model_is_evaluated_by_its_head(headed, mini_root):
    loaded = system.load(road, headed.source, road.Config())
    assert loaded.config == headed.config and same(loaded.model.state_dict(), headed.model.state_dict())
    metrics = road.evaluate(loaded, mini_root)
    assert metrics["score"] == "combined" == evaluation.headline(loaded.model, loaded.calibration)
    assert metrics["aupr"] == metrics["protocols"]["pooled"]["combined"]["aupr"]
    threshold = headed.calibration["thresholds"]["outlier"]
    assert metrics["scores"]["outlier"]["threshold"] == threshold and threshold == threshold
    with pytest.raises(checkpoints.CheckpointError, match="outlier_epochs: 1 in the file, 3 asked for"):
        system.load(road, headed.source, road.Config(), ["outlier_epochs=3"])


def test_pictures_of_a_headed_model_show_the_combined_score(headed, mini_root, tmp_path):
    file = data.StreetHazards(mini_root, "test").pairs[0][0]
    (row,) = road.predict(headed, [file], tmp_path)
    assert row["threshold"] == pytest.approx(headed.calibration["thresholds"]["combined"], abs=1e-4)
    assert Image.open(tmp_path / f"{file.stem}_combined.png").size == (160, 90) and "max_logit" not in row


def test_logits_are_the_same_with_and_without_the_head(headed):
    images = torch.randn(2, 3, 48, 80, generator=torch.Generator().manual_seed(0))
    plain = road.build_model(replace(headed.config, outlier_epochs=0)).eval()
    plain.to(memory_format=torch.channels_last).load_state_dict(state(headed.model, head=False))
    logits, outlier = models.infer(headed.model, images, (90, 160))
    expected, none = models.infer(plain, images, (90, 160))
    assert torch.equal(logits, expected) and none is None
    assert outlier.shape == (2, 90, 160) and outlier.dtype == torch.float32 and not outlier.requires_grad
    with torch.inference_mode():
        coarse = headed.model.outlier_head(
            models.layer_outputs(plain.backbone, headed.model.outlier_head.names, images)
        )
    assert torch.equal(outlier, F.interpolate(coarse[:, None], (90, 160), mode="bilinear")[:, 0])


@pytest.mark.parametrize("epochs", [0, 2])
def test_a_model_has_the_head_that_its_config_asks_for(tiny_config, epochs):
    model = road.build_model(replace(tiny_config, outlier_epochs=epochs))
    assert evaluation.has_head(model) == hasattr(model, "outlier_head") == bool(epochs)
    plain = road.build_model(tiny_config)  # the segmenter draws the same numbers
    assert same(state(model, head=False), plain.state_dict())


def test_a_checkpoint_older_than_the_setting_has_no_head(tiny_weights, tiny_config, mini_root, tmp_path):
    content = checkpoints.read(tiny_weights)
    assert content["config"].pop("outlier_epochs") == 0
    checkpoints.write(content, tmp_path / "old.pth")
    old = system.load(road, tmp_path / "old.pth", road.Config.mini())
    assert old.config == tiny_config and not evaluation.has_head(old.model)
    assert road.evaluate(old, mini_root)["score"] == "max_logit"
    with pytest.raises(checkpoints.CheckpointError, match="outlier_epochs: 0 in the file, 8 asked for"):
        system.load(road, tmp_path / "old.pth", road.Config.mini(), ["outlier_epochs=8"])


def test_a_bare_state_dict_gets_no_head(tiny_weights, tiny_config, tmp_path):
    torch.save(checkpoints.load(tiny_weights)["weights"], tmp_path / "bare.pth")
    bare = system.load(road, tmp_path / "bare.pth", replace(tiny_config, outlier_epochs=8))
    assert bare.config == tiny_config and not evaluation.has_head(bare.model)
