"""The time left of a run follows the machine, and knows nothing of what was there before."""

import pytest

from synthgen.core.pace import Pace


def paced(marks):
    pace = Pace()
    for now, done in marks:
        pace.mark(now, done)
    return pace


def test_a_steady_run_is_told_exactly():
    pace = paced((5.0 * i, 300 + 2 * i) for i in range(50))
    assert pace.rate == pytest.approx(0.4)
    assert pace.left_s(498) == pytest.approx(250)


def test_after_a_change_of_speed_a_third_of_the_time_is_enough():
    fast, slow = 100, 50
    marks = [(float(i), 10 * i) for i in range(fast + 1)]
    marks += [(fast + float(i), 10 * fast + i) for i in range(1, slow + 1)]
    pace = paced(marks)
    assert pace.rate == pytest.approx(1.0)  # the mean is 7
    assert pace.left_s(1100) == pytest.approx(50)


def test_nothing_is_told_before_anything_was_done():
    assert paced([]).rate == 0
    for marks in ([(3.0, 900)], [(3.0, 900), (4.0, 900)]):
        assert paced(marks).left_s(1000) is None


def test_marks_of_a_long_run_do_not_pile_up():
    assert len(paced((float(i), i) for i in range(3000))._marks) <= 1002
