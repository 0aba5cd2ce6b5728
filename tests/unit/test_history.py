"""What is told of the steps, with and without an interruption."""

import json
from types import SimpleNamespace

import pytest
from detectron2.utils.events import EventStorage

from mtfixmatch.engine import history, teacher_watch
from mtfixmatch.engine.history import HistoryHook, cut_metrics
from mtfixmatch.engine.teacher_watch import TeacherWatch


def test_lines_of_later_steps_and_torn_ones_are_cut_off(tmp_path):
    path = tmp_path / "metrics.json"
    lines = [json.dumps({"iteration": i, "x": 1.5}) + "\n" for i in (4, 9, 14, 19)]
    path.write_text("".join(lines) + '{"iteration": 3, "x"')
    cut_metrics(str(path), 9)
    assert path.read_text() == "".join(lines[:2])
    stamp = path.stat().st_mtime_ns
    cut_metrics(str(path), 9)
    assert path.stat().st_mtime_ns == stamp
    path.write_text(lines[0] + lines[1][:-1])
    cut_metrics(str(path), 9)
    assert path.read_text() == lines[0]
    cut_metrics(str(path), -1)
    assert path.read_text() == ""
    cut_metrics(str(tmp_path / "none.json"), 9)


def watched(steps, losses, states=None):
    """Run TeacherWatch and HistoryHook over steps; their states after each, and the warnings."""
    detection = SimpleNamespace(name="detection", loss_parts=("cls",), tuning_keys=("THRESHOLD",))
    hook, keep = TeacherWatch(), HistoryHook()
    told, kept = [], []
    if states:
        hook.load_state_dict(states[0])
        keep.load_state_dict(states[1])
    with EventStorage(steps[0]) as storage, pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher_watch.logger, "warning", lambda text, *args: told.append(text % args))
        hook.trainer = keep.trainer = SimpleNamespace(storage=storage, tasks=[detection])
        hook.trainer.method = SimpleNamespace(unsupervised_weight=lambda task, step: 1.0)
        hook.trainer.step_record = None
        keep.before_train()
        for step in steps:
            storage.iter = hook.trainer.iter = step
            storage.put_scalars(**losses(step))
            hook.after_step()
            kept.append(json.loads(json.dumps([hook.state_dict(), keep.state_dict()])))
        medians = storage.latest_with_smoothing_hint(history.WINDOW)
    return kept, told, medians


def test_memory_holds_the_newest_scalars_only():
    keep = HistoryHook()
    with EventStorage(0) as storage:
        keep.trainer = SimpleNamespace(storage=storage)
        keep.before_train()
        for step in range(history.MAX_HISTORY + 5):
            storage.iter = step
            storage.put_scalar("loss", float(step))
        assert [value for value, _ in storage.history("loss").values()[:2]] == [5.0, 6.0]
        assert len(storage.history("loss").values()) == history.MAX_HISTORY
        assert storage.history("loss").global_avg() == (history.MAX_HISTORY + 4) / 2  # of all


@pytest.mark.parametrize("cut", [1, 19, 20, 60, 99, 100])
def test_warnings_and_medians_do_not_see_an_interruption(cut):
    def zero(step):
        return {"loss_detection_cls": 1.0 + step % 7, "loss_detection_cls_unsup": 0.0}

    def great(step):
        return {"loss_detection_cls": 1.0 + step % 7, "loss_detection_cls_unsup": 90.0}

    for losses in (zero, great):
        kept, told, medians = watched(range(130), losses)
        assert len(told) == 1
        first, told_first, _ = watched(range(cut), losses)
        second, told_second, medians_second = watched(range(cut, 130), losses, first[-1])
        assert told_first + told_second == told
        assert medians_second == medians
        assert second[-1] == kept[-1]
