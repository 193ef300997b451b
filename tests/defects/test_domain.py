"""Domain fine-tuning by rotation prediction: what it learns from, what it leaves alone, and whose teacher it makes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.nn import functional as F

from src import backbones, checkpoints, defects, settings
from src.backbones import MEAN, STD
from src.defects import domain, fitting
from src.defects import model as models
from src.defects.config import TeacherConfig
from src.defects.patches import cut_patches
from src.images import DataError

CONFIG = TeacherConfig(
    batch_size=6,
    epochs=1,
    workers=0,
    amp=False,
    patch_size=17,
    descriptor=8,
    width=4,
    pretrained="none",
    patch_pixels=32,
    images="photographs",
    image_size=(24, 36),
    patches_per_image=2,
    backbone_epochs=2,
)
SYSTEM = defects.Config(
    dataset="folder",
    percent=(80, 10, 10),
    image_size=40,
    epochs=1,
    batch_size=6,
    width=4,
    descriptor=8,
    patch_sizes=(17,),
    students=1,
    workers=0,
    amp=False,
    pretrained="none",
    patch_pixels=32,
    teacher_width=4,
    teacher_images="photographs",
    teacher_image_size=(24, 36),
    teacher_epochs=1,
    teacher_batch_size=6,
    patches_per_image=4,
)


@pytest.fixture(scope="module", autouse=True)
def small():
    """The first of four stages alone is the backbone, and batches are small: seconds are enough to learn in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backbones.BACKBONES, "resnet18", backbones.Backbone({"layer1": 64}, 64, middle="layer1"))
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


def fresh() -> models.FeatureExtractor:
    """The same untrained backbone at every call."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights=None)
    return models.FeatureExtractor(network, "resnet18", "middle", CONFIG.patch_pixels)


def tensors(module: nn.Module) -> list[torch.Tensor]:
    return list(module.state_dict().values())


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(map(torch.equal, tensors(one), tensors(other)))


# --------------------------------------------------------------------------------------------- fine-tuning
@pytest.fixture(scope="module")
def fine_tuned(parts, tmp_path_factory) -> tuple[models.FeatureExtractor, list[dict], Path]:
    """(backbone, history, run folder) of four epochs with a rate for few steps."""
    backbone, run_dir = fresh(), tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(domain, "LR", 2e-3)
        return backbone, domain.fine_tune(backbone, parts, replace(CONFIG, backbone_epochs=4), run_dir), run_dir


def test_rotations_are_learnt_where_there_is_an_upright(fine_tuned):
    history = fine_tuned[1]
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert max(row["rotation_accuracy"] for row in history) > 0.7
    assert history[-1]["loss"] < 0.8 < 1.0 < history[0]["loss"]  # log(4) = 1.39 knows nothing


def test_the_backbone_has_changed_and_is_frozen_again(fine_tuned):
    backbone, before = fine_tuned[0], fresh()
    patches = torch.randn(4, 3, 17, 17, generator=torch.Generator().manual_seed(1))
    assert not torch.allclose(backbone(patches), before(patches), rtol=0.01)
    for name, values in before.named_parameters():
        assert not torch.equal(values, backbone.get_parameter(name)), name
    assert all(torch.equal(values, backbone.get_buffer(name)) for name, values in before.named_buffers())
    assert backbone.state_dict().keys() == before.state_dict().keys()  # the last layer is gone
    backbone.train()
    assert not any(module.training for module in backbone.modules())
    assert not any(values.requires_grad for values in backbone.parameters()) and not backbone(patches).requires_grad


def test_a_killed_fine_tuning_resumes_to_the_same_weights(parts, tmp_path, monkeypatch):
    uninterrupted, resumed, other, calls, loss = fresh(), fresh(), fresh(), [], domain.loss
    expected = domain.fine_tune(uninterrupted, parts, CONFIG, tmp_path / "uninterrupted")
    domain.fine_tune(other, parts, replace(CONFIG, seed=1), tmp_path / "other")

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 5:  # the second batch of the second epoch
            raise KeyboardInterrupt
        return loss(*arguments)

    monkeypatch.setattr(domain, "loss", killed)
    with pytest.raises(KeyboardInterrupt):
        domain.fine_tune(resumed, parts, CONFIG, tmp_path / "killed")
    assert same(resumed, fresh())  # an epoch of two is not enough
    history = domain.fine_tune(resumed, parts, CONFIG, tmp_path / "killed")
    assert len(calls) == 5 + 3
    assert same(resumed, uninterrupted) and not same(other, uninterrupted)
    assert [{**row, "seconds": 0} for row in history] == [{**row, "seconds": 0} for row in expected]


def test_large_features_are_no_large_logits():
    backbone = fresh()
    patches = torch.randn(32, 3, 17, 17, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        backbone.network.conv1.weight.mul_(1e4)
    assert backbone(patches).std() > 1000 > 2 > domain.RotationClassifier(backbone).train()(patches).std()


def test_too_few_images_are_refused(parts, tmp_path):
    with pytest.raises(DataError, match="19 training images.*at least 20.*backbone_epochs=0"):
        domain.fine_tune(fresh(), parts[:19], CONFIG, tmp_path / "run")
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
        patches, turns = domain.RotatedPatches(config)(ramps())
        assert patches.shape == (400, 3, 17, 17) and patches.dtype == torch.float32
        assert torch.allclose(patches[:, 2], torch.tensor(-MEAN[2] / STD[2]))  # no blue, normalised
        assert turns.shape == (400,) and turns.dtype == torch.int64
        assert torch.equal(direction(patches), turns)
        assert turns.bincount(minlength=4).min() > 70 and len(turns.bincount()) == 4
        back = torch.stack([patch.rot90(-int(k), (1, 2)) for patch, k in zip(patches, turns, strict=True)])
        assert (back[:, 1, -1] > back[:, 1, 0]).all() and (back[:, 0, :, -1] > back[:, 0, :, 0]).all()


class ByDirection(nn.Module):
    """Logits by which quarter turn ``direction`` finds, right for sure or always 0."""

    def __init__(self, truly: bool):
        super().__init__()
        self.truly = truly

    def forward(self, patches):
        return 9.0 * F.one_hot(direction(patches) * self.truly, 4)


def test_accuracy_is_over_all_turns_of_every_patch():
    """More patches than fit into one part."""
    patches = cut_patches(ramps(), replace(CONFIG, patches_per_image=300)).float()
    assert domain.validate(ByDirection(True), patches, CONFIG) == {"rotation_accuracy": 1.0}
    assert domain.validate(ByDirection(False), patches, CONFIG) == {"rotation_accuracy": 0.25}


def test_loss_by_hand():
    batches = [domain.RotatedPatches(CONFIG)(ramps()) for _ in range(3)]
    patches, turns = (torch.stack(parts) for parts in zip(*batches, strict=True))
    assert patches.shape == (3, 2, 3, 17, 17)
    sure = float(torch.log(torch.exp(torch.tensor(9.0)) + 3))
    assert float(domain.loss(ByDirection(True), (patches, turns))) == pytest.approx(sure - 9, rel=1e-3)
    assert float(domain.loss(ByDirection(True), (patches, (turns + 1) % 4))) == pytest.approx(sure, rel=1e-5)


# -------------------------------------------------------------------------------------------------- public functions
def test_training_fine_tunes_on_the_train_split_alone(folders, data_dir, monkeypatch):
    seen, fine_tune = [], domain.fine_tune

    def recorded(backbone, images, config, run_dir):
        seen.append((images, config.domain, run_dir))
        return fine_tune(backbone, images, config, run_dir)

    monkeypatch.setattr(domain, "fine_tune", recorded)
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


def test_a_teacher_fine_tuned_on_other_images_is_refused(folders, parts, monkeypatch):
    config = replace(SYSTEM, backbone_epochs=1)
    first, _ = defects.train_teacher(config, 17, None, folders / "runs", parts[:20])
    path = defects.teacher_path(config, 17)
    monkeypatch.setattr(fitting.teacher, "distill", lambda *given: pytest.fail("a teacher is trained"))
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
