"""Features equal those computed directly, each image costs one pass, and a damaged cache is written anew."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from src import checkpoints, settings, training
from src.labelled import Labelled
from src.sets import features
from src.sets.features import cache_key, extract, extract_mixed
from src.sets.model import Encoder
from tests.sets.conftest import TINY

SHARD = 8  # images a file, here


class Tiny(nn.Module):
    """A stand-in encoder that notes the first pixel (its number) of every image it is given."""

    image_size = 4

    def __init__(self, features: int = 5):
        super().__init__()
        self.features, self.seen, self.last = features, [], None
        self.convolution = nn.Conv2d(3, features, 2, 2)
        self.norm = nn.BatchNorm2d(features)  # tells eval mode from training mode
        nn.init.uniform_(self.norm.weight)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        for number in pixels[:, 0, 0, 0].tolist():
            if number == self.last:
                raise KeyboardInterrupt
            self.seen.append(number)
        return self.norm(self.convolution(pixels.float())).mean((2, 3))


def encoder() -> Tiny:
    torch.manual_seed(0)
    return Tiny()


def pictures(count: int, side: int = 4) -> Labelled:
    """``count`` random images; the first pixel of image i is i."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    pixels[:, 0, 0, 0] = torch.arange(count)
    names = tuple(f"a/{i:03d}.png" for i in range(count))
    return Labelled(pixels, torch.zeros(count, dtype=torch.int64), ("a",), names)


def direct(net: Tiny, images: Labelled) -> torch.Tensor:
    """Features of all images in one batch, which ``net.seen`` does not show."""
    seen = list(net.seen)
    with torch.no_grad():
        computed = net.eval()(images.items)
    net.seen = seen
    return computed


def files(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file())


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(features, "SHARD", SHARD)


@pytest.fixture
def filled(tmp_path) -> tuple[Tiny, Labelled, Path, torch.Tensor]:
    """An encoder, 20 images, the cache of their features in three files, and the features."""
    net, images, cache = encoder(), pictures(20), tmp_path / "cache"
    computed = extract(net, images, cache, batch_size=3)
    net.seen.clear()
    return net, images, cache, computed


# ------------------------------------------------------------------------------------------------ values
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 256])
@pytest.mark.parametrize("count", [0, 1, 8, 9, 20])
def test_equal_to_a_direct_computation_with_one_pass_an_image_in_order(tmp_path, count, batch_size, cached):
    net, images = encoder().train(), pictures(count)
    computed = extract(net, images, tmp_path if cached else None, batch_size)
    assert net.seen == list(range(count)) and not net.training
    assert computed.shape == (count, 5) and computed.dtype == torch.float32
    if count:
        assert torch.allclose(computed, direct(net, images), atol=1e-4)
    assert [file.name for file in files(tmp_path)] == [f"{i:05d}.pth" for i in range(-(-count // SHARD) * cached)]


def test_what_is_read_is_what_was_computed_bit_for_bit_without_a_pass(filled):
    net, images, cache, computed = filled
    assert torch.equal(extract(net, images, cache, batch_size=7), computed)
    assert not net.seen
    assert torch.equal(extract(net, images, batch_size=3), computed)


def test_training_on_the_features_is_possible(filled):
    net, images, cache, computed = filled
    for given in (computed, extract(net, images, cache)):
        head = nn.Linear(5, 1)
        head(given).sum().backward()
        assert head.weight.grad.abs().sum() > 0


def test_training_has_the_features_in_its_own_precision(monkeypatch, tmp_path):
    net, images = Encoder("convnet", 16), pictures(5, side=16)
    full, half = extract(net, images), torch.autocast("cpu", torch.bfloat16)
    monkeypatch.setattr(training, "autocast", lambda config: half if config.amp else nullcontext())
    assert torch.equal(extract_mixed(net, images, TINY, cache=tmp_path), full)
    mixed = extract_mixed(net, images, replace(TINY, amp=True), cache=tmp_path)  # not those of full precision
    assert not torch.equal(mixed, full) and torch.allclose(mixed, full, atol=0.1 * float(full.abs().max()))


# --------------------------------------------------------------------------------------------------- key
def other_pixel(net, images):
    images.items[19, 2, 3, 3] ^= 1


def other_order(net, images):
    images.items[[3, 4]] = images.items[[4, 3]]


def other_weight(net, images):
    net.convolution.weight.data[0, 0, 0, 0].nextafter_(torch.tensor(9.0))


def other_buffer(net, images):
    net.norm.num_batches_tracked += 1


def other_size(net, images):
    net.image_size = 8


def other_layers(net, images):
    net.convolution.stride = (1, 1)  # the same weights, used in another way


@pytest.mark.parametrize("change", [other_pixel, other_order, other_weight, other_buffer, other_size, other_layers])
def test_whatever_changes_the_features_changes_the_key(filled, change):
    net, images, cache, _ = filled
    assert [folder.name for folder in cache.iterdir()] == [cache_key(net, images.items)]
    change(net, images)
    computed = extract(net, images, cache)
    assert sorted(net.seen) == list(range(20)) and len(files(cache)) == 6
    assert torch.allclose(computed, direct(net, images), atol=1e-4)


def test_the_key_is_that_of_the_values_alone():
    net, pixels = encoder(), pictures(20).items
    key = cache_key(net, pixels)
    assert cache_key(encoder(), pixels.clone()) == key
    assert cache_key(net.train().to(memory_format=torch.channels_last), pixels) == key
    assert cache_key(net, pixels.contiguous(memory_format=torch.channels_last)) == key
    assert cache_key(net, pixels.view(20, 3, 2, 8)) != key


# ------------------------------------------------------------------------------------------------- cache
def test_an_interrupted_extraction_goes_on_after_its_last_file(tmp_path):
    net, images = encoder(), pictures(20)
    net.last = 13
    with pytest.raises(KeyboardInterrupt):
        extract(net, images, tmp_path, batch_size=3)
    assert [file.name for file in files(tmp_path)] == ["00000.pth"]
    net.last = None
    net.seen.clear()
    computed = extract(net, images, tmp_path, batch_size=3)
    assert net.seen == list(range(8, 20))
    assert torch.equal(computed, extract(net, images, batch_size=3))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def fewer_rows(path: Path) -> None:
    """A shape that would silently be repeated for every row."""
    checkpoints.write({"features": checkpoints.read(path)["features"][:1].clone()}, path)


def other_content(path: Path) -> None:
    checkpoints.write({"weights": {}}, path)


@pytest.mark.parametrize("damage", [truncate, empty, fewer_rows, other_content])
def test_a_damaged_file_is_written_anew(filled, damage):
    net, images, cache, computed = filled
    damage(files(cache)[1])
    assert torch.equal(extract(net, images, cache, batch_size=3), computed)
    assert net.seen == list(range(8, 16))
    assert torch.equal(extract(net, images, cache), computed)
    assert net.seen == list(range(8, 16))


def test_a_cache_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "cache").write_text("not a folder")
    with pytest.raises((settings.InputError, OSError), match=str(tmp_path / "cache")):
        extract(encoder(), pictures(3), tmp_path / "cache")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_name_the_first_image(tmp_path, value):
    class Broken(Tiny):
        def forward(self, pixels):
            computed = super().forward(pixels)
            computed[pixels[:, 0, 0, 0] >= 13, 4] = value
            return computed

    with pytest.raises(settings.InputError, match="features of image a/013.png are not finite"):
        extract(Broken(), pictures(20), tmp_path, batch_size=8)
    assert len(files(tmp_path)) == 1
