"""Rankings against scikit-learn and by hand, certified bounds under forced coarsening, IoU and intervals."""

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from src import metrics
from src.metrics import Bounded, ConfusionMatrix, ImageHistograms, PixelRanking, bootstrap, ranking

NAMES = ("aupr", "auroc", "fpr95", "f1_max")


def draw(kind: str, pixels: int = 4000, positives: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """float32 scores (pixels,) of one kind and bool labels, the positives shifted upwards."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(pixels) < positives
    scores = rng.standard_normal(pixels) + 1.5 * labels
    scores = {
        "normal": scores,
        "cauchy": rng.standard_cauchy(pixels) + 3 * labels,
        "lognormal": np.exp(3 * scores),
        "tied": np.round(scores, 1),
        "integers": np.round(scores),
        "all equal": np.zeros(pixels),
        "signed zeros": np.where(scores > 1, scores, np.copysign(0.0, scores)),
        "subnormal": scores * 1e-42,
        "huge": scores * 5e37,
        "narrow": 1 + 1e-6 * scores,
    }[kind]
    return scores.astype(np.float32), labels


CONTINUOUS = ["normal", "cauchy", "lognormal", "subnormal", "huge"]
KINDS = [*CONTINUOUS, "tied", "integers", "all equal", "signed zeros", "narrow"]


def reference(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The four numbers by scikit-learn, in float64 because it warns when a float32 sum overflows."""
    scores = scores.astype(np.float64)
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-30)
    return {
        "aupr": average_precision_score(labels, scores),
        "auroc": roc_auc_score(labels, scores),
        "fpr95": fpr[tpr >= 0.95].min(),
        "f1_max": f1.max(),
    }


def streamed(scores: np.ndarray, labels: np.ndarray, chunk: int, **options: int) -> PixelRanking:
    stream = PixelRanking(**options)
    for start in range(0, len(scores), chunk):
        part = slice(start, start + chunk)
        stream.update(torch.from_numpy(scores[part]), torch.from_numpy(labels[part]))
    return stream


def assert_exact(result: dict[str, Bounded], scores: np.ndarray, labels: np.ndarray) -> None:
    truth = reference(scores, labels)
    assert set(result) == set(NAMES)
    for name in NAMES:
        assert result[name].error == 0
        assert result[name].value == pytest.approx(truth[name], abs=1e-12), name


def test_ranking_by_hand():
    """Scores 4 > 3 = 3 > 2 > 1 with labels 1, {0, 1}, 0, 1."""
    scores, labels = torch.tensor([3.0, 1.0, 4.0, 3.0, 2.0]), torch.tensor([0, 1, 1, 1, 0])
    result = ranking(scores, labels)
    assert result["aupr"].value == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert result["auroc"].value == pytest.approx((2 + 1.5 + 0) / 6)
    assert result["fpr95"].value == 1.0
    assert result["f1_max"].value == pytest.approx(3 / 4)


@pytest.mark.parametrize("kind", KINDS)
def test_uncoarsened_is_exact(kind):
    scores, labels = draw(kind)
    assert_exact(ranking(torch.from_numpy(scores), torch.from_numpy(labels)), scores, labels)
    assert_exact(streamed(scores, labels, 999).compute(), scores, labels)


@pytest.mark.parametrize("max_bins", [4, 16, 64, 256, 1024, 3000])
@pytest.mark.parametrize("kind", KINDS)
def test_coarsened_stays_within_its_bound(kind, max_bins, monkeypatch):
    """Folding every 500 pixels, so that bins are also filled after they were coarsened."""
    monkeypatch.setattr(metrics, "_PENDING", 500)
    for seed, positives in enumerate((3, 400, 3990)):
        scores, labels = draw(kind, positives=positives, seed=seed)
        stream, truth = streamed(scores, labels, 300, max_bins=max_bins), reference(scores, labels)
        result = stream.compute()
        assert sum(len(tally.keys) for tally in stream._tallies) <= max_bins
        assert (stream.positives, stream.negatives) == (positives, 4000 - positives)
        for name in NAMES:
            assert abs(result[name].value - truth[name]) <= result[name].error + 1e-12, (name, positives)


def test_bound_is_reached_by_the_best_and_worst_orders():
    """One coarse bin of two positives and three negatives, above it one negative; the ends are attained."""
    base = np.float32(1.0).view(np.int32)
    positives_first = (base + np.array([8 + 7, 7, 7, 0, 1, 2], np.int32)).view(np.float32)
    positives_last = (base + np.array([8 + 7, 0, 1, 7, 6, 5], np.int32)).view(np.float32)
    labels = np.array([0, 1, 1, 0, 0, 0], bool)
    for scores, sign in ((positives_first, 1), (positives_last, -1)):
        stream = streamed(scores, labels, 6)
        stream._fold()
        stream._coarsen(3)
        result, truth = stream.compute(), reference(scores, labels)
        for name in ("aupr", "auroc"):
            assert truth[name] == pytest.approx(result[name].value + sign * result[name].error), name


@pytest.mark.parametrize("kind", ["normal", "cauchy", "lognormal", "tied"])
def test_rare_positives_keep_a_tight_bound(kind):
    """The default setting scaled down: far more distinct scores than bins, yet errors within 1e-4."""
    scores, labels = draw(kind, pixels=300_000, positives=200)
    result, truth = streamed(scores, labels, 100_000, max_bins=1 << 17).compute(), reference(scores, labels)
    for name in NAMES:
        assert abs(result[name].value - truth[name]) <= result[name].error + 1e-12, name
        assert result[name].error <= 1e-4, name


@pytest.mark.parametrize("max_bins", [1 << 22, 50])
@pytest.mark.parametrize("kind", ["normal", "tied"])
def test_merging_shards_equals_one_pass(kind, max_bins):
    scores, labels = draw(kind)
    whole, total = streamed(scores, labels, 4000, max_bins=max_bins), PixelRanking(max_bins)
    shards = [streamed(scores[i::3], labels[i::3], 500, max_bins=max_bins) for i in range(3)]
    before = [shard.compute() for shard in shards]
    for shard in shards:
        total.merge(shard)
    assert (total.positives, total.negatives) == (400, 3600)
    assert total.compute() == whole.compute()
    assert (whole._bits > 0) == (max_bins == 50)
    assert [shard.compute() for shard in shards] == before


def test_merging_takes_the_coarser_resolution_of_either():
    scores, labels = draw("normal")
    fine, coarse = streamed(scores, labels, 4000), streamed(scores, labels, 4000, max_bins=50)
    coarse.compute()
    truth = reference(scores, labels)["auroc"]
    for first, second in ((fine, coarse), (coarse, fine)):
        total = PixelRanking()
        for shard in (first, second):
            total.merge(shard)
        auroc = total.compute()["auroc"]
        assert (total._bits, total.negatives) == (coarse._bits, 7200)
        assert abs(auroc.value - truth) <= auroc.error
    assert fine.compute()["aupr"].error == 0  # shards are left as they were


def test_chunks_and_slices_do_not_matter(monkeypatch):
    scores, labels = draw("tied")
    expected = streamed(scores, labels, 4000).compute()
    monkeypatch.setattr(metrics, "_SLICE", 64)
    monkeypatch.setattr(metrics, "_PENDING", 100)
    for chunk in (1, 77, 4000):
        assert streamed(scores, labels, chunk).compute() == expected


def test_counts_beyond_32_bits_do_not_overflow():
    """2**40 copies of a three-pixel stream rank like the stream itself."""
    stream = streamed(np.array([1, 2, 2], np.float32), np.array([0, 1, 0], bool), 3)
    expected = stream.compute()
    for _ in range(40):
        stream.merge(stream)
    assert stream.negatives == 2**41
    assert stream.compute() == expected
    stream._coarsen(24)
    assert abs(stream.compute()["auroc"].value - 0.75) <= stream.compute()["auroc"].error


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_floats_rank_as_their_float32_values(dtype):
    scores, labels = draw("normal")
    narrow = torch.from_numpy(scores).to(dtype)
    assert_exact(ranking(narrow, torch.from_numpy(labels)), narrow.float().numpy(), labels)


def test_any_shape_stride_and_gradient():
    scores, labels = draw("normal")
    expected = ranking(torch.from_numpy(scores), torch.from_numpy(labels))
    turned = torch.from_numpy(scores).reshape(50, 80).T.requires_grad_()
    assert ranking(turned, torch.from_numpy(labels).reshape(50, 80).T) == expected
    assert ranking(turned, torch.from_numpy(labels).reshape(50, 80).T.long()) == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -float("nan")])
def test_scores_that_are_not_finite_are_named(value):
    stream = PixelRanking()
    stream.update(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool))
    scores = torch.zeros(2, 3)
    scores[1, 2] = value
    with pytest.raises(ValueError, match=r"update 2: scores\[1, 2\] is -?(nan|inf)"):
        stream.update(scores, torch.zeros(2, 3, dtype=torch.bool))
    assert stream.negatives == 6


def test_index_of_a_bad_score_counts_over_slices(monkeypatch):
    monkeypatch.setattr(metrics, "_SLICE", 4)
    with pytest.raises(ValueError, match=r"ranking: scores\[9\] is nan"):
        ranking(torch.tensor([0.0] * 9 + [float("nan")]), torch.zeros(10, dtype=torch.bool))


def test_wrong_input_is_refused():
    labels = torch.tensor([True, False])
    with pytest.raises(TypeError, match=r"float64; cast them"):
        ranking(torch.zeros(2, dtype=torch.float64), labels)
    with pytest.raises(TypeError, match=r"int64"):
        ranking(torch.zeros(2, dtype=torch.int64), labels)
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        ranking(torch.zeros(3), labels)
    with pytest.raises(ValueError, match=r"is_anomaly holds 255"):
        ranking(torch.zeros(2), torch.tensor([0, 255]))
    with pytest.raises(ValueError, match=r"max_bins=3"):
        PixelRanking(max_bins=3)


@pytest.mark.parametrize("labels", [[], [0, 0], [1, 1]])
def test_a_missing_class_gives_nan(labels):
    labels = torch.tensor(labels, dtype=torch.bool)
    stream = PixelRanking()
    stream.update(torch.ones(len(labels)), labels)
    for result in (stream.compute(), ranking(torch.ones(len(labels)), labels)):
        assert all(np.isnan(result[name].value) and np.isnan(result[name].error) for name in NAMES)
    with pytest.raises(ValueError, match="hold both"):
        stream.curves()


@pytest.mark.parametrize("max_bins", [1 << 22, 512])
def test_curves_hold_true_operating_points(max_bins):
    scores, labels = draw("cauchy")
    stream = streamed(scores, labels, 4000, max_bins=max_bins)
    curves = stream.curves(points=50)
    assert 20 < len(curves["thresholds"]) <= 53
    for i, threshold in enumerate(curves["thresholds"]):
        flagged = scores >= threshold
        assert curves["recall"][i] == pytest.approx((flagged & labels).sum() / 400)
        assert curves["fpr"][i] == pytest.approx((flagged & ~labels).sum() / 3600)
        assert curves["precision"][i] == pytest.approx(labels[flagged].mean() if flagged.any() else 1)
    f1_max = stream.compute()["f1_max"]
    found = [scores >= threshold for threshold in curves["thresholds"]]
    best = max(2 * (flagged & labels).sum() / (flagged.sum() + 400) for flagged in found)
    assert best == pytest.approx(f1_max.value - f1_max.error)


def test_base_rate_and_quantiles_of_the_negatives():
    scores, labels = draw("normal")
    exact, coarse = streamed(scores, labels, 4000), streamed(scores, labels, 4000, max_bins=64)
    assert exact.base_rate == 0.1
    assert np.isnan(PixelRanking().base_rate)
    for q in (0, 0.3, 0.95, 1):
        expected = np.quantile(scores[~labels], q, method="inverted_cdf")
        assert exact.quantile(q) == expected
        assert coarse.quantile(q) >= expected
        assert (scores[~labels] <= coarse.quantile(q)).mean() >= q
    with pytest.raises(ValueError, match=r"quantile\(1.5\) of 3600"):
        exact.quantile(1.5)


# Closed-set segmentation


def test_confusion_matrix_by_hand():
    """Class 2 is predicted but never true; class 3 is neither: both are NaN and outside the mean."""
    confusion = ConfusionMatrix(4)
    confusion.update(torch.tensor([[0, 0, 1], [2, 3, 1]]), torch.tensor([[0, 0, 0], [0, 255, 1]]))
    assert confusion.matrix.tolist() == [[2, 1, 1, 0], [0, 1, 0, 0], [0] * 4, [0] * 4]
    result = confusion.compute()
    assert result["iou"][:2] == [2 / 4, 1 / 2] and np.isnan(result["iou"][2:]).all()
    assert result["miou"] == 0.5
    assert result["pixel_accuracy"] == 3 / 5


def test_confusion_matrix_is_one_over_the_split():
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randint(0, 5, (2, 6, 8, 8), generator=generator)
    whole, first, second = (ConfusionMatrix(5, ignore=4) for _ in range(3))
    whole.update(prediction, target)
    for shard, part in ((first, slice(0, 2)), (second, slice(2, 6))):
        shard.update(prediction[part], target[part])
    first.merge(second)
    first.all_reduce()  # a single process: nothing changes
    pairs = [[((target == t) & (prediction == p)).sum().item() for p in range(5)] for t in range(4)]
    assert first.matrix.tolist() == whole.matrix.tolist() == pairs + [[0] * 5]


@pytest.mark.parametrize("bad", [-1, 3, 254])
def test_confusion_matrix_names_a_label_out_of_range(bad):
    good = torch.zeros(2, dtype=torch.int64)
    wrong = torch.tensor([0, bad])
    with pytest.raises(ValueError, match=f"target holds the label {bad}"):
        ConfusionMatrix(3).update(good, wrong)
    with pytest.raises(ValueError, match=f"prediction holds the label {bad}"):
        ConfusionMatrix(3).update(wrong, good)
    with pytest.raises(ValueError, match="differ"):
        ConfusionMatrix(3).update(good, good[:1])


def test_empty_confusion_matrix_is_nan():
    result = ConfusionMatrix(2).compute()
    assert np.isnan([result["miou"], result["pixel_accuracy"], *result["iou"]]).all()


# Intervals over images


def resampled_values(images: list, statistic, resamples: int = 200) -> np.ndarray:
    """The statistic of each resample, the copies added one by one."""
    weights = np.random.default_rng(3).multinomial(len(images), np.full(len(images), 1 / len(images)), resamples)
    copies = ([image for image, n in zip(images, row, strict=True) for _ in range(n)] for row in weights)
    return np.array([statistic(resample) for resample in copies])


def test_bootstrap_of_miou_equals_brute_force():
    per_image = np.random.default_rng(0).integers(0, 30, (7, 3, 3))
    expected = resampled_values(list(per_image), lambda copies: metrics.mean_iou(sum(copies)))
    low, high = bootstrap(per_image, metrics.mean_iou, resamples=200, seed=3, level=0.8)
    assert (low, high) == pytest.approx(tuple(np.quantile(expected, [0.1, 0.9])))
    assert low < high


def test_bootstrap_of_a_mean_has_the_standard_error():
    values = np.random.default_rng(0).standard_normal(400)
    per_image = np.stack([values, np.ones(400)], axis=1)
    low, high = bootstrap(per_image, lambda total: total[0] / total[1], resamples=4000)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


@pytest.mark.parametrize(("held", "defined"), [(4, True), (2, False)])
def test_bootstrap_leaves_out_resamples_without_a_value(held, defined):
    """Of 40 images, `held` have a value: a resample lacks one with chance (1 - held / 40)**40, 1.5 % or 13 %."""
    has_value = np.arange(40) < held
    per_image = np.stack([np.random.default_rng(0).standard_normal(40) * has_value, has_value], axis=1)

    def mean(total: np.ndarray) -> float:
        return total[0] / total[1] if total[1] else float("nan")

    values = resampled_values(list(per_image), lambda copies: mean(sum(copies)), resamples=400)
    missing = np.isnan(values).mean()
    assert missing > 0 and (missing <= 0.05) == defined
    interval = bootstrap(per_image, mean, resamples=400, seed=3)
    expected = np.nanquantile(values, [0.025, 0.975]) if defined else [np.nan, np.nan]
    assert interval == pytest.approx(tuple(expected), nan_ok=True)


def test_bootstrap_without_any_value_is_nan():
    assert np.isnan(bootstrap(np.zeros((3, 5, 2)), partial(metrics.metric_from_counts, "aupr"), resamples=20)).all()


def test_histograms_give_the_aupr_of_any_resample():
    images = [draw("normal", 3000, positives, seed=positives) for positives in (0, 60, 300, 500)]
    histograms = ImageHistograms()
    for scores, labels in images:
        histograms.update(torch.from_numpy(scores), torch.from_numpy(labels))
    counts = histograms.counts()
    assert counts.sum(axis=1).tolist() == [[3000 - labels.sum(), labels.sum()] for _, labels in images]
    statistic = partial(metrics.metric_from_counts, "aupr")
    pooled = [np.concatenate(parts) for parts in zip(*images, strict=True)]
    assert statistic(counts.sum(axis=0)) == pytest.approx(reference(*pooled)["aupr"], abs=2e-3)

    def pooled_aupr(copies: list) -> float:
        scores, labels = (np.concatenate(parts) for parts in zip(*copies, strict=True))
        return average_precision_score(labels, scores)

    expected = np.quantile(resampled_values(images, pooled_aupr, resamples=100), [0.025, 0.975])
    assert bootstrap(counts, statistic, resamples=100, seed=3) == pytest.approx(tuple(expected), abs=2e-3)


# Two processes


def reduce_shard(rank: int, folder: str) -> tuple[PixelRanking, ConfusionMatrix]:
    """Join a group of two with every second pixel, the shards being of different resolution."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    scores, labels = draw("normal")
    stream = streamed(scores[rank::2], labels[rank::2], 500, max_bins=(64, 1 << 22)[rank])
    confusion = ConfusionMatrix(2)
    confusion.update(torch.full((3,), rank), torch.zeros(3, dtype=torch.int64))
    stream.all_reduce()
    confusion.all_reduce()
    torch.distributed.destroy_process_group()
    return stream, confusion


def test_all_reduce_pools_two_ranks(tmp_path):
    other = torch.multiprocessing.get_context("spawn").Process(target=reduce_shard, args=(1, str(tmp_path)))
    other.start()
    stream, confusion = reduce_shard(0, str(tmp_path))
    other.join()
    assert other.exitcode == 0
    assert confusion.matrix.tolist() == [[3, 3], [0, 0]]
    assert (stream.negatives, stream.positives) == (3600, 400)
    truth = reference(*draw("normal"))
    for name, (value, error) in stream.compute().items():
        assert abs(value - truth[name]) <= error
