"""Features equal those computed directly, each image costs one pass, and a damaged cache is seen and mended."""

import errno
import os
import resource
import zipfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from src import checkpoints, settings, training
from src.sets import features as module
from src.sets.data import Images
from src.sets.features import cache_key, extract, extract_mixed
from src.sets.model import Encoder
from tests.sets.conftest import TINY

SHARD = 8  # images a file, here


class Tiny(nn.Module):
    """A stand-in encoder that notes the first pixel (its number) of every image it sees."""

    image_size = 4

    def __init__(self, features: int = 5, stride: int = 2):
        super().__init__()
        self.features, self.seen, self.at = features, [], {}
        self.convolution = nn.Conv2d(3, features, 2, stride)
        self.norm = nn.BatchNorm2d(features)  # tells eval mode from training mode
        nn.init.uniform_(self.norm.weight)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        assert pixels.dtype == torch.uint8
        for number in pixels[:, 0, 0, 0].tolist():
            if number in self.at:
                self.at.pop(number)()
            self.seen.append(number)
        return self.norm(self.convolution(pixels.float())).mean((2, 3))


def encoder(seed: int = 0, **changes) -> Tiny:
    torch.manual_seed(seed)
    return Tiny(**changes)


def pictures(count: int, side: int = 4) -> Images:
    """``count`` random images; the first pixel of image i is i."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    pixels[:, 0, 0, 0] = torch.arange(count)
    return Images(pixels, torch.zeros(count, dtype=torch.int64), ("a",), tuple(f"a/{i:03d}.png" for i in range(count)))


def direct(net: Tiny, images: Images) -> torch.Tensor:
    """Features of all images in one batch, without leaving a trace in ``net.seen``."""
    seen = list(net.seen)
    with torch.no_grad():
        found = net.eval()(images.pixels)
    net.seen = seen
    return found


def files(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file())


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(module, "SHARD", SHARD)


@pytest.fixture
def filled(tmp_path) -> tuple[Tiny, Images, Path, torch.Tensor]:
    """An encoder, 20 images, the cache of their features in three files, and the features."""
    net, images, cache = encoder(), pictures(20), tmp_path / "cache"
    found = extract(net, images, cache, batch_size=3)
    net.seen.clear()
    return net, images, cache, found


# ------------------------------------------------------------------------------------------------ values
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 8, 256])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 20])
def test_equal_to_a_direct_computation_with_one_pass_an_image_in_order(tmp_path, count, batch_size, cached):
    net, images = encoder().train(), pictures(count)
    found = extract(net, images, tmp_path if cached else None, batch_size)
    assert net.seen == list(range(count))
    assert found.shape == (count, 5) and found.dtype == torch.float32 and found.device.type == "cpu"
    assert torch.allclose(found, direct(net, images), atol=1e-4)
    assert [file.name for file in files(tmp_path)] == [f"{i:05d}.pth" for i in range(-(-count // SHARD) * cached)]


def test_what_is_read_is_what_was_computed_bit_for_bit_without_a_pass(filled):
    net, images, cache, found = filled
    assert torch.equal(extract(net, images, cache, batch_size=7), found)
    assert torch.equal(extract(net, images, str(cache)), found)
    assert not net.seen
    assert torch.equal(extract(net, images, batch_size=3), found)


def test_no_images_give_no_features(tmp_path):
    assert extract(encoder(), pictures(0), tmp_path).shape == (0, 5)
    assert not files(tmp_path)


def test_training_on_the_features_is_possible(filled):
    net, images, cache, fresh = filled
    for found in (fresh, extract(net, images, cache)):
        head = nn.Linear(5, 1)
        head(found).sum().backward()
        assert head.weight.grad.abs().sum() > 0


def test_a_batch_is_laid_out_as_the_encoders_weights_are():
    net, layouts = encoder(), []
    net.register_forward_pre_hook(
        lambda _, given: layouts.append(given[0].is_contiguous(memory_format=torch.channels_last))
    )
    extract(net, pictures(9))
    assert layouts == [True, True]
    assert net.convolution.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("again", [False, True])
def test_the_encoder_is_left_in_eval_mode_and_unchanged(tmp_path, again):
    net, images = encoder(), pictures(9)
    if again:
        extract(net, images, tmp_path)
    before = {name: value.clone() for name, value in net.train().state_dict().items()}
    extract(net, images, tmp_path)
    assert not any(part.training for part in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())


def test_the_rooms_own_encoder_fits(tmp_path):
    net, images = Encoder("convnet", 32), pictures(3, side=16)
    found = extract(net, images, tmp_path)
    assert found.shape == (3, net.features)
    assert torch.equal(extract(net, images, tmp_path), found)


def test_training_finds_the_same_features_in_its_own_precision(monkeypatch):
    net, images = Encoder("convnet", 16).eval(), pictures(5, side=16)
    full, half = extract(net, images), torch.autocast("cpu", torch.bfloat16)
    monkeypatch.setattr(training, "autocast", lambda config: half if config.amp else nullcontext())
    assert torch.equal(extract_mixed(net, images, TINY, batch_size=256), full)
    mixed = extract_mixed(net, images, replace(TINY, amp=True))
    assert not torch.equal(mixed, full) and torch.allclose(mixed, full, atol=0.1 * float(full.abs().max()))


# --------------------------------------------------------------------------------------------------- key
def other_pixel(net, images):
    images.pixels[19, 2, 3, 3] ^= 1


def other_order(net, images):
    images.pixels[[3, 4]] = images.pixels[[4, 3]]


def other_weight(net, images):
    net.convolution.weight.data[0, 0, 0, 0].nextafter_(torch.tensor(9.0))


def other_buffer(net, images):
    net.norm.num_batches_tracked += 1


def other_size(net, images):
    net.image_size = 8


def other_layers(net, images):
    net.convolution.stride = (1, 1)  # the same weights, used in another way


def other_class(net, images):
    net.__class__ = type("Other", (Tiny,), {})


@pytest.mark.parametrize("change", [other_pixel, other_order, other_weight, other_buffer, other_size, other_layers,
                                    other_class])  # fmt: skip
def test_whatever_changes_the_features_changes_the_key(filled, change):
    net, images, cache, _ = filled
    key = cache_key(net, images.pixels)
    assert [folder.name for folder in cache.iterdir()] == [key]
    change(net, images)
    assert cache_key(net, images.pixels) != key
    found = extract(net, images, cache)
    assert sorted(net.seen) == list(range(20))
    assert torch.allclose(found, direct(net, images), atol=1e-4)
    assert len(files(cache)) == 6


def test_the_key_is_that_of_the_values_alone():
    net, pixels = encoder(), pictures(20).pixels
    key = cache_key(net, pixels)
    assert cache_key(encoder(), pixels.clone()) == key
    assert cache_key(net.train().to(memory_format=torch.channels_last), pixels) == key
    assert cache_key(net, pixels.contiguous(memory_format=torch.channels_last)) == key
    assert cache_key(net, pixels.view(20, 3, 2, 8)) != key


# ----------------------------------------------------------------------------------------- interruption
@pytest.mark.parametrize("end", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_extraction_goes_on_after_the_last_whole_file(tmp_path, end):
    net, images = encoder(), pictures(20)

    def stop():
        raise end("stop")

    net.at[13] = stop
    with pytest.raises(end, match="stop"):
        extract(net, images, tmp_path, batch_size=3)
    assert [file.name for file in files(tmp_path)] == ["00000.pth"]
    net.seen.clear()
    found = extract(net, images, tmp_path, batch_size=3)
    assert net.seen == list(range(8, 20))
    assert torch.equal(found, extract(net, images, batch_size=3))


def test_another_process_may_write_the_same_files_meanwhile(tmp_path, capsys):
    net, images, found = encoder(), pictures(20), []
    for number in (2, 10):  # in the middle of a file, and of the next, which it then finds finished
        net.at[number] = lambda: found.append(extract(encoder(), images, tmp_path, batch_size=3))
    found.append(extract(net, images, tmp_path, batch_size=3))
    assert len(found) == 2 and torch.equal(*found)
    assert net.seen == list(range(8))
    assert [file.name for file in files(tmp_path)] == ["00000.pth", "00001.pth", "00002.pth"]
    assert capsys.readouterr().err == ""


# ---------------------------------------------------------------------------------------------- damage
def flip(path: Path) -> None:
    """Change one bit of the features, well inside the file."""
    content = bytearray(path.read_bytes())
    at = content.index(checkpoints.read(path)["features"].numpy().tobytes())
    content[at + 20] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def rewrite(path: Path, **changes) -> None:
    checkpoints.write(checkpoints.read(path) | changes, path)


def other_value(path: Path) -> None:
    rewrite(path, features=checkpoints.read(path)["features"] + 1)


def other_shape(path: Path) -> None:
    found = checkpoints.read(path)["features"][:5].clone()
    rewrite(path, features=found, sha256=module._sha256(f"{path.parent.name}/{path.name}", found))


def one_row(path: Path) -> None:
    """A shape that would silently be repeated for every row."""
    found = checkpoints.read(path)["features"][:1].clone()
    rewrite(path, features=found, sha256=module._sha256(f"{path.parent.name}/{path.name}", found))


def no_tensor(path: Path) -> None:
    rewrite(path, features="none")


def no_checksum(path: Path) -> None:
    rewrite(path, sha256=None)


def other_keys(path: Path) -> None:
    checkpoints.write({"weights": {}}, path)


def swapped(path: Path) -> None:
    """A whole file, of the right shape, of other images."""
    path.write_bytes((path.parent / "00000.pth").read_bytes())


@pytest.mark.parametrize("damage", [flip, truncate, empty, other_value, other_shape, one_row, no_tensor, no_checksum,
                                    other_keys, swapped])  # fmt: skip
def test_a_damaged_file_is_named_and_made_anew(filled, capsys, damage):
    net, images, cache, found = filled
    path = files(cache)[1]
    before = path.read_bytes()
    damage(path)
    assert path.read_bytes() != before
    assert torch.equal(extract(net, images, cache, batch_size=3), found)
    assert net.seen == list(range(8, 16))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and str(path) in lines[0] and "anew" in lines[0]
    assert torch.equal(extract(net, images, cache), found)
    assert net.seen == list(range(8, 16)) and capsys.readouterr().err == ""


def test_a_file_holds_its_own_rows_and_no_more(tmp_path):
    extract(encoder(features=1000), pictures(20), tmp_path)
    assert [checkpoints.read(file)["features"].shape for file in files(tmp_path)] == [(8, 1000), (8, 1000), (4, 1000)]
    assert all(file.stat().st_size < 8 * 1000 * 4 + 4000 for file in files(tmp_path))
    assert all(zipfile.is_zipfile(file) for file in files(tmp_path))


# ------------------------------------------------------------------------------------------------ disk
def test_a_cache_that_is_a_file_is_refused_before_the_work(tmp_path):
    net, cache = encoder(), tmp_path / "cache"
    cache.write_text("not a folder")
    with pytest.raises(settings.InputError, match=f"feature cache {cache}.*(exists|directory)"):
        extract(net, pictures(3), cache)
    assert not net.seen


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_fails_is_an_error_that_names_the_folder(tmp_path, monkeypatch, code):
    def fail(content, file):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(settings.InputError, match=f"feature cache {tmp_path}.*{os.strerror(code)}"):
        extract(encoder(), pictures(20), tmp_path)
    assert not files(tmp_path)


@pytest.mark.parametrize("system", [200, 50_000])  # torch.save meets its end in different ways
def test_a_real_shortage_of_space_is_told_and_leaves_no_part(tmp_path, system):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (system, before[1]))
    try:
        with pytest.raises(settings.InputError, match=f"feature cache {tmp_path}.*{os.strerror(errno.EFBIG)}"):
            extract(encoder(features=10_000), pictures(20), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not files(tmp_path)


def test_a_failure_without_a_cause_says_itself(tmp_path, monkeypatch):
    def fail(content, file):
        raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(settings.InputError, match=f"feature cache {tmp_path}.*unexpected pos 64 vs 0"):
        extract(encoder(), pictures(3), tmp_path)


def test_a_file_that_may_not_be_read_is_an_error_that_names_the_folder(filled, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    net, images, cache, _ = filled
    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(settings.InputError, match=f"feature cache {cache}.*Permission denied"):
        extract(net, images, cache)


def test_a_failure_of_the_encoder_is_not_blamed_on_the_cache(tmp_path):
    net = encoder()
    net.at[9] = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        extract(net, pictures(20), tmp_path)


# -------------------------------------------------------------------------------------------- contract
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_features_that_are_not_finite_name_the_first_image(tmp_path, value):
    class Broken(Tiny):
        def forward(self, pixels):
            found = super().forward(pixels)
            found[pixels[:, 0, 0, 0] >= 13, 4] = value
            return found

    with pytest.raises(settings.InputError, match=r"image 13 \(a/013.png\)"):
        extract(Broken(), pictures(20), tmp_path, batch_size=8)
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("given", [lambda f: f[:1], lambda f: f[:, :1], lambda f: f.double(), lambda f: f[..., None]])
def test_an_encoder_of_another_shape_or_type_is_refused(given):
    class Wrong(Tiny):
        def forward(self, pixels):
            return given(super().forward(pixels))

    with pytest.raises(ValueError, match=r"Wrong gave .* expected torch.float32 \(3, 5\)"):
        extract(Wrong(), pictures(9), batch_size=3)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_holds_at_least_one_image(batch_size):
    with pytest.raises(settings.InputError, match=f"batch_size={batch_size}"):
        extract(encoder(), pictures(3), batch_size=batch_size)
