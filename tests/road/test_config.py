"""Wrong settings are refused in one line, before torch is loaded; names of older versions are still read."""

import subprocess
import sys

import pytest

from src import road, settings
from src.road import config, data


@pytest.mark.parametrize(
    "pair, message",
    [
        ("dataset=kitti", "dataset='kitti': expected one of mini"),
        ("backbone=vgg16", "backbone='vgg16': expected one of resnet50"),
        ("width=0", "width=0.0: expected a factor above 0"),
        ("output_stride=32", "output_stride=32: expected one of 8, 16"),
        ("pretrained=ade20k", "pretrained='ade20k': expected none, imagenet or coco"),
        ("image_size=(0,8)", "image_size=.*: expected .height,width."),
        ("image_size=8,8,8", "image_size=.*: expected .height,width."),
        ("augmentation=rotate", "augmentation='rotate': expected one of none"),
        ("augmentation=scale", "crop_size=None: expected .*augmentation=scale changes the size"),
        ("crop_size=(8,)", "crop_size=.8,.: expected"),
        ("aux_weight=-1", "aux_weight=-1.0: expected a weight from 0"),
        ("outlier_epochs=-1", "outlier_epochs=-1: expected"),
        ("decoder_epochs=-1", "decoder_epochs=-1: expected"),
        ("epochs=-1", "epochs=-1: expected 0 or more"),
    ],
)
def test_wrong_values_name_the_setting_and_its_range(pair, message):
    with pytest.raises(settings.InputError, match=message):
        road.Config().override([pair])


def test_names_of_older_versions_are_read():
    old = road.Config(augmentation="flip_color").plain() | {"augmentation": "user", "focal_gamma": 0.0, "accumulate": 1}
    assert road.Config.from_plain(old) == road.Config(augmentation="flip_color")


def test_a_run_on_cityscapes_is_cut_short():
    cityscapes, camvid = (road.Config.real(dataset).plain() for dataset in ("cityscapes", "camvid"))
    short = {"image_size": [384], "crop_size": [256, 256], "epochs": 4, "decoder_epochs": 2, "outlier_epochs": 2}
    assert cityscapes == camvid | short | {"dataset": "cityscapes"}


def test_names_of_data_sets_stand_in_the_config():
    assert set(config.DATASETS) == set(data.KINDS)


def test_the_config_needs_no_torch():
    code = "import sys; from src import road; road.Config.mini(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
