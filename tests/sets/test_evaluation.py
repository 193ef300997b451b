"""What a record says of a head: ranks, intervals, classes and pairs against slow loops, oracles and random rules."""

import inspect
import json
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from src import metrics, records
from src.sets import evaluation
from src.sets.data import Images, Sets, fixed_sets
from src.sets.model import Encoder, FlatMLP, SetAttention, SetModel, distance_to_mean
from tests.sets.conftest import CLASSES

HEADLINE = ("top1", "top2", "top5")


def world(*counts: int) -> tuple[Images, torch.Tensor]:
    """(images, features (N,F)): counts[k] images of class k, whose features are that class, one-hot."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    pixels = torch.zeros(len(labels), 3, 1, 1, dtype=torch.uint8)
    images = Images(pixels, labels, CLASSES[: len(counts)], tuple(str(i) for i in range(len(labels))))
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
@pytest.mark.parametrize("scores, position, rank", [
    ([3.0, 1, 2], 0, 0), ([3.0, 1, 2], 2, 1), ([3.0, 1, 2], 1, 2),
    ([3.0, 3, 2], 0, 1), ([3.0, 3, 2], 1, 1),  # shared first place is second place
    ([1.0, 1, 1], 0, 2), ([1.0, 2, 1], 2, 2), ([float("-inf"), 0, 1], 0, 2), ([float("inf"), 0, 1], 0, 0),
])  # fmt: skip
def test_the_rank_of_the_odd_image(scores, position, rank):
    assert evaluation.ranks(torch.tensor([scores]), torch.tensor([position])).tolist() == [rank]


def test_equal_scores_find_nothing():
    position = torch.arange(10).repeat(5)
    assert evaluation.accuracy(torch.zeros(50, 10), position) == {"top1": 0, "top2": 0, "top5": 0}


@pytest.mark.parametrize("scores", [[float("nan")] * 3, [float("nan"), 1, 2], [1.0, float("nan"), float("nan")]])
def test_nan_is_never_right(scores):
    """A comparison with NaN is false whichever way round it is asked."""
    assert evaluation.ranks(torch.tensor([scores]), torch.tensor([0])).item() > 0


def test_accuracy_counts_the_highest_scores():
    scores = torch.arange(10.0).expand(10, 10)  # the last position has the highest
    found = evaluation.accuracy(scores, torch.arange(10))
    assert found == {"top1": pytest.approx(0.1), "top2": pytest.approx(0.2), "top5": pytest.approx(0.5)}


def test_scores_come_in_the_order_of_the_sets_whatever_the_batch():
    images, features = world(20, 20)
    features = features + torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    head, sets = SetAttention(2, width=8, heads=2, dropout=0.5).train(), fixed_sets(images, 23, 0)
    found = evaluation.scores_of(head, features, sets.indices, batch=4)
    assert not head.training and not found.requires_grad
    with torch.no_grad():
        expected = torch.stack([head(features[row][None])[0] for row in sets.indices])
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.equal(evaluation.scores_of(distance_to_mean, features, sets.indices, batch=4),
                       evaluation.scores_of(distance_to_mean, features, sets.indices))  # fmt: skip


# --------------------------------------------------------------------------------------- classes and pairs
@pytest.fixture
def judged() -> tuple[Images, Sets, torch.Tensor]:
    """Images of five classes, 600 sets of them, and ranks of which a third are 0."""
    images, _ = world(12, 10, 15, 11, 10)
    ranks = torch.randint(3, (600,), generator=torch.Generator().manual_seed(4))
    return images, fixed_sets(images, 600, 0), ranks


def classes_of(images: Images, sets: Sets, row: int) -> tuple[str, str]:
    """(class of the nine, class of the odd one) of one set."""
    found = [images.classes[int(images.labels[i])] for i in sets.indices[row].tolist()]
    odd = found.pop(int(sets.position[row]))
    return found[0], odd


def test_pairs_and_classes_against_a_loop(judged):
    images, sets, ranks = judged
    anchor, odd = evaluation.pairs_of(sets, images)
    right = {name: [] for name in images.classes}
    for row in range(600):
        names = classes_of(images, sets, row)
        assert names == (images.classes[anchor[row]], images.classes[odd[row]])
        right[names[0]].append(int(ranks[row]) == 0)
    found = evaluation.per_class(ranks, sets, images)
    assert found == {name: pytest.approx(np.mean(hits)) for name, hits in right.items()}


def test_a_class_that_no_set_drew_has_no_accuracy(judged):
    images, sets, ranks = judged
    drawn = evaluation.pairs_of(sets, images)[0] != 2
    found = evaluation.per_class(ranks[drawn], Sets(*(part[drawn] for part in sets)), images)
    assert set(found) == {"ant", "bee", "dog", "eel"}


def test_classes_without_an_image_do_not_count(judged):
    """As in a split of some classes: the others keep their numbers."""
    images, features = world(12, 10, 15, 11, 10)
    rows = images.of(("bee", "dog"))
    found = evaluation.measure(oracle, features[rows], images.subset(rows), 200, 0)
    assert found["classes"] == 2 and set(found["per_class"]) == {"bee", "dog"}
    assert found["sizes"] == {"5": 1, "8": 1, "10": 1} and found["composition"]["images"] == 21
    missed = evaluation.measure(constant, features[rows], images.subset(rows), 200, 0)
    assert missed["hardest_pairs"] == [{"classes": ["bee", "dog"], "missed": 200, "sets": 200}]


def test_the_hardest_pairs_against_a_loop(judged):
    images, sets, ranks = judged
    drawn, missed = Counter(), Counter()
    for row in range(600):
        pair = tuple(sorted(classes_of(images, sets, row)))
        drawn[pair] += 1
        missed[pair] += int(ranks[row]) > 0
    expected = sorted((pair for pair in missed if missed[pair]), key=lambda pair: (-missed[pair], drawn[pair], pair))
    found = evaluation.hardest_pairs(ranks, sets, images)
    assert found == [{"classes": list(pair), "missed": missed[pair], "sets": drawn[pair]} for pair in expected]
    assert len(found) == 10 and sum(entry["sets"] for entry in found) == 600


def test_only_pairs_that_were_missed_are_hard(judged):
    images, sets, ranks = judged
    assert evaluation.hardest_pairs(torch.zeros_like(ranks), sets, images) == []
    one = torch.zeros_like(ranks)
    one[17] = 4
    (entry,) = evaluation.hardest_pairs(one, sets, images)
    assert entry["classes"] == sorted(classes_of(images, sets, 17)) and entry["missed"] == 1


def test_a_record_keeps_the_first_pairs(judged, monkeypatch):
    images, sets, ranks = judged
    every = evaluation.hardest_pairs(ranks, sets, images)
    monkeypatch.setattr(evaluation, "HARDEST", 3)
    assert evaluation.hardest_pairs(ranks, sets, images) == every[:3]


# ------------------------------------------------------------------------------ set sizes, sets without odd
def test_accuracy_by_size():
    images, features = world(30, 25, 22)
    assert evaluation.by_size(oracle, features, images, 300, 0) == {str(size): 1 for size in (5, 8, 10, 12, 15, 20)}
    for size, found in evaluation.by_size(Dice(), features, images, 2000, 0).items():
        assert found == pytest.approx(1 / int(size), abs=5 * (1 / int(size) / 2000) ** 0.5)


def test_sizes_end_with_the_smallest_class():
    images, features = world(30, 12, 22)
    assert list(evaluation.by_size(oracle, features, images, 50, 0)) == ["5", "8", "10", "12"]


def none_odd(rule, images, features, count: int = 1500) -> float:
    scores = evaluation.scores_of(rule, features, fixed_sets(images, count, 0).indices)
    return evaluation.none_odd(rule, features, images, scores, 0)["auroc"]


def test_whether_there_is_an_odd_one_at_all():
    images, features = world(30, 25, 22)
    assert none_odd(oracle, images, features) == 1
    assert none_odd(Dice(), images, features) == pytest.approx(0.5, abs=0.05)
    assert none_odd(constant, images, features) == 0.5
    assert none_odd(lambda given: -oracle(given), images, features) == 1  # as sure of the wrong one
    assert none_odd(lambda given: oracle(given) / 100, images, features) == 1


@pytest.mark.parametrize("size", [5, 14])
def test_other_sizes_are_compared_with_sets_of_their_own_size(size):
    """Sets of five have larger softmax scores than sets of ten, whatever is in them."""
    images, features = world(30, 25, 22)
    found = evaluation.measure(Dice(), features, images, 1500, 0, size)
    assert found["none_odd"]["auroc"] == pytest.approx(0.5, abs=0.05)


def test_classes_need_no_more_images_than_the_sets():
    images, features = world(6, 6, 6)
    assert evaluation.measure(oracle, features, images, 300, 0, 6)["none_odd"]["auroc"] == 1


# ------------------------------------------------------------------------------------------------- measure
def test_a_record_of_an_oracle():
    images, features = world(30, 25, 22, 20)
    found = evaluation.measure(oracle, features, images, 1000, 3)
    assert all(found[key] == 1 for key in HEADLINE) and found["top1_interval"] == found["top5_interval"] == (1, 1)
    assert found["chance"] == 0.1 and found["classes"] == 4 and found["composition"]["sets"] == 1000
    assert found["composition"]["images"] == 97 and found["hardest_pairs"] == []
    assert found["per_class"] == {name: 1 for name in CLASSES[:4]} and found["none_odd"] == {"auroc": 1}
    assert set(found["sizes"]) == {"5", "8", "10", "12", "15", "20"}
    for name in ("distance_to_mean", "leave_one_out_cosine"):
        assert found["baselines"][name] == {key: 1 for key in HEADLINE}
    assert found["baselines"]["random"]["top1"] == pytest.approx(0.1, abs=0.05)
    assert found["baselines"]["random"]["top5"] == pytest.approx(0.5, abs=0.08)


def test_a_record_of_chance():
    images, features = world(30, 25, 22, 20)
    found = evaluation.measure(Dice(), features, images, 3000, 3)
    for k in (1, 2, 5):
        assert found[f"top{k}"] == pytest.approx(k / 10, abs=0.05)
    assert found["top1_interval"][0] <= found["top1"] <= found["top1_interval"][1] < 0.15
    assert found["top5_interval"][0] <= found["top5"] <= found["top5_interval"][1]
    assert sum(entry["sets"] for entry in found["hardest_pairs"]) == 3000
    right = sum(entry["sets"] - entry["missed"] for entry in found["hardest_pairs"])
    assert right / 3000 == pytest.approx(found["top1"])
    assert np.mean(list(found["per_class"].values())) == pytest.approx(found["top1"], abs=0.01)


def test_a_record_depends_on_the_seed_alone():
    images, features = world(12, 13, 11)
    features = features + torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
    records = [json.dumps(evaluation.measure(oracle, features, images, 400, seed)) for seed in (0, 0, 1)]
    assert records[0] == records[1] != records[2]


def test_a_record_can_be_written(tmp_path):
    images, features = world(12, 13, 11)
    path = records.write(evaluation.measure(oracle, features, images, 50, 0), tmp_path / "record.json")
    assert json.loads(path.read_text())["top1_interval"] == [1, 1]


def test_the_flat_head_is_measured_at_its_own_size():
    images, features = world(30, 25, 22)
    found = evaluation.measure(FlatMLP(3, 10, width=8), features, images, 300, 0)
    assert list(found["sizes"]) == ["10"] and 0 <= found["top1"] <= 1 and 0 <= found["none_odd"]["auroc"] <= 1


def test_the_protocol_says_what_was_done():
    resamples = inspect.signature(metrics.bootstrap).parameters["resamples"].default
    level = inspect.signature(metrics.bootstrap).parameters["level"].default
    assert f"{level * 100:.0f} %" in evaluation.PROTOCOL and f"{resamples} bootstrap" in evaluation.PROTOCOL
    assert all(word in evaluation.PROTOCOL for word in ("topK", "sizes", "none_odd", "seed", "uniform position"))


# -------------------------------------------------------------------------------------- while training runs
def test_validation_uses_the_head_of_a_model():
    images, features = world(12, 13, 11)
    sets = fixed_sets(images, 100, 0)
    torch.manual_seed(0)
    head = SetAttention(3, width=8, heads=2)
    model = SetModel(Encoder("convnet", 16), head)
    expected = evaluation.accuracy(evaluation.scores_of(head, features, sets.indices), sets.position)
    del expected["top2"]
    for validated in (head, model):
        assert evaluation.validate(validated, sets, lambda: features) == expected


# --------------------------------------------------------------------------------------------- diagnostics
def test_gradient_norms_name_the_layers():
    layer = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    layer[1].bias.requires_grad_(False)
    layer(torch.ones(4, 2)).sum().backward()
    found = evaluation.gradient_norms(layer)
    assert set(found) == {"0.weight", "0.bias", "1.weight"}
    assert found["0.weight"] == pytest.approx(np.linalg.norm(layer[0].weight.grad.numpy()))
    layer.zero_grad()
    assert evaluation.gradient_norms(layer) == {}


def test_feature_spread_against_numpy():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 2, 5], 40)
    features = 3 * labels[:, None] + rng.normal(0, 1 + labels[:, None] / 10, (120, 4))
    found = evaluation.feature_spread(torch.from_numpy(features), torch.from_numpy(labels))
    groups = [features[labels == label] for label in (0, 2, 5)]
    assert found["within"] == pytest.approx(np.sqrt(np.mean([group.var(0) for group in groups])))
    assert found["between"] == pytest.approx(np.sqrt(np.mean(np.var([group.mean(0) for group in groups], axis=0))))
    same = evaluation.feature_spread(torch.ones(6, 3), torch.arange(6) % 2)
    assert same == {"within": 0, "between": 0}
