"""The command lines of runs."""

import pytest

from d2kd.tools.runs import TRAIN, Run


def options(run):
    return run.command()[len(TRAIN) : -1]  # without train.output_dir


def test_only_a_training_with_a_checkpoint_resumes(tmp_path):
    """train_net.py warns of --resume in a folder without a checkpoint."""
    run = Run(title="a", folder=tmp_path, config="c.py", overrides=("train.seed=1",))
    rest = ["--config-file", "c.py", "train.seed=1"]
    assert run.trains and options(run) == rest
    (tmp_path / "last_checkpoint").touch()
    assert run.trains and options(run) == ["--resume", *rest]


@pytest.mark.parametrize("mode", ["--eval-only", "--eval-teacher"])
def test_an_evaluation_does_not_resume(tmp_path, mode):
    (tmp_path / "last_checkpoint").touch()
    run = Run(title="a", folder=tmp_path, config="c.py", mode=mode)
    assert not run.trains and options(run) == [mode, "--config-file", "c.py"]
