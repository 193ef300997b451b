"""What the choices of the sets system are worth."""

from dataclasses import replace

from src import sets, settings
from src.ablations.bench import REMOVED, Bench
from src.system import Trained


def evaluate_sets(trained: Trained) -> dict:
    """top1 on sets of validation images, and that of the non-learned baselines on the same features."""
    metrics = sets.evaluate(replace(trained, config=replace(trained.config, test_sets=2_000)), split="val")
    baselines = {name.replace("_", " "): row["top1"] for name, row in metrics["baselines"].items()}
    return {
        "metrics": {"top1": metrics["top1"], "top5": metrics["top5"]},
        "scoring": {"rule": {"learned head": metrics["top1"], **baselines}},
    }


HEADS = {"transformer": {}, "one attention block": {"head": "attention"}, "all features side by side": {"head": "mlp"}}
SETS = Bench(
    system=sets,
    base=replace(sets.Config.mini(), frozen=True, class_weight=0.0, epochs=2, train_sets=8_000),
    metrics=("top1", "top5"),
    evaluate=evaluate_sets,
    labels={
        "all features side by side": "flattened MLP",
        "seen by the head": "input of the head",
        "rule": "head or baseline",
    },
    baseline={"rule": "learned head"},
    weights=settings.WEIGHTS_DIR / "sets" / "mini.pth",
    factors={
        "head": HEADS,
        "layers": {"1": {"layers": 1}, "2": {"layers": 2}, "4": {}, "6": {"layers": 6}},
        "heads": {"1": {"heads": 1}, "4": {}, "8": {"heads": 8}},
        "attention": {"dot product": {}, "additive (one head)": REMOVED, "induced points": REMOVED},
        "positional encoding": {"none": {}, "learned": REMOVED},
        "set size": {"5": {"set_size": 5}, "10": {}, "20": {"set_size": 20, "per_class": (75, 25)}},
        "seen by the head": {
            "trained features": {},
            "random features": {"weights": None},
            "pixels, end to end": {"frozen": False, "weights": None, "epochs": 4, "class_weight": 1.0},
        },
    },
)
CIFAR100 = replace(
    SETS,
    base=sets.Config(
        dataset="cifar100",
        classes=("diverse20",),
        backbone="mobilenet_v2",
        image_size=128,
        batch_size=64,
        optimizer="adamw",
        lr=1e-3,
        weight_decay=1e-2,
        schedule="cosine",
        warmup=50,
        clip_norm=1.0,
        epochs=2,
    ),
    weights=settings.WEIGHTS_DIR / "sets" / "cifar100_mobilenet_v2_transformer.pth",
    factors={"head": HEADS},
)
