"""A backbone fine-tuned on the parts at hand: what it learns from, what it leaves alone, and whose teacher it makes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from src import checkpoints, defects, settings
from src.defects import domain
from src.defects import model as models
from src.defects import teacher as teachers
from src.images import MEAN, STD, DataError

CONFIG = teachers.TeacherConfig(batch_size=6, epochs=1, workers=0, amp=False, patch_size=17, descriptor=8, width=4,
                                pretrained="none", patch_pixels=24, images="photographs", image_size=(24, 36),
                                patches_per_image=2, backbone_epochs=2)  # fmt: skip
SYSTEM = defects.Config(dataset="folder", percent=(80, 10, 10), image_size=40, epochs=1, batch_size=6, width=4,
                      descriptor=8, patch_sizes=(17,), students=1, workers=0, amp=False, pretrained="none",
                      patch_pixels=24, teacher_width=4, teacher_images="photographs", teacher_image_size=(24, 36),
                      teacher_epochs=1, teacher_batch_size=6, patches_per_image=4)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def small():
    """The first of four stages alone is the backbone, and batches are small: seconds are enough to learn in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.BACKBONES, "resnet18", {"middle": ("layer1", 64), "last": ("layer1", 64)})
        patch.setattr(domain, "PATCHES", 4)
        yield


def upright(rng: np.random.Generator) -> Image.Image:
    """Light falls from above: 40 x 52 noisy pixels that darken downwards."""
    light = np.linspace(230, 30, 40)[:, None, None] * rng.uniform(0.8, 1, 3)
    return Image.fromarray(np.uint8(np.clip(light + rng.normal(0, 4, (40, 52, 3)), 0, 255)))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    """30 good and 2 defective images of upright parts in the layout ``folder``; the good ones also as photographs."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name, count in (("folder/images/good", 30), ("folder/images/defect", 2)):
        (root / name).mkdir(parents=True)
        for number in range(count):
            upright(rng).save(root / name / f"{number:02d}.png")
    (root / "photographs").symlink_to(root / "folder/images/good")
    return root


@pytest.fixture(scope="module")
def parts(data_dir) -> list[Path]:
    return sorted((data_dir / "folder/images/good").iterdir())


@pytest.fixture
def folders(data_dir, tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(settings, "DATA_DIR", data_dir)
    for name in ("WEIGHTS", "RUNS"):
        monkeypatch.setattr(settings, f"{name}_DIR", tmp_path / name.lower())
    return tmp_path


def fresh() -> models.Backbone:
    """The same untrained backbone at every call."""
    torch.manual_seed(0)
    return models.Backbone("resnet18", "middle", CONFIG.patch_pixels)


def tensors(module: nn.Module) -> list[torch.Tensor]:
    return list(module.state_dict().values())


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(map(torch.equal, tensors(one), tensors(other)))


# ---------------------------------------------------------------------------------------------- adaptation
@pytest.fixture(scope="module")
def adapted(parts, tmp_path_factory) -> tuple[models.Backbone, list[dict], Path]:
    """(backbone, history, run folder) of four epochs with a rate for few steps."""
    backbone, run_dir = fresh(), tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(domain, "LR", 2e-3)
        return backbone, domain.adapt(backbone, parts, replace(CONFIG, backbone_epochs=4), run_dir), run_dir


def test_rotations_are_learnt_where_there_is_an_upright(adapted):
    history = adapted[1]
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert max(row["rotation_accuracy"] for row in history) > 0.7
    assert history[-1]["loss"] < 0.8 < 1.0 < history[0]["loss"]  # log(4) = 1.39 knows nothing


def test_the_backbone_has_changed_and_is_frozen_again(adapted):
    backbone, before = adapted[0], fresh()
    patches = torch.randn(4, 3, 17, 17, generator=torch.Generator().manual_seed(1))
    assert not torch.allclose(backbone(patches), before(patches), rtol=0.01)
    for name, values in before.named_parameters():
        assert not torch.equal(values, backbone.get_parameter(name)), name
    assert all(torch.equal(values, backbone.get_buffer(name)) for name, values in before.named_buffers())
    assert backbone.state_dict().keys() == before.state_dict().keys()  # the last layer is gone
    backbone.train()
    assert not any(module.training for module in backbone.modules())
    assert not any(values.requires_grad for values in backbone.parameters()) and not backbone(patches).requires_grad


def test_the_weights_are_those_of_the_best_epoch(parts, tmp_path, monkeypatch):
    accuracies = iter((0.9, 0.8))
    monkeypatch.setattr(domain, "validate", lambda *given, **options: {"rotation_accuracy": next(accuracies)})
    backbone = fresh()
    domain.adapt(backbone, parts, CONFIG, tmp_path)
    best, last = (checkpoints.load(tmp_path / name)["weights"] for name in ("best.pth", "last.pth"))
    own = {f"backbone.{name}": values for name, values in backbone.state_dict().items()}
    assert all(torch.equal(values, best[name]) for name, values in own.items())
    assert not all(torch.equal(values, last[name]) for name, values in own.items())


def test_a_killed_adaptation_resumes_to_the_same_weights(parts, tmp_path, monkeypatch):
    whole, resumed, other, calls, loss = fresh(), fresh(), fresh(), [], domain.loss
    expected = domain.adapt(whole, parts, CONFIG, tmp_path / "whole")
    domain.adapt(other, parts, replace(CONFIG, seed=1), tmp_path / "other")

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 5:  # the second batch of the second epoch
            raise KeyboardInterrupt
        return loss(*arguments)

    monkeypatch.setattr(domain, "loss", killed)
    with pytest.raises(KeyboardInterrupt):
        domain.adapt(resumed, parts, CONFIG, tmp_path / "killed")
    assert same(resumed, fresh())  # half adapted is not adapted
    history = domain.adapt(resumed, parts, CONFIG, tmp_path / "killed")
    assert len(calls) == 5 + 3
    assert same(resumed, whole) and not same(other, whole)
    assert [{**row, "seconds": 0} for row in history] == [{**row, "seconds": 0} for row in expected]


def test_every_tenth_image_validates_and_is_not_learnt_from(parts, tmp_path, monkeypatch):
    seen, batches, cut = {}, domain.training.Batches, domain.cut_patches

    def recorded_batches(dataset, *arguments):
        seen["learnt"] = dataset.files
        return batches(dataset, *arguments)

    def recorded_patches(model, patches, config):
        seen["validated"] = patches
        return {"rotation_accuracy": 0.5}

    monkeypatch.setattr(domain.training, "Batches", recorded_batches)
    monkeypatch.setattr(domain, "validate", recorded_patches)
    monkeypatch.setattr(domain, "cut_patches", lambda image, config: cut(image, config) * 0 + image[0, 0, 0])
    for number, path in enumerate(parts):  # the validation patches say of which image they are
        Image.new("RGB", (40, 40), (8 * number,) * 3).save(tmp_path / path.name)
    domain.adapt(fresh(), [tmp_path / path.name for path in parts], replace(CONFIG, backbone_epochs=1), tmp_path / "r")
    levels = (seen["validated"][:, 0, 0, 0] * STD[0] + MEAN[0]) * 255
    assert levels.round().tolist() == [level for level in (0, 80, 160) for _ in range(4)]
    assert [path.name for path in seen["learnt"]] == [path.name for i, path in enumerate(parts) if i % 10]


def test_large_features_are_no_large_logits():
    backbone = fresh()
    patches = torch.randn(32, 3, 17, 17, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        backbone.network.conv1.weight.mul_(1e4)
    assert backbone(patches).std() > 1000 > 2 > domain.TurnClassifier(backbone).train()(patches).std()


def test_too_few_images_are_refused(parts, tmp_path):
    with pytest.raises(DataError, match="19 training images.*at least 20.*backbone_epochs=0"):
        domain.adapt(fresh(), parts[:19], CONFIG, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------- patches, values
def direction(patches: torch.Tensor) -> torch.Tensor:
    """By how many quarter turns, anticlockwise, patches (N,3,p,p) of ``ramps`` were turned, (N,)."""
    right, down = ((patches[:, 0].select(axis, -1) - patches[:, 0].select(axis, 0)).mean(1) for axis in (2, 1))
    towards = torch.stack([right, -down, -right, down], 1)  # red rises to the right, top, left, bottom
    return towards.argmax(1)


def ramps() -> torch.Tensor:
    """Red rises to the right, green downwards; uint8 (3,60,60)."""
    ramp = torch.linspace(0, 255, 60).expand(60, 60)
    return torch.stack([ramp, ramp.T, ramp * 0]).round().to(torch.uint8)


def test_patches_are_turned_as_they_say_and_never_flipped():
    torch.manual_seed(0)
    for augmentation in ("paper", "flip_rotate"):
        config = replace(CONFIG, patches_per_image=400, augmentation=augmentation)
        patches, turns = domain.TurnPatches(config)(ramps())
        assert patches.shape == (400, 3, 17, 17) and patches.dtype == torch.float32
        assert torch.allclose(patches[:, 2], torch.tensor(-MEAN[2] / STD[2]))  # no blue, normalised
        assert turns.shape == (400,) and turns.dtype == torch.int64
        assert torch.equal(direction(patches), turns)
        assert turns.bincount(minlength=4).min() > 70 and len(turns.bincount()) == 4
        back = torch.stack([patch.rot90(-int(k), (1, 2)) for patch, k in zip(patches, turns, strict=True)])
        assert (back[:, 1, -1] > back[:, 1, 0]).all() and (back[:, 0, :, -1] > back[:, 0, :, 0]).all()


class Knows(nn.Module):
    """Logits by which quarter turn ``direction`` finds, right for sure or always 0."""

    def __init__(self, truly: bool):
        super().__init__()
        self.truly = truly

    def forward(self, patches):
        return 9.0 * F.one_hot(direction(patches) * self.truly, 4)


def test_accuracy_is_over_all_turns_of_every_patch():
    """More patches than fit into one part."""
    patches = teachers.cut_patches(ramps(), replace(CONFIG, patches_per_image=300)).float()
    assert domain.validate(Knows(True), patches, CONFIG) == {"rotation_accuracy": 1.0}
    assert domain.validate(Knows(False), patches, CONFIG) == {"rotation_accuracy": 0.25}


def test_loss_by_hand():
    batches = [domain.TurnPatches(CONFIG)(ramps()) for _ in range(3)]
    patches, turns = (torch.stack(parts) for parts in zip(*batches, strict=True))
    assert patches.shape == (3, 2, 3, 17, 17)
    sure = float(torch.log(torch.exp(torch.tensor(9.0)) + 3))
    assert float(domain.loss(Knows(True), (patches, turns))) == pytest.approx(sure - 9, rel=1e-3)
    assert float(domain.loss(Knows(True), (patches, (turns + 1) % 4))) == pytest.approx(sure, rel=1e-5)


# -------------------------------------------------------------------------------------------------- public functions
def test_training_adapts_to_the_train_split_alone(folders, data_dir, monkeypatch):
    seen, adapt = [], domain.adapt

    def recorded(backbone, images, config, run_dir):
        seen.append((images, config.domain, run_dir))
        return adapt(backbone, images, config, run_dir)

    monkeypatch.setattr(domain, "adapt", recorded)
    config = replace(SYSTEM, backbone_epochs=1)
    trained = defects.train(config)
    split = defects.datasets(config)["folder"]
    ((images, name, run_dir),) = seen
    assert images == [item.image for item in split["train"].items] and len(images) == 24
    assert {path.parent.name for path in images} == {"good"}
    kept = checkpoints.load(folders / "weights/defects/teacher_photographs_folder_17.pth")["config"]
    assert kept["backbone_epochs"] == 1 and kept["domain"] == name == domain.describe("folder", images)
    assert name.startswith("folder: 24 images, sha256 ")
    assert run_dir == folders / "runs/defects/teacher_photographs_folder_17_backbone"
    assert (run_dir / "best.pth").exists()
    assert checkpoints.load(trained.source)["config"]["backbone_epochs"] == 1
    plain = defects.train(SYSTEM, run_dir=folders / "plain", out=folders / "plain.pth")
    assert not same(plain.model.teachers, trained.model.teachers) and len(seen) == 1


def test_a_teacher_adapted_to_other_images_is_refused(folders, parts, monkeypatch):
    config = replace(SYSTEM, backbone_epochs=1)
    first, _ = defects.train_teacher(config, 17, None, folders / "runs", parts[:20])
    path = defects.teacher_path(config, 17)
    monkeypatch.setattr(defects.teacher, "distill", lambda *given: pytest.fail("a teacher is trained"))
    assert same(defects.train_teacher(config, 17, None, folders / "runs", parts[:20][::-1])[0], first)
    other = r"domain: 'folder: 20 images, sha256 \w+' in the file, 'folder: 21 images"
    with pytest.raises(checkpoints.CheckpointError, match=f"{path.name} was made with another config:\n.*{other}"):
        defects.train_teacher(config, 17, None, folders / "runs", parts[:21])
    with pytest.raises(checkpoints.CheckpointError, match="backbone_epochs: 1 in the file, 2 asked for\n.*'folder: 20"):
        defects.train_teacher(replace(config, backbone_epochs=2), 17, None, folders / "runs", parts[10:])
    elsewhere = replace(config, dataset="csv")
    path.rename(defects.teacher_path(elsewhere, 17))
    with pytest.raises(checkpoints.CheckpointError, match="'folder: 20 images.*' in the file, 'csv: 20 images"):
        defects.train_teacher(elsewhere, 17, None, folders / "runs", parts[:20])


def test_a_domain_is_its_files_names_and_contents(parts, tmp_path):
    for path in parts[:3]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    copies = sorted(tmp_path.iterdir())
    known = domain.describe("folder", parts[:3])
    assert known == domain.describe("folder", copies) != domain.describe("folder", parts[1:4])
    copies[1].write_bytes(parts[5].read_bytes())
    assert known != domain.describe("folder", copies)


def test_teachers_are_kept_apart():
    def name(**changes) -> str:
        return defects.teacher_path(replace(SYSTEM, **changes), 33).name

    assert name() == name(dataset="csv") == "teacher_photographs_33.pth"  # as ever
    assert name(backbone_epochs=1) == "teacher_photographs_folder_33.pth"
    assert name(backbone_epochs=1, dataset="csv") == "teacher_photographs_csv_33.pth"


# ------------------------------------------------------------------------------------------------- neither
def test_without_epochs_nothing_changes(folders, parts, monkeypatch):
    monkeypatch.setattr(domain, "adapt", lambda *given, **options: pytest.fail("the backbone is adapted"))
    net, _ = defects.train_teacher(SYSTEM, 17, None, folders / "runs", parts)
    own = SYSTEM.of_teacher(17)
    assert (own.backbone_epochs, own.domain) == (0, "")
    asked = []
    alike, _ = teachers.distill(own, folders / "alike", None, asked.append)  # what comes after draws the same numbers
    assert len(asked) == 1 and isinstance(asked[0], models.Backbone)
    assert all(torch.equal(a.half(), b.half()) for a, b in zip(tensors(net), tensors(alike), strict=True))


def test_fewer_than_no_epochs_are_refused(folders):
    with pytest.raises(settings.InputError, match="backbone_epochs=-1"):
        defects.train(replace(SYSTEM, backbone_epochs=-1))


# -------------------------------------------------------------------------------- checkpoints of earlier days
def aged(path: Path) -> None:
    """Take out of a checkpoint's config what it would not hold were it older."""
    content = checkpoints.read(path)
    younger = ("backbone_epochs", "domain")
    assert set(younger) & content["config"].keys()
    content["config"] = {key: value for key, value in content["config"].items() if key not in younger}
    checkpoints.write(content, path)


def test_a_checkpoint_older_than_a_setting_has_its_default(folders, monkeypatch):
    trained = defects.train(SYSTEM)
    aged(trained.source)
    aged(defects.teacher_path(SYSTEM, 17))
    monkeypatch.setattr(defects.teacher, "distill", lambda *given: pytest.fail("a teacher is trained"))
    assert defects.load(trained.source, SYSTEM).config == SYSTEM
    assert same(defects.load_or_train(SYSTEM, run_training=False).model, trained.model)
    assert same(defects.train_teacher(SYSTEM, 17, None, folders)[0], trained.model.teachers["17"])
    named = "backbone_epochs: 0 in the file, 3 asked for"
    with pytest.raises(checkpoints.CheckpointError, match=named):
        defects.load(trained.source, SYSTEM, ["backbone_epochs=3"])
    with pytest.raises(checkpoints.CheckpointError, match=named):
        defects.load_or_train(replace(SYSTEM, backbone_epochs=3), run_training=True)
    defects.teacher_path(SYSTEM, 17).rename(defects.teacher_path(replace(SYSTEM, backbone_epochs=3), 17))
    with pytest.raises(checkpoints.CheckpointError, match=named):
        defects.train_teacher(replace(SYSTEM, backbone_epochs=3), 17, None, folders, [trained.source])


def test_a_setting_that_is_no_more_is_still_refused(folders):
    content = {"config": {**SYSTEM.plain(), "gone": 1}, "weights": {}, "extras": {},
               "format": checkpoints.FORMAT}  # fmt: skip
    checkpoints.write(content, defects.weights_path(SYSTEM))
    with pytest.raises(checkpoints.CheckpointError, match=r"gone: 1 in the file, '\(absent\)' asked for"):
        defects.load_or_train(SYSTEM, run_training=False)
    with pytest.raises(settings.InputError, match="settings unknown to src.defects: gone"):
        defects.load(defects.weights_path(SYSTEM), SYSTEM)


def test_a_run_older_than_a_setting_is_resumed(folders):
    own = SYSTEM.of_teacher(17)
    net, history = teachers.distill(own, folders / "run")
    aged(folders / "run/last.pth")
    again, rows = teachers.distill(own, folders / "run")
    assert same(net, again) and rows == history
    with pytest.raises(checkpoints.CheckpointError, match="last.pth was made with another.*\n.*backbone_epochs: 0"):
        teachers.distill(replace(own, backbone_epochs=1), folders / "run")
