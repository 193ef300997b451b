"""The decoder adds nothing at first, learns on a frozen network, and later along with it; runs know their weights."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from src import checkpoints, road, settings, system
from src.road import fitting
from src.road import model as models

PARTS = ("decoder.", "outlier_head.")


@pytest.fixture(scope="module")
def refined(mini_root, tiny_config, tmp_path_factory) -> system.Trained:
    """``tiny_config`` with an epoch for the decoder and one for the head; beside the file, its run."""
    folder = tmp_path_factory.mktemp("refined")
    config = replace(tiny_config, decoder_epochs=1, outlier_epochs=1)
    return road.train(config, mini_root, run_dir=folder / "run", out=folder / "refined.pth")


def segmenter(state: dict) -> dict:
    return {name: values for name, values in state.items() if not name.startswith(PARTS)}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(values, other[name]) for name, values in one.items())


def test_a_fresh_decoder_adds_nothing(tiny_config):
    model = road.build_model(replace(tiny_config, decoder_epochs=1)).eval()
    images = torch.randn(2, 3, 48, 80, generator=torch.Generator().manual_seed(0))
    inputs = models.decoder_inputs(model, models.layer_outputs(model.backbone, model.decoder.names, images))
    refined = model.decoder(*inputs)
    assert refined.shape[-2:] == (12, 20)
    assert torch.equal(refined, F.interpolate(inputs[-1], (12, 20), mode="bilinear"))
    assert torch.equal(inputs[-1], model.classifier(model.backbone(images)["out"]))


def test_inference_uses_the_decoder(tiny_config):
    model = road.build_model(replace(tiny_config, decoder_epochs=1, outlier_epochs=1)).eval()
    images = torch.randn(1, 3, 48, 80, generator=torch.Generator().manual_seed(0))
    before, outlier = models.infer(model, images, (48, 80))
    with torch.no_grad():
        model.decoder.net[-1].bias[3] += 7
    after, unchanged = models.infer(model, images, (48, 80))
    shift = torch.zeros(before.shape[1])
    shift[3] = 7
    assert torch.allclose(after - before, shift[:, None, None].expand_as(before[0])[None], atol=1e-4)
    assert torch.equal(outlier, unchanged)


def test_the_decoder_learns_and_nothing_else_changes(mini_root, tiny_config, tiny_weights, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "DECODER_LR", 0.05)  # a few steps are enough
    config = replace(tiny_config, decoder_epochs=8, amp=False)
    model, splits = road.build_model(config), road.datasets(config, mini_root)
    given = checkpoints.load(tiny_weights)["weights"]
    checkpoints.load_weights(model, given | model.decoder.state_dict(prefix="decoder."), tiny_weights)
    history = fitting.fit_decoder(model, splits, config, tmp_path, None)
    assert len(history) == 8 and history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert same(segmenter(model.state_dict()), given)
    loader = fitting.get_dataloaders(config, splits)["val"]
    best = max(row["miou"] for row in history)
    assert fitting.validate(model, loader, splits["val"])["miou"] == best  # the weights are those of the best epoch


def test_training_leaves_every_part_in_a_run_of_its_own(refined):
    content, run = checkpoints.load(refined.source), refined.source.parent / "run"
    assert {"history", "decoder_history", "outlier_history", "calibration"} == set(content["extras"])
    assert same(content["weights"], refined.model.state_dict())
    decoder = checkpoints.load(run / "decoder" / "best.pth")["weights"]
    assert same({f"decoder.{name}": v for name, v in decoder.items()},
                {k: v for k, v in content["weights"].items() if k.startswith("decoder.")})  # fmt: skip
    assert same(checkpoints.load(run / "best.pth")["weights"], segmenter(content["weights"]))


def test_no_epochs_keep_what_was_trained_alike(refined, mini_root, tmp_path):
    again = replace(refined.config, epochs=0)
    kept = road.train(again, mini_root, weights=refined.source, run_dir=tmp_path / "run", out=tmp_path / "kept.pth")
    assert same(kept.model.state_dict(), refined.model.state_dict()) and not (tmp_path / "run").exists()
    assert kept.history == refined.history and kept.extras["decoder_history"] == refined.extras["decoder_history"]

    longer = replace(again, outlier_epochs=2)
    trained = road.train(longer, mini_root, weights=refined.source, run_dir=tmp_path / "run", out=tmp_path / "new.pth")
    state, before = trained.model.state_dict(), refined.model.state_dict()
    changed = {name.split(".")[0] for name, values in state.items() if not torch.equal(values, before[name])}
    assert changed == {"outlier_head"} and len(trained.extras["outlier_history"]) == 2


def test_no_epochs_need_weights_of_the_same_data_set(refined, mini_root, camvid_root, tmp_path):
    paths = {"run_dir": tmp_path / "run", "out": tmp_path / "out.pth"}
    with pytest.raises(settings.InputError, match="epochs=0: expected --weights of a segmenter trained on mini"):
        road.train(replace(refined.config, epochs=0), mini_root, **paths)
    with pytest.raises(settings.InputError, match="epochs=0: expected --weights of a segmenter trained on camvid"):
        road.train(replace(refined.config, epochs=0, dataset="camvid"), camvid_root, weights=refined.source, **paths)


def test_forward_gives_the_decoder_s_logits_and_those_of_the_auxiliary_head(tiny_config):
    plain = road.build_model(tiny_config).eval()
    model = road.build_model(replace(tiny_config, decoder_epochs=1)).eval()
    with torch.no_grad():
        model.decoder.net[-1].bias[3] += 7
    images = torch.randn(2, 3, 48, 80, generator=torch.Generator().manual_seed(0))
    checkpoints.load_weights(plain, segmenter(model.state_dict()), "the segmenter")
    outputs, without = model(images), plain(images)
    assert torch.allclose(outputs["aux"], without["aux"], atol=1e-5)
    assert torch.allclose(outputs["out"], models.infer(model, images, (48, 80))[0], atol=1e-5)
    assert not torch.allclose(outputs["out"], without["out"], atol=1)


def test_a_decoder_that_is_there_is_trained_with_the_segmenter(refined, mini_root, tmp_path):
    config = replace(refined.config, epochs=1, lr=1e-3, decoder_epochs=5, outlier_epochs=0)
    run = tmp_path / "run"
    trained = road.train(config, mini_root, weights=refined.source, run_dir=run, out=tmp_path / "joint.pth")
    assert not (run / "decoder").exists() and set(trained.extras) == {"history", "calibration"}
    state, before = trained.model.state_dict(), refined.model.state_dict()
    weights = [name for name in state if name.endswith("weight")]
    assert "decoder.net.4.weight" in weights and "backbone.0.0.weight" in weights
    assert not any(torch.equal(state[name], before[name]) for name in weights)


def test_a_run_is_resumed_with_the_weights_it_began_with(refined, tiny_weights, mini_root, tmp_path):
    config = replace(refined.config, epochs=1, outlier_epochs=0)
    paths = {"run_dir": tmp_path / "run", "out": tmp_path / "out.pth"}
    first = road.train(config, mini_root, weights=refined.source, **paths)
    renamed = tmp_path / "renamed.pth"
    renamed.write_bytes(refined.source.read_bytes())
    again = road.train(config, mini_root, weights=renamed, **paths)
    assert same(first.model.state_dict(), again.model.state_dict())
    for other in (tiny_weights, None):
        with pytest.raises(checkpoints.CheckpointError, match="run on other data, or from other weights: move"):
            road.train(config, mini_root, weights=other, **paths)


def test_a_bare_state_dict_has_no_decoder(tiny_weights, tiny_config, tmp_path):
    torch.save(checkpoints.load(tiny_weights)["weights"], tmp_path / "bare.pth")
    bare = system.load(road, tmp_path / "bare.pth", replace(tiny_config, decoder_epochs=8))
    assert bare.config == tiny_config and not hasattr(bare.model, "decoder")
