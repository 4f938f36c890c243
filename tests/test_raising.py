"""Errors that are raised in the place of others, or once more: what they tell, and that they hold nothing."""

from __future__ import annotations

import contextlib
import traceback
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from rsd_integrations import RSDConfig, RSDPipeline
from rsd_integrations.errors import BackendError, ConfigError, RewardError, TimedOutError
from rsd_integrations.raising import Converting, retold
from rsd_integrations.testing import scripted_pipeline


class Big:
    """What a frame holds."""


def converted(error: LookupError) -> BackendError | None:
    if error.args == ("left alone",):
        return None
    made = BackendError("converted")
    made.__cause__ = error
    return made


Fail = Callable[[Callable[[], BaseException], Big], None]


def within(error: Callable[[], BaseException], big: Big) -> None:
    with Converting(LookupError, converted):
        raise error()


@Converting(LookupError, converted)
def decorated(error: Callable[[], BaseException], big: Big) -> None:
    raise error()


WAYS = pytest.mark.parametrize("fail", [within, decorated])


@WAYS
def test_an_error_of_the_kind_is_converted(fail: Fail) -> None:
    given = KeyError("x")
    for _ in range(2):
        with pytest.raises(BackendError, match="converted") as caught:
            fail(lambda: given, Big())
        assert caught.value.__cause__ is given


@WAYS
@pytest.mark.parametrize("given", [ValueError("x"), KeyboardInterrupt(), KeyError("left alone")])
def test_others_are_raised_as_they_are(fail: Fail, given: BaseException) -> None:
    with pytest.raises(type(given)) as caught:
        fail(lambda: given, Big())
    assert caught.value is given


def test_where_nothing_is_raised_nothing_is_converted() -> None:
    with Converting(Exception, lambda error: BackendError("never")):
        pass
    with Converting((), converted), contextlib.suppress(KeyError):
        raise KeyError("x")


@WAYS
def test_what_is_converted_holds_no_frame(fail: Fail, uncollected: None) -> None:
    """With ``contextlib.contextmanager`` it does, from Python 3.12 on."""
    big = Big()
    held = weakref.ref(big)
    with contextlib.suppress(BackendError):
        fail(lambda: KeyError("x"), big)
    del big
    assert held() is None


def raised(error: BaseException) -> BaseException:
    """The error, with a traceback."""
    try:
        raise error
    except BaseException as caught:
        return caught


def test_what_is_retold_tells_all_and_is_another_error() -> None:
    given = RewardError("it was wrong", hint="do this")
    given.add_note("a note") if hasattr(given, "add_note") else None
    given.__cause__ = KeyError("x")
    given = raised(given)
    trace = given.__traceback__
    made = retold(given, trace)
    assert type(made) is RewardError and made is not given
    assert str(made) == str(given) == "it was wrong do this"
    assert made.__cause__ is given.__cause__
    assert made.__suppress_context__
    assert getattr(made, "__notes__", None) == getattr(given, "__notes__", None)
    assert traceback.format_tb(made.__traceback__) == traceback.format_tb(trace)


class Own(RewardError):
    """With a constructor that takes something else."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}.")
        self.code = code


def test_an_error_of_a_users_own_class_is_retold() -> None:
    made = retold(Own(7), None)
    assert isinstance(made, Own)
    assert (made.code, str(made)) == (7, "code 7.")


@pytest.mark.parametrize("shown", [True, False])
def test_what_is_retold_has_its_context(shown: bool) -> None:
    try:
        try:
            raise KeyError("x")
        except KeyError:
            if shown:
                raise ConfigError("it was wrong")  # noqa: B904
            raise ConfigError("it was wrong") from None
    except ConfigError as error:
        made = retold(error, error.__traceback__)
    assert isinstance(made.__context__, KeyError)
    assert made.__cause__ is None
    assert made.__suppress_context__ is not shown


def test_what_is_retold_keeps_what_was_written_by_then() -> None:
    given = TimedOutError("late")
    with scripted_pipeline(["fine"]) as pipe:
        given.generation = pipe.generate("x")
    made = retold(given, None)
    assert isinstance(made, TimedOutError)
    assert made.generation is given.generation


def test_an_error_of_others_is_raised_itself() -> None:
    given = raised(KeyError("x"))
    trace = given.__traceback__
    with pytest.raises(KeyError):
        raise given
    made = retold(given, trace)
    assert made is given
    assert made.__traceback__ is trace


def _broken(*_: Any) -> BackendError:
    return BackendError("it broke.")


def _read(pipe: RSDPipeline) -> None:
    stream = pipe.stream("x")
    for _ in stream:
        pass


def _asked_again(pipe: RSDPipeline) -> None:
    stream = pipe.stream("x")
    with contextlib.suppress(BackendError):
        stream.result()
    stream.result()


@pytest.mark.parametrize(
    "ask",
    [
        lambda pipe: pipe.generate("x"),
        lambda pipe: pipe.generate("x", temperature=-1),
        lambda pipe: pipe.generate("x", config=RSDConfig(threshold=2)),
        _read,
        _asked_again,
    ],
)
def test_a_failure_keeps_no_pipeline(ask: Callable[[RSDPipeline], object], uncollected: None) -> None:
    pipe = scripted_pipeline(_broken)
    kept = weakref.ref(pipe)
    with contextlib.suppress(BackendError, ConfigError):
        ask(pipe)
        pytest.fail("nothing was raised")
    del pipe
    assert kept() is None
