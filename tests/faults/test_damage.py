"""Damaged files are refused by name with a remedy, never taken for good, never a crash."""

import shutil

import pytest
from toy_training import ToyStep, toy_settings

from faults import world
from faults.damage import GOOD, MODES
from synthgen.runtime import build_accelerator
from synthgen.training.loop import run

FAST_SEEDS, SLOW_SEEDS = 4, 30
TARGETS = {
    "dataset": ("images", ("manifest.json", "shards/00001.h5")),
    "verified": ("images", ("shards/00001.h5",)),
    "store": ("store", ("store.h5",)),
    "volume": ("heads", ("sub-0_dseg.nii.gz",)),
    "style": ("styles", ("my_flair.safetensors",)),
    "label_model": (
        "models/labels",
        ("synthgen.json", "schema.json", "model_index.json", "vae/config.json",
         "unet/diffusion_pytorch_model.safetensors", "card.md"),
    ),
    "image_model": (
        "models/images",
        ("synthgen.json", "schema.json", "style_bank/config.json", "card.md",
         "generator/diffusion_pytorch_model.safetensors"),
    ),
    "checkpoint": (
        "toy/checkpoints",
        ("step_0000005/state.json", "step_0000005/model.generator.safetensors",
         "step_0000005/optimizer.critic.safetensors", "step_0000005/ema.generator.safetensors"),
    ),
    "nnunet": ("nnunet/Dataset901_Synthgen", ("dataset.json", "{image}", "{label}")),
}  # fmt: skip
CASES = [(reader, target) for reader, (_, targets) in TARGETS.items() for target in targets]


@pytest.fixture(scope="module")
def breakable(driver, tiny, tmp_path_factory):
    """A copy of the world, with a style, an export and a checkpoint."""
    root = shutil.copytree(tiny, tmp_path_factory.mktemp("breakable") / "world")
    scans, model = root / "scans", root / "models" / "images"
    driver.complete("styles", "add", "my_flair", scans, "--model", model, "--workspace", root)
    driver.complete("export", root / "images", "--to", "nnunet", "--out", root / "nnunet")
    (model / "card.md").write_text("# A model\n\nFor the tests.\n")
    accelerator = build_accelerator("fp32")
    run(ToyStep(accelerator), toy_settings(5), root / "toy", accelerator)
    return root


def require_noticed(driver, root, reader, target, seeds):
    folder = root / TARGETS[reader][0]
    names = {kind: next((folder / f"{kind}sTr").iterdir()).name for kind in ("image", "label")
             if reader == "nnunet"}  # fmt: skip
    target = target.format(**{kind: f"{kind}sTr/{name}" for kind, name in names.items()})
    wish = {"reader": reader, "folder": str(folder), "target": target}
    wish["damages"] = [(mode, seed) for mode in MODES for seed in range(seeds)]
    cases = driver.ask(damage=wish, timeout_s=240)["cases"]
    bad = [case for case in cases if case["verdict"] not in GOOD]
    assert not bad, bad[0]


@pytest.mark.parametrize(("reader", "target"), CASES)
def test_damage_is_noticed(driver, breakable, reader, target):
    require_noticed(driver, breakable, reader, target, FAST_SEEDS)


@pytest.mark.slow
@pytest.mark.parametrize(("reader", "target"), CASES)
def test_hundreds_of_damages_are_noticed(driver, breakable, reader, target):
    require_noticed(driver, breakable, reader, target, SLOW_SEEDS)


def test_the_command_line_names_the_file_and_the_remedy(driver, breakable):
    shard = breakable / "images" / "shards" / "00001.h5"
    data = shard.read_bytes()
    shard.write_bytes(data[:3000] + bytes([data[3000] ^ 4]) + data[3001:])
    try:
        done = driver.run("verify", breakable / "images")
        assert done.code == 3
        assert f"{shard}: damaged" in done.out
        assert "--repair" in done.out
        paint = (*world.generate(breakable, "images"), "--out", breakable / "images")
        refused = driver.run(*paint)
        assert refused.code == 3
        assert refused.err.startswith(f"synthgen: {shard}: damaged")
        driver.complete(*paint, "--repair")
        assert shard.read_bytes() == data
    finally:
        shard.write_bytes(data)
