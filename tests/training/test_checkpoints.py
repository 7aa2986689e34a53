from pathlib import Path

from demur.training.checkpoints import ASIDE, clear, complete, newest, publish


def write(folder: Path, step: int) -> Path:
    path = folder / ASIDE / f"checkpoint-{step}"
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "weights").write_text(str(step))
    return path


def test_the_newest_are_kept_in_the_order_of_their_steps(tmp_path: Path):
    for step in (8, 9, 10):
        publish(write(tmp_path, step), tmp_path, keep=2)
    assert [path.name for path in complete(tmp_path)] == ["checkpoint-9", "checkpoint-10"]
    found = newest(tmp_path)
    assert found is not None
    assert (found / "inner" / "weights").read_text() == "10"


def test_what_was_not_finished_is_not_there(tmp_path: Path):
    assert newest(tmp_path) is None
    publish(write(tmp_path, 1), tmp_path, keep=2)
    write(tmp_path, 2)
    assert [path.name for path in complete(tmp_path)] == ["checkpoint-1"]
    found = newest(tmp_path)
    assert found is not None
    assert found.name == "checkpoint-1"
    # Looking takes nothing from a run that is still writing.
    assert (tmp_path / ASIDE / "checkpoint-2").exists()
    clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
