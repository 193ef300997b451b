"""What a record says of a head: ranks, intervals, classes and pairs against loops, oracles and random scores."""

import inspect
import json
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from src import metrics as shared_metrics
from src import records
from src.labelled import Labelled
from src.sets import evaluation
from src.sets.model import FlatMLP, SetAttention, distance_to_mean
from src.sets.sampling import Sets, fixed_sets
from tests.sets.conftest import CLASSES

HEADLINE = ("top1", "top2", "top5")


def one_hot_images(*counts: int) -> tuple[Labelled, torch.Tensor]:
    """(images, features (N,F)): counts[k] images of class k, whose features are that class, one-hot."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    pixels = torch.zeros(len(labels), 3, 1, 1, dtype=torch.uint8)
    images = Labelled(pixels, labels, CLASSES[: len(counts)], tuple(str(i) for i in range(len(labels))))
    return images, torch.eye(len(counts))[labels]


def oracle(features: torch.Tensor) -> torch.Tensor:
    """Logits that are right wherever features tell the class."""
    return 20 * distance_to_mean(features)


class Dice(nn.Module):
    """Random scores, other ones at each call."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.randn(features.shape[:2], generator=self.generator)


def constant(features: torch.Tensor) -> torch.Tensor:
    return torch.zeros(features.shape[:2])


# ----------------------------------------------------------------------------------------- ranks, accuracy
@pytest.mark.parametrize(
    "scores, position, rank",
    [
        ([3.0, 1, 2], 0, 0),
        ([3.0, 1, 2], 2, 1),
        ([3.0, 1, 2], 1, 2),
        ([3.0, 3, 2], 0, 1),  # shared first place is second place
        ([3.0, 3, 2], 1, 1),
        ([1.0, 1, 1], 0, 2),
        ([float("-inf"), 0, 1], 0, 2),
        ([float("inf"), 0, 1], 0, 0),
    ],
)
def test_the_rank_of_the_odd_image(scores, position, rank):
    assert evaluation.ranks(torch.tensor([scores]), torch.tensor([position])).tolist() == [rank]


@pytest.mark.parametrize("scores", [[float("nan")] * 3, [float("nan"), 1, 2], [1.0, float("nan"), float("nan")]])
def test_nan_is_never_right(scores):
    """A comparison with NaN is false whichever way round it is asked."""
    assert evaluation.ranks(torch.tensor([scores]), torch.tensor([0])).item() > 0


def test_accuracy_counts_the_highest_scores():
    scores = torch.arange(10.0).expand(10, 10)  # the last position has the highest
    metrics = evaluation.accuracy(scores, torch.arange(10))
    assert metrics == {"top1": pytest.approx(0.1), "top2": pytest.approx(0.2), "top5": pytest.approx(0.5)}


def test_scores_come_in_the_order_of_the_sets_whatever_the_batch():
    images, features = one_hot_images(20, 20)
    features = features + torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    head, sets = SetAttention(2, width=8, heads=2, dropout=0.5).train(), fixed_sets(images, 23, 0)
    scores = evaluation.scores_of(head, features, sets.indices, batch=4)
    assert not head.training and not scores.requires_grad
    with torch.no_grad():
        expected = torch.stack([head(features[row][None])[0] for row in sets.indices])
    assert torch.allclose(scores, expected, atol=1e-5)
    distances = [evaluation.scores_of(distance_to_mean, features, sets.indices, batch) for batch in (4, 500)]
    assert torch.equal(*distances)


# --------------------------------------------------------------------------------------- classes and pairs
@pytest.fixture
def judged() -> tuple[Labelled, Sets, torch.Tensor]:
    """Labelled of five classes, 600 sets of them, and ranks of which a third are 0."""
    images, _ = one_hot_images(12, 10, 15, 11, 10)
    ranks = torch.randint(3, (600,), generator=torch.Generator().manual_seed(4))
    return images, fixed_sets(images, 600, 0), ranks


def classes_of(images: Labelled, sets: Sets, row: int) -> tuple[str, str]:
    """(class of the nine, class of the odd one) of one set."""
    classes = [images.classes[int(images.labels[i])] for i in sets.indices[row].tolist()]
    odd = classes.pop(int(sets.position[row]))
    return classes[0], odd


def test_pairs_and_classes_against_a_loop(judged):
    images, sets, ranks = judged
    anchor, odd = evaluation.pairs_of(sets, images)
    right = {name: [] for name in images.classes}
    for row in range(600):
        names = classes_of(images, sets, row)
        assert names == (images.classes[anchor[row]], images.classes[odd[row]])
        right[names[0]].append(int(ranks[row]) == 0)
    assert evaluation.per_class(ranks, sets, images) == {
        name: pytest.approx(np.mean(hits)) for name, hits in right.items()
    }


def test_classes_without_an_image_do_not_count(judged):
    """As in a split of some classes: the others keep their numbers."""
    images, features = one_hot_images(12, 10, 15, 11, 10)
    rows = images.of(("bee", "dog"))
    metrics = evaluation.measure_head(oracle, features[rows], images.subset(rows), 200, 0)
    assert metrics["classes"] == 2 and set(metrics["per_class"]) == {"bee", "dog"}
    assert metrics["sizes"] == {"5": 1, "8": 1, "10": 1} and metrics["composition"]["images"] == 21
    missed = evaluation.measure_head(constant, features[rows], images.subset(rows), 200, 0)
    assert missed["hardest_pairs"] == [{"classes": ["bee", "dog"], "missed": 200, "sets": 200}]


def test_the_hardest_pairs_against_a_loop(judged):
    images, sets, ranks = judged
    drawn, missed = Counter(), Counter()
    for row in range(600):
        pair = tuple(sorted(classes_of(images, sets, row)))
        drawn[pair] += 1
        missed[pair] += int(ranks[row]) > 0
    expected = sorted((pair for pair in missed if missed[pair]), key=lambda pair: (-missed[pair], drawn[pair], pair))
    pairs = evaluation.hardest_pairs(ranks, sets, images)
    assert pairs == [{"classes": list(pair), "missed": missed[pair], "sets": drawn[pair]} for pair in expected]
    assert len(pairs) == 10 and sum(entry["sets"] for entry in pairs) == 600


def test_only_pairs_that_were_missed_are_hard(judged):
    images, sets, ranks = judged
    assert evaluation.hardest_pairs(torch.zeros_like(ranks), sets, images) == []
    one = torch.zeros_like(ranks)
    one[17] = 4
    (entry,) = evaluation.hardest_pairs(one, sets, images)
    assert entry["classes"] == sorted(classes_of(images, sets, 17)) and entry["missed"] == 1


# ------------------------------------------------------------------------------ set sizes, sets without odd
def test_accuracy_by_size():
    images, features = one_hot_images(30, 25, 22)
    assert evaluation.by_size(oracle, features, images, 300, 0) == {str(size): 1 for size in (5, 8, 10, 12, 15, 20)}
    for size, top1 in evaluation.by_size(Dice(), features, images, 2000, 0).items():
        assert top1 == pytest.approx(1 / int(size), abs=5 * (1 / int(size) / 2000) ** 0.5)


def test_sizes_end_with_the_smallest_class():
    images, features = one_hot_images(30, 12, 22)
    assert list(evaluation.by_size(oracle, features, images, 50, 0)) == ["5", "8", "10", "12"]


def none_odd(rule, images, features, count: int = 1500) -> float:
    scores = evaluation.scores_of(rule, features, fixed_sets(images, count, 0).indices)
    return evaluation.none_odd(rule, features, images, scores, 0)["auroc"]


def test_whether_there_is_an_odd_one_at_all():
    images, features = one_hot_images(30, 25, 22)
    assert none_odd(oracle, images, features) == 1
    assert none_odd(Dice(), images, features) == pytest.approx(0.5, abs=0.05)
    assert none_odd(constant, images, features) == 0.5
    assert none_odd(lambda given: -oracle(given), images, features) == 1  # as sure of the wrong one
    assert none_odd(lambda given: oracle(given) / 100, images, features) == 1


@pytest.mark.parametrize("size", [5, 14])
def test_other_sizes_are_compared_with_sets_of_their_own_size(size):
    """Sets of five have larger softmax scores than sets of ten, whatever is in them."""
    images, features = one_hot_images(30, 25, 22)
    metrics = evaluation.measure_head(Dice(), features, images, 1500, 0, size)
    assert metrics["none_odd"]["auroc"] == pytest.approx(0.5, abs=0.05)


# ------------------------------------------------------------------------------------------------- measure
def test_a_record_of_an_oracle():
    images, features = one_hot_images(30, 25, 22, 20)
    metrics = evaluation.measure_head(oracle, features, images, 1000, 3)
    assert all(metrics[key] == 1 for key in HEADLINE) and metrics["top1_interval"] == metrics["top5_interval"] == (1, 1)
    assert metrics["chance"] == 0.1 and metrics["classes"] == 4 and metrics["composition"]["sets"] == 1000
    assert metrics["composition"]["images"] == 97 and metrics["hardest_pairs"] == []
    assert metrics["per_class"] == {name: 1 for name in CLASSES[:4]} and metrics["none_odd"] == {"auroc": 1}
    assert set(metrics["sizes"]) == {"5", "8", "10", "12", "15", "20"}
    for name in ("distance_to_mean", "leave_one_out_cosine"):
        assert metrics["baselines"][name] == {key: 1 for key in HEADLINE}
    assert metrics["baselines"]["random"]["top1"] == pytest.approx(0.1, abs=0.05)
    assert metrics["baselines"]["random"]["top5"] == pytest.approx(0.5, abs=0.08)


def test_a_record_of_chance():
    images, features = one_hot_images(30, 25, 22, 20)
    metrics = evaluation.measure_head(Dice(), features, images, 3000, 3)
    for k in (1, 2, 5):
        assert metrics[f"top{k}"] == pytest.approx(k / 10, abs=0.05)
    assert metrics["top1_interval"][0] <= metrics["top1"] <= metrics["top1_interval"][1] < 0.15
    assert metrics["top5_interval"][0] <= metrics["top5"] <= metrics["top5_interval"][1]
    assert sum(entry["sets"] for entry in metrics["hardest_pairs"]) == 3000
    right = sum(entry["sets"] - entry["missed"] for entry in metrics["hardest_pairs"])
    assert right / 3000 == pytest.approx(metrics["top1"])
    assert np.mean(list(metrics["per_class"].values())) == pytest.approx(metrics["top1"], abs=0.01)


def test_a_record_depends_on_the_seed_alone():
    images, features = one_hot_images(12, 13, 11)
    features = features + torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
    records = [json.dumps(evaluation.measure_head(oracle, features, images, 400, seed)) for seed in (0, 0, 1)]
    assert records[0] == records[1] != records[2]


def test_a_record_can_be_written(tmp_path):
    images, features = one_hot_images(12, 13, 11)
    path = records.write(evaluation.measure_head(oracle, features, images, 50, 0), tmp_path / "record.json")
    assert json.loads(path.read_text())["top1_interval"] == [1, 1]


def test_the_flat_head_is_measured_at_its_own_size():
    images, features = one_hot_images(30, 25, 22)
    metrics = evaluation.measure_head(FlatMLP(3, 10, width=8), features, images, 300, 0)
    assert list(metrics["sizes"]) == ["10"] and 0 <= metrics["top1"] <= 1 and 0 <= metrics["none_odd"]["auroc"] <= 1


def test_the_protocol_says_what_was_done():
    resamples = inspect.signature(shared_metrics.bootstrap).parameters["resamples"].default
    level = inspect.signature(shared_metrics.bootstrap).parameters["level"].default
    assert f"{level * 100:.0f} %" in evaluation.PROTOCOL and f"{resamples} bootstrap" in evaluation.PROTOCOL
    assert all(word in evaluation.PROTOCOL for word in ("topK", "sizes", "none_odd", "seed", "uniform position"))


# -------------------------------------------------------------------------------------- while training runs
def test_validation_is_the_accuracy_on_fixed_sets():
    images, features = one_hot_images(12, 13, 11)
    sets = fixed_sets(images, 100, 0)
    torch.manual_seed(0)
    head = SetAttention(3, width=8, heads=2)
    metrics = evaluation.accuracy(evaluation.scores_of(head, features, sets.indices), sets.position)
    assert evaluation.validate(head, features, sets) == {"top1": metrics["top1"], "top5": metrics["top5"]}


# --------------------------------------------------------------------------------------------- diagnostics
def test_gradient_norms_name_the_layers():
    layer = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    layer[1].bias.requires_grad_(False)
    layer(torch.ones(4, 2)).sum().backward()
    norms = evaluation.gradient_norms(layer)
    assert set(norms) == {"0.weight", "0.bias", "1.weight"}
    assert norms["0.weight"] == pytest.approx(np.linalg.norm(layer[0].weight.grad.numpy()))
    layer.zero_grad()
    assert evaluation.gradient_norms(layer) == {}


def test_feature_spread_against_numpy():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 2, 5], 40)
    features = 3 * labels[:, None] + rng.normal(0, 1 + labels[:, None] / 10, (120, 4))
    spread = evaluation.feature_spread(torch.from_numpy(features), torch.from_numpy(labels))
    groups = [features[labels == label] for label in (0, 2, 5)]
    assert spread["within"] == pytest.approx(np.sqrt(np.mean([group.var(0) for group in groups])))
    assert spread["between"] == pytest.approx(np.sqrt(np.mean(np.var([group.mean(0) for group in groups], axis=0))))
    same = evaluation.feature_spread(torch.ones(6, 3), torch.arange(6) % 2)
    assert same == {"within": 0, "between": 0}
