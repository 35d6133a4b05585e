"""A folder is continued by the command that made it; any other is refused and touches nothing."""

import pytest
from tiny_models import write_image_model, write_label_model

from faults import world

CHANGES = {
    "labels": {
        "another seed": ("--seed", 1),
        "another batch size": ("--batch-size", 4, "--shard-size", 4),
        "another shard size": ("--shard-size", 4),
        "fewer samples": ("--n", 7),
        "other steps": ("--steps", 3),
        "other lesions": ("--lesion", "wmh=0.01:0.04"),
        "another precision": ("--precision", "fp32"),
        "another model": ("--model", "{models}/labels"),
        "other attempts": ("--max-attempts", 3),
    },
    "images": {
        "another seed": ("--seed", 1),
        "another style": ("--style", "a_t1,b_flair"),
        "fewer of each": ("--per-label", 1),
        "another model": ("--model", "{models}/images"),
    },
    "vessels": {
        "another seed": ("--seed", 1),
        "another size": ("--size", 96),
        "another preset": ("--preset", "retina"),
        "other arrays": ("--with", "centreline"),
        "fewer samples": ("--n", 5),
    },
    "angiograms": {
        "another seed": ("--seed", 1),
        "another mask": ("--mask", "ssvs"),
        "fewer samples": ("--n", 5),
    },
}


def states(folder):
    """Return bytes and times of every file."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def with_options(argv, words):
    """Return a command with options, each in place of the one of that name, if there is one."""
    argv = list(argv)
    for option, value in zip(words[::2], words[1::2], strict=True):
        if option in argv:
            argv[argv.index(option) + 1] = value
        else:
            argv += [option, value]
    return argv


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Models with other weights."""
    root = tmp_path_factory.mktemp("others")
    write_label_model(root / "labels", seed=1)
    write_image_model(root / "images", seed=1)
    return root


@pytest.fixture(scope="module")
def made(driver, tiny, tmp_path_factory):
    """A dataset of each kind."""
    root = tmp_path_factory.mktemp("made")
    for stage in CHANGES:
        driver.complete(*world.generate(tiny, stage), "--out", root / stage)
    return root


@pytest.mark.parametrize(
    ("stage", "change"), [(stage, name) for stage, changes in CHANGES.items() for name in changes]
)
def test_a_changed_command_is_refused(driver, tiny, made, others, stage, change):
    words = [str(word).format(models=others) for word in CHANGES[stage][change]]
    before = states(made / stage)
    argv = with_options(world.generate(tiny, stage), words)
    done = driver.run(*argv, "--out", made / stage)
    assert done.code == 2, (done.out, done.err)
    assert len(done.err.splitlines()) == 1
    assert str(made / stage) in done.err
    assert states(made / stage) == before


def test_a_training_of_another_recipe_is_refused(driver, tiny, tmp_path):
    out = tmp_path / "models" / "labels"
    train = (*world.train(tiny, "labels"), "--out", out)
    # Stopped by its budget of time, after the autoencoder's first step.
    driver.complete(*train, "--max-minutes", 0.01)
    before = states(tmp_path)
    for words in (
        ("--resume", "-o", "labels.autoencoder.train.seed=1"),
        ("--resume", "-o", "labels.autoencoder.train.batch_size=1"),
        ("--resume", "-o", "labels.lesion_share=0.5"),
        (),
    ):
        done = driver.run(*train, *words)
        assert done.code == 2, (words, done.err)
        assert len(done.err.splitlines()) == 1
        assert str(tmp_path) in done.err
        assert states(tmp_path) == before


def test_an_export_of_other_options_is_refused(driver, tiny, tmp_path):
    export = ("export", tiny / "images", "--to", "nnunet", "--out", tmp_path)
    driver.complete(*export)
    before = states(tmp_path)
    for words in (("--bits", 16), ("--file-ending", ".nii.gz"), ("--channels", "t1")):
        done = driver.run(*export, *words)
        assert done.code == 2
        assert len(done.err.splitlines()) == 1
        assert "Dataset901_Synthgen" in done.err
        assert states(tmp_path) == before
