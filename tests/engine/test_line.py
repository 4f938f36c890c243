"""The line that requests wait in, against a list that is gone through each time."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rsd_integrations.config import RSDConfig
from rsd_integrations.engine import line
from rsd_integrations.engine.job import Job, Request
from rsd_integrations.engine.line import Line

ACTS = st.one_of(
    st.tuples(st.just("add"), st.none() | st.integers(1, 20)),
    st.tuples(st.just("remove"), st.integers(0, 100)),
    st.tuples(st.just("expire"), st.integers(0, 20)),
)


def job(deadline: float | None) -> Job:
    def nothing(item: Any) -> None: ...

    return Job(Request("x", RSDConfig(), 0, deadline), nothing, nothing)


@given(st.lists(ACTS, max_size=60))
def test_it_is_a_list(acts: list[tuple[str, Any]]) -> None:
    waiting, plain = Line(), list[Job]()
    told: set[Job] = set()
    for act, value in acts:
        if act == "add":
            plain.append(job(value))
            waiting.add(plain[-1])
        elif act == "remove" and plain:
            waiting.remove(plain.pop(value % len(plain)))
        elif act == "expire":
            late = [one for one in plain if one not in told and (one.request.deadline or 99) <= value]
            found = waiting.expired(value)
            assert {*found} == {*late}
            assert found == sorted(found, key=lambda one: one.request.deadline or 0)
            told.update(found)
        assert [*waiting] == plain
        assert len(waiting) == len(plain)
        assert waiting.first is (plain[0] if plain else None)
        assert all(one in waiting for one in plain)


def test_deadlines_of_those_that_were_served_are_not_kept() -> None:
    waiting = Line()
    kept = job(10.0**9)
    waiting.add(kept)
    for _ in range(5 * line._STALE):
        served = job(10.0**9)
        waiting.add(served)
        waiting.remove(served)
    assert len(waiting._deadlines) <= 2 + line._STALE
    assert waiting.expired(10.0**9) == [kept]
