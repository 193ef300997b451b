"""Methods on frozen features: vectors in their places, distances by brute force, and a training of each method."""

import json
from copy import deepcopy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from src import backbones, checkpoints, defects, settings, system
from src.__main__ import main
from src.defects import data, evaluation, feature_fitting, features, scores
from src.defects.config import METHODS
from src.defects.data import DefectDataset
from tests.defects.conftest import TINY, redirect

CONFIG = replace(TINY, method="nearest_neighbours", backbone="mobilenet_v2", memory=30, stride=8)
STUDENT = replace(CONFIG, method="feature_student")
ON_FEATURES = METHODS[1:]


@pytest.fixture(scope="module")
def backbone() -> features.Features:
    return features.FeatureDetector(CONFIG, ()).eval().backbone


@pytest.fixture(scope="module", params=ON_FEATURES)
def trained(request, textures_root, tmp_path_factory):
    """What ``train`` gave in a project of its own, with each method."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        redirect(patch, textures_root.parents[1], folder)
        yield defects.train(replace(CONFIG, method=request.param))


# --------------------------------------------------------------------------------------------- networks
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
@pytest.mark.parametrize("size", [(64, 96), (61, 49), (8, 17)])
def test_a_vector_for_every_eighth_pixel(name, size):
    net = features.FeatureDetector(replace(CONFIG, backbone=name), ()).backbone
    vectors = net(torch.randn(2, 3, *size))
    assert vectors.shape == (2, net.channels, -(-size[0] // 8), -(-size[1] // 8))
    assert net.channels == {"mobilenet_v2": 32 + 64 + 96, "resnet18": 128 + 256}[name]


def test_vectors_are_centred_on_their_pixels(backbone):
    """With kernels that know no left and right, a mirrored image of 16n + 1 pixels has mirrored vectors."""
    symmetric, image = deepcopy(backbone), torch.randn(1, 3, 65, 81)
    for layer in symmetric.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.weight.data = (layer.weight.data + layer.weight.data.flip(3)) / 2
    mirrored, expected = symmetric(image.flip(3)), symmetric(image).flip(3)
    for one, other in zip(mirrored.split([32, 64, 96], 1), expected.split([32, 64, 96], 1), strict=True):
        assert (one - other).abs().max() < 1e-3 * other.std() and other.std() > 0


def test_the_backbone_learns_nothing(backbone):
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(module.training for module in backbone.train().modules())


@pytest.mark.parametrize("count", [1, 2, 50])
def test_distances_are_those_to_the_nearest_three(count, monkeypatch):
    monkeypatch.setattr(features, "_PLACES", 7)  # in several parts
    memory, vectors = features.Memory(count, 5), torch.randn(2, 5, 3, 4)
    memory.vectors.copy_(torch.randn(count, 5))
    result = memory(vectors)
    assert result.shape == (2, 3, 4)
    for b, y, x in np.ndindex(2, 3, 4):
        distances = np.linalg.norm(memory.vectors.numpy() - vectors[b, :, y, x].numpy(), axis=1)
        assert result[b, y, x].item() == pytest.approx(np.sort(distances)[:3].mean(), rel=1e-4)


def test_a_students_error_is_its_mean_square_among_whitened_vectors():
    student, vectors = features.FeatureStudent(6).eval(), torch.randn(2, 6, 3, 4)
    student.mean.copy_(torch.arange(6.0))
    student.whitening.copy_(torch.randn(6, 6))
    target = (vectors.movedim(1, -1) - student.mean) @ student.whitening
    expected = (student.net(target) - target).square().mean(-1)
    assert torch.allclose(student(vectors), expected) and student(vectors).shape == (2, 3, 4)
    torch.manual_seed(0)
    noisy = target + 0.5 * torch.randn_like(target)
    torch.manual_seed(0)
    assert torch.allclose(student(vectors, 0.5), (student.net(noisy) - target).square().mean(-1))


def test_whitened_vectors_are_uncorrelated_whatever_their_scale():
    mixed = torch.randn(5000, 6) @ torch.randn(6, 6) * torch.tensor([1, 1, 9, 9, 100, 100.0]) + 3
    whitened = (mixed - mixed.mean(0)) @ feature_fitting.whitening(mixed)
    covariance = torch.cov(whitened.T)
    assert (covariance - covariance.diag().diag()).abs().max() < 1e-3 and 0.9 < covariance.diag().max() <= 1
    constant = torch.cat([mixed, torch.ones(5000, 1)], 1)
    assert feature_fitting.whitening(constant).isfinite().all()


@pytest.mark.parametrize("method", ON_FEATURES)
def test_a_method_holds_what_it_needs(method):
    detector = features.FeatureDetector(replace(CONFIG, method=method), ("a", "b"))
    parts = [detector.students, detector.memories]
    assert [list(part) for part in parts] == [["a", "b"] * (method == name) for name in ON_FEATURES]
    images = torch.randn(1, 3, 40, 48)
    result = detector(images, "b")
    assert result.shape == (2, 1, 5, 6)
    assert (result[1] == 1).all() and result[0].std() > 0


# --------------------------------------------------------------------------------------------- training
def test_vectors_are_drawn_from_every_image(backbone, stripes):
    dataset = stripes(("good",) * 3)
    drawn = feature_fitting.draw(backbone, dataset, CONFIG, 7)
    assert drawn.shape == (3, 7, 192)
    for index, vectors in enumerate(drawn):
        pixels = backbones.normalize(feature_fitting.Pixels(dataset, CONFIG.image_size)[index])[None]
        all_places = backbone(pixels)[0].flatten(1).T
        assert torch.cdist(vectors, all_places).min(1).values.max() < 1e-3
    assert torch.equal(drawn, feature_fitting.draw(backbone, dataset, CONFIG, 7))
    assert not torch.equal(drawn, feature_fitting.draw(backbone, dataset, replace(CONFIG, seed=1), 7))


def test_a_coreset_leaves_no_candidate_far_from_it():
    """Each is the farthest from those before it; a random draw of as many misses the rare ones."""
    generator = torch.Generator().manual_seed(3)
    common, rare = torch.randn(500, 16, generator=generator), 40 + torch.randn(3, 16, generator=generator)
    candidates = torch.cat([common, rare])
    chosen = feature_fitting.coreset(candidates, replace(CONFIG, memory=20))
    assert len(set(chosen.tolist())) == 20 and chosen[1] >= 500
    reach = torch.cdist(candidates, candidates[chosen]).min(1).values.max()
    assert reach < torch.cdist(candidates, candidates[:20]).min(1).values.max() / 4
    few = feature_fitting.coreset(candidates[:5], replace(CONFIG, memory=20))
    assert len(few) == 20 and set(few.tolist()) == set(range(5))


def test_a_trained_detector_knows_good_parts(trained):
    parts, detector = defects.datasets(CONFIG)["fabric"], trained.model
    vectors = torch.cat(
        [
            detector.backbone(backbones.normalize(image)[None])[0].flatten(1).T
            for image in feature_fitting.Pixels(parts["train"], CONFIG.image_size)
        ]
    )
    if trained.config.method == "nearest_neighbours":
        memory = detector.memories["fabric"].vectors
        assert memory.shape == (30, 192) and torch.cdist(memory, vectors).min(1).values.max() < 1e-3
        assert not torch.equal(memory, detector.memories["tiles"].vectors) and not trained.history
    else:
        student = detector.students["fabric"]
        assert torch.allclose(student.mean, vectors.mean(0), atol=0.5 * vectors.std())
        assert student.whitening.square().sum() > 192  # not the identity that it began with
        assert set(trained.history) == {"fabric", "tiles"} and len(trained.history["fabric"]) == CONFIG.epochs


def test_a_loaded_detector_is_the_trained_one(trained):
    loaded = system.load(defects, trained.source, trained.config)
    assert all(map(torch.equal, loaded.model.state_dict().values(), trained.model.state_dict().values()))
    metrics = defects.evaluate(loaded)
    assert json.dumps(metrics) == json.dumps(defects.evaluate(trained))
    of_scores = metrics["categories"]["tiles"]["scores"]
    assert list(of_scores) == [*scores.SIGNALS[trained.config.method], "calibrated"]
    assert all(0 <= row["image_auroc"] <= 1 and 0 <= row["aupro"] <= 1 for row in of_scores.values())


def test_what_lifts_a_whole_image_is_taken_off(trained):
    image = defects.datasets(CONFIG)["fabric"]["test"][0]["image"][None]
    arguments = (trained.model, "fabric", image, trained.calibration["fabric"], trained.config)
    (maps,) = scores.score_maps(*arguments)
    raw = scores.signal_maps(*arguments[:2], scores.pixels_of(image, CONFIG), CONFIG, 8)["32"][:, 0]
    calibrated = scores.calibrated_map(raw, trained.calibration["fabric"]["32"], 8, 32)
    assert calibrated.median().abs() > 1e-3
    size = tuple(maps["calibrated"].shape)
    expected = scores.smooth(scores.upsample(calibrated - calibrated.median(), 8, size), 4)
    torch.testing.assert_close(maps["calibrated"], expected, atol=1e-5, rtol=1e-5)


def test_what_a_method_predicts_and_draws(trained, tmp_path):
    image = defects.datasets(CONFIG)["fabric"]["test"].items[0].image
    one = replace(trained, config=replace(trained.config, categories=("fabric",)))
    rows = defects.predict(one, [image], tmp_path)
    assert rows[0]["uncertainty_path"] is None and (tmp_path / rows[0]["heatmap_path"]).exists()
    figures = defects.draw(trained, None, None)
    assert {"heatmaps", "roc"} < set(figures) and ("curves" in figures) == (trained.config.method == "feature_student")


def test_a_killed_training_resumes_to_the_same_weights(folders, killed_at):
    whole = defects.train(STUDENT, run_dir=folders / "whole")
    train = partial(defects.train, STUDENT, run_dir=folders / "runs", out=folders / "again.pth")
    killed_at(feature_fitting, 3)  # in the first category's second epoch
    with pytest.raises(KeyboardInterrupt):
        train()
    again = train()
    assert all(map(torch.equal, again.model.state_dict().values(), whole.model.state_dict().values()))


def test_the_backbone_is_kept_for_the_next_training(folders, monkeypatch):
    config, network = replace(CONFIG, pretrained="imagenet"), features.torchvision.models.mobilenet_v2()
    file, kept = folders / "own.pth", folders / "weights/defects/features_mobilenet_v2.pth"
    torch.save(network.state_dict(), file)
    given = feature_fitting.load_backbone(config, file)
    assert torch.equal(next(given.parameters()), next(network.parameters()))
    monkeypatch.setattr(backbones, "pretrained", lambda *arguments: pytest.fail("weights are fetched again"))
    again = feature_fitting.load_backbone(config, None)
    assert all(
        torch.allclose(a.float(), b.float(), atol=1e-3, rtol=1e-3)
        for a, b in zip(again.state_dict().values(), given.state_dict().values(), strict=True)
    )
    assert checkpoints.load(kept)["config"] == {"backbone": "mobilenet_v2"}


def test_a_backbone_without_places_at_an_eighth_is_refused():
    with pytest.raises(
        settings.InputError, match="backbone='squeezenet1_0': expected .*method=uninformed_students alone"
    ):
        replace(CONFIG, backbone="squeezenet1_0")
    assert replace(CONFIG, backbone="squeezenet1_0", method="uninformed_students")


# --------------------------------------------------------------------------------------- a threshold given
def test_predict_and_report_take_a_threshold(trained, tmp_path, capsys):
    image = defects.datasets(CONFIG)["fabric"]["test"].items[0].image
    (item,) = evaluation.scored(trained, "fabric", DefectDataset([data.Item(image)], tmp_path))
    arguments = ["--weights", str(trained.source), "--out", str(tmp_path / "out"), "categories=fabric"]
    for value, called in ((item.score() + 1, False), (item.score() - 1, True)):
        assert main(["defects", "predict", str(image), *arguments, f"--threshold={value}"]) == 0
        (row,) = json.loads(capsys.readouterr().out)
        assert row["threshold"] == value and row["prediction"]["is_anomalous"] == called
    assert main(["defects", "report", *arguments, "--threshold=-1e9"]) == 0
    content = json.loads((tmp_path / "out/fabric/records.json").read_text())
    assert content["threshold"] == -1e9 and content["threshold_rule"] == "given with --threshold"
    assert all(row["prediction"]["is_anomalous"] for row in content["images"])


@pytest.mark.parametrize(
    "command, expected",
    [
        (["defects", "evaluate", "--threshold", "3"], "--threshold is for predict and report of defects"),
        (["road", "predict", "a.png", "--threshold", "3"], "--threshold is for predict and report of defects"),
        (["defects", "report", "--threshold", "nan"], "--threshold nan: give a number"),
    ],
)
def test_a_threshold_that_cannot_be_used_is_named(command, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").touch()
    assert main(command) == 1 and expected in capsys.readouterr().err
