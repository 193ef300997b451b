"""What students learn from and towards: the teacher's statistics, training views, the loss, and a short fit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from src import backbones, defects
from src.defects.dense import dense, pad
from src.defects.model import PatchNet, Students
from src.defects.students import Crop, Pixels, fit, loss, teacher_statistics, validate

CONFIG = defects.Config(image_size=40, crop_size=0, batch_size=2, epochs=5, lr=1e-2, workers=0, amp=False)


def net(patch_size: int = 17, seed: int = 0, descriptor: int = 4) -> PatchNet:
    torch.manual_seed(seed)
    return PatchNet(patch_size, descriptor, 4)


# -------------------------------------------------------------------------------------------- pictures
def test_images_come_at_the_short_side(stripes):
    wide, high = stripes(size=(40, 52)), stripes(size=(60, 48), seed=1)
    assert Pixels(wide, 20)[0].shape == (3, 20, 26) and Pixels(high, 96)[0].shape == (3, 120, 96)
    assert len(Pixels(wide, 20)) == 4 and Pixels(wide, 40)[1].dtype == torch.uint8
    assert torch.equal(Pixels(wide, 40)[1], wide[1]["image"])


def flips(image: torch.Tensor) -> list[torch.Tensor]:
    return [image, image.flip(1), image.flip(2), image.flip(1, 2)]


@pytest.mark.parametrize("patch_size", [17, 33])
def test_a_whole_view_is_a_flip_with_a_reflected_border(patch_size):
    image, seen = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8), []
    expected = [pad(backbones.normalize(flipped)[None], patch_size)[0] for flipped in flips(image)]
    for seed in range(40):
        torch.manual_seed(seed)
        view = Crop(patch_size, 0)(image)
        assert view.shape == (3, 40 + patch_size - 1, 50 + patch_size - 1) and view.dtype == torch.float32
        seen += [index for index, flipped in enumerate(expected) if torch.equal(view, flipped)]
    assert len(seen) == 40 and set(seen) == {0, 1, 2, 3}


@pytest.mark.parametrize("crop", [24, 52])
def test_a_crop_lies_anywhere_in_the_padded_image(crop):
    image = torch.arange(40 * 50).view(1, 40, 50).expand(3, 40, 50) % 251
    padded = [pad(backbones.normalize(flipped)[None], 17)[0] for flipped in flips(image.to(torch.uint8))]
    corners = set()
    for seed in range(60):
        torch.manual_seed(seed)
        view = Crop(17, crop)(image.to(torch.uint8))
        assert view.shape == (3, crop, crop)
        places = [image[0].unfold(0, crop, 1).unfold(1, crop, 1).eq(view[0]).all(-1).all(-1) for image in padded]
        result = torch.cat([place.nonzero() for place in places])
        assert len(result)
        corners.add(tuple(result[0].tolist()))
    assert len({y for y, _ in corners}) > 1 and len({x for _, x in corners}) > 3


def test_a_crop_larger_than_the_image_is_the_image():
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    assert Crop(17, 500)(image).shape == (3, 56, 66)


# ---------------------------------------------------------------------------------------- normalisation
@pytest.mark.parametrize("patch_size", [17, 33])
def test_statistics_are_those_of_all_descriptors_on_the_teachers_grid(stripes, patch_size):
    teacher, wide, high = net(patch_size), stripes(size=(40, 51)), stripes(size=(53, 40), seed=1)
    dataset = defects.data.DefectDataset(wide.items + high.items, wide.root)
    result = teacher_statistics(teacher, Pixels(dataset, 40))
    output = [
        dense(teacher, backbones.normalize(dataset[i]["image"])[None], teacher.stride)[0].flatten(1) for i in range(8)
    ]
    values = torch.cat(output, 1).double().numpy()
    assert values.shape[1] == 4 * sum(
        -(-h // teacher.stride) * -(-w // teacher.stride) for h, w in ((40, 51), (53, 40))
    )
    for one, expected in zip(result, (values.mean(1), values.std(1)), strict=True):
        assert one.dtype == torch.float32 and one.numpy() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_dimension_that_does_not_vary_is_not_blown_up(stripes):
    teacher = net()
    with torch.no_grad():
        teacher[-1].weight[1] = 0
        teacher[-1].bias[1] = 7
    mean, std = teacher_statistics(teacher, Pixels(stripes(), 40))
    assert mean[1] == pytest.approx(7, rel=1e-5) and std[1] == pytest.approx(float(std.max()) * 1e-3, rel=1e-4)


# ------------------------------------------------------------------------------------------------ loss
class Constant(nn.Module):
    """Gives the same values for any input."""

    def __init__(self, values: torch.Tensor):
        super().__init__()
        self.values = values

    def forward(self, views):
        return self.values


def test_loss_by_hand():
    """Two students, one image, two dimensions, two positions."""
    teacher = Constant(torch.tensor([[[[3.0, 5.0]], [[-1.0, 0.0]]]]))
    normalizing = Students([net(descriptor=2)])
    normalizing.mean.copy_(torch.tensor([1.0, -1.0]))
    normalizing.std.copy_(torch.tensor([2.0, 0.5]))  # targets: 1, 2 and 0, 2
    students = Constant(torch.tensor([[[[[1.0, 2.0]], [[0.0, 2.0]]]], [[[[0.0, 2.0]], [[3.0, 1.0]]]]]))
    result = loss(students, torch.zeros(1, 3, 17, 17), teacher=teacher, students=normalizing)
    assert result.item() == pytest.approx((0 + 0 + (1 + 9) + (0 + 1)) / 4)


def test_the_teacher_gets_no_gradient_and_no_half_precision():
    teacher, students = net(seed=1), Students([net(seed=2), net(seed=3)])
    views, seen = torch.randn(1, 3, 20, 20), []
    teacher.register_forward_hook(lambda module, given, output: seen.append(output))
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(students, views, teacher=teacher, students=students)
    value.backward()
    assert seen[0].dtype == torch.float32 and value.dtype == torch.float32
    assert all(values.grad is None for values in teacher.parameters())
    assert all(values.grad.abs().sum() > 0 for values in students.nets[1].parameters())


def test_validation_is_the_mean_loss_per_dimension():
    teacher, students = net(seed=1), Students([net(seed=2), net(seed=3)])
    students.std.fill_(0.7)
    views = [torch.randn(1, 3, 20, 24), torch.randn(1, 3, 33, 18)]
    with torch.inference_mode():
        squares = [(students(view) - teacher(view) / 0.7).square() for view in views]
    expected = np.mean([float(square.mean()) for square in squares])  # the mean over dimensions, too
    result = validate(students, views=views, teacher=teacher, config=CONFIG)
    assert set(result) == {"regression_error"} and result["regression_error"] == pytest.approx(expected, rel=1e-5)


# ------------------------------------------------------------------------------------------------- fit
@pytest.mark.parametrize("crop_size", [0, 36])
def test_a_short_fit_learns_what_the_teacher_says_of_good_parts(stripes, tmp_path, crop_size):
    teacher, students = net(seed=1), Students([net(seed=2), net(seed=3)])
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    train, val = stripes(("good",) * 6), stripes(("good",) * 2, (44, 40), seed=1)
    config = replace(CONFIG, crop_size=crop_size)
    history = fit(students, teacher, train, val, config, tmp_path / "run")
    errors = [row["regression_error"] for row in history]
    assert len(errors) == 5 and min(errors) < 0.85 * errors[0]
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    mean, std = teacher_statistics(teacher, Pixels(train, 40))
    assert torch.equal(students.mean, mean) and torch.equal(students.std, std)
    middle = [image[:, 2:42] for image in Pixels(val, 40)]  # 44 x 40 pixels
    views = [backbones.normalize(image)[None] for image in middle]
    kept = validate(students, views=views, teacher=teacher, config=config)
    assert kept["regression_error"] == pytest.approx(min(errors), rel=1e-5)


def test_the_mean_alone_has_an_error_near_one(stripes, tmp_path):
    """Of a whole image on the grid, by definition of the normalisation."""
    teacher, train = net(seed=1), stripes()
    students = Students([net(seed=2)])
    mean, std = teacher_statistics(teacher, Pixels(train, 40))
    students.mean.copy_(mean)
    students.std.copy_(std)
    with torch.no_grad():
        students.nets[0][-1].weight.zero_()
    views = [pad(backbones.normalize(image)[None], 17) for image in Pixels(train, 40)]
    result = validate(students, views=views, teacher=teacher, config=CONFIG)
    assert result["regression_error"] == pytest.approx(1, rel=1e-3)
