"""The one lister and the one reader of image files: what is passed over, said aloud, refused, and turned upright."""

import unicodedata

import numpy as np
import pytest
from PIL import Image

from src import images
from src.images import DataError


def write(path, array=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) if array is None else array
    Image.fromarray(pixels).save(path, **options)
    return path


def test_hidden_and_system_files_are_passed_over_in_silence(tmp_path, capsys):
    shown = [write(tmp_path / name) for name in ("a.png", "b.BMP", "c.webp", "d.TIFF", "e.jpeg")]
    for name in (".DS_Store", "._a.png", "Thumbs.db", ".ipynb_checkpoints/a.png", "__MACOSX/a.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    assert images.list_images(tmp_path, nested=True) == shown
    assert images.visible(tmp_path / "nowhere") == [] and capsys.readouterr().out == ""


def test_other_files_are_left_out_aloud(tmp_path, capsys):
    write(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("")
    assert len(images.list_images(tmp_path)) == 1
    assert "left out 1 file(s) of another kind, notes.txt" in capsys.readouterr().err


def test_links_are_followed_and_folders_below_only_where_asked(tmp_path):
    target = write(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "set" / "deep").mkdir(parents=True)
    (tmp_path / "set" / "link.png").symlink_to(target)
    write(tmp_path / "set" / "deep" / "b.png")
    assert [path.name for path in images.list_images(tmp_path / "set")] == ["link.png"]
    assert [path.name for path in images.list_images(tmp_path / "set", nested=True)] == ["b.png", "link.png"]


def test_names_pair_after_unicode_normalisation(tmp_path):
    composed, apart = (unicodedata.normalize(form, "straße_ü") for form in ("NFC", "NFD"))
    photo, mask = write(tmp_path / "images" / f"{composed}.png"), write(tmp_path / "masks" / f"{apart}_mask.png")
    named = [images.by_name([photo], photo.parent), images.by_name([mask], mask.parent, "_mask")]
    assert named[0].keys() == named[1].keys()
    with pytest.raises(DataError, match="share one name"):
        images.by_name([photo, photo.with_suffix(".jpg")], photo.parent)


def test_class_folders(tmp_path):
    for name in ("train/b/1.png", "train/a/2.png", "train/a/10.png", "train/.hidden/3.png"):
        write(tmp_path / name)
    (tmp_path / "train" / "empty").mkdir()
    files = images.split_files(tmp_path, "train")
    assert {name: [path.name for path in paths] for name, paths in files.items()} == {
        "a": ["10.png", "2.png"],
        "b": ["1.png"],
    }
    assert images.split_files(tmp_path / "train", "test").keys() == {"a", "b"}
    with pytest.raises(DataError, match="neither train/<class>"):
        images.split_files(tmp_path / "train" / "empty", "train")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_stand_upright(tmp_path, orientation):
    upright = np.zeros((8, 16, 3), np.uint8)
    upright[:, :8] = 200
    stored = Image.fromarray(upright)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that a viewer of that orientation undoes
    if orientation > 1:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    assert np.array_equal(images.read_image(tmp_path / "photo.png"), upright)


def test_label_maps_keep_palette_indices(tmp_path):
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    picture = Image.fromarray(labels, "P")
    picture.putpalette([200 - i for i in range(3 * 256 // 4)])
    picture.save(tmp_path / "labels.png")
    assert np.array_equal(images.read_labels(tmp_path / "labels.png"), labels)
    with pytest.raises(DataError, match="one 8-bit value per pixel"):
        images.read_labels(write(tmp_path / "colours.png"))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4), np.uint16), "more than 8 bits"),
        (np.zeros((1, 3000), np.uint8), "3000 x 1 pixels"),
        (np.zeros((8000, 8001), np.uint8), "64,000,000 pixels at most"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, array, message):
    with pytest.raises(DataError, match=f"odd.png .*{message}"):
        images.read_image(write(tmp_path / "odd.png", array))


def test_missing_and_damaged_files_are_named(tmp_path):
    whole = write(tmp_path / "whole.png").read_bytes()
    for name, content in {"half.png": whole[:40], "empty.png": b"", "text.png": b"no picture"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name} is not a readable image"):
            images.read_image(tmp_path / name)
    with pytest.raises(DataError, match="nowhere.png does not exist"):
        images.read_image(tmp_path / "nowhere.png")


def test_a_png_whose_pixels_changed_is_refused(tmp_path):
    """Pillow alone reads other pixels: it passes over the checksums."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    refused = 0
    for at in range(content.index(b"IDAT") + 10, len(content) - 30, 97):
        changed = content.copy()
        changed[at] ^= 16
        (tmp_path / "b.png").write_bytes(changed)
        for read in (images.read_image, images.read_labels):
            with pytest.raises(DataError, match="b.png is not a readable image"):
                read(tmp_path / "b.png")
            refused += 1
    assert refused > 20
