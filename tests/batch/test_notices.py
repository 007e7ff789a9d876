"""The lines about what a batch waits for."""

from __future__ import annotations

from aiofinetune.batch._notices import Notices, duration
from aiofinetune.batch._outcomes import Wait
from aiofinetune.errors import ConnectFailed, RateLimited, TooManyJobs

SLOW = RateLimited(429, "slow")
FULL = TooManyJobs(429, "too many", code="too_many_jobs")
AWAY = ConnectFailed("no connection")


def test_a_wait_is_told_at_once_and_then_once_a_minute() -> None:
    """The first line comes at once, the next after a minute, and one when it is over, with how long it took."""
    notices = Notices()
    told = [(now, notices.lines([Wait("throttled", 0.0, now + 5, SLOW)], now)) for now in range(0, 125, 5)]
    assert [(now, line) for now, lines in told for line in lines] == [
        (0, "the service asks to slow down: 429 RateLimited; the next try is in 5 s"),
        (60, "the service asks to slow down for 1 min 0 s now: 429 RateLimited; the next try is in 5 s"),
        (120, "the service asks to slow down for 2 min 0 s now: 429 RateLimited; the next try is in 5 s"),
    ]
    assert notices.lines([], 130) == []
    assert notices.lines([], 135) == ["the service takes requests again, after 2 min 10 s"]
    assert notices.lines([], 136) == []


def test_a_wait_that_comes_and_goes_is_not_told_each_time() -> None:
    """What begins again within a minute of its last line is not told, nor is its end."""
    notices = Notices()
    full = Wait("full", 0.0, None, FULL)
    assert notices.lines([full], 0) == [
        "the service takes no more jobs: 429 TooManyJobs (too_many_jobs); the next one is sent when a job ends"
    ]
    assert notices.lines([], 1) == []
    assert notices.lines([], 6) == ["the service takes jobs again, after 1 s"]
    for now in range(7, 49, 6):
        assert notices.lines([Wait("full", now, None, FULL)], now) == []
        assert notices.lines([], now + 1) == notices.lines([], now + 5.5) == []
    assert len(notices.lines([Wait("full", 61, None, FULL)], 61)) == 1


def test_a_wait_that_is_gone_for_a_moment_goes_on() -> None:
    """A call that succeeds between two refusals ends no wait: its end is not told, and it lasts since it began."""
    notices = Notices()
    assert len(notices.lines([Wait("throttled", 0.0, 7.0, SLOW)], 0)) == 1
    for now in range(7, 60, 7):
        assert notices.lines([], now) == notices.lines([Wait("throttled", now, now + 6, SLOW)], now + 1) == []
    (line,) = notices.lines([Wait("throttled", 60.0, 60.5, SLOW)], 60)
    assert line == "the service asks to slow down for 1 min 0 s now: 429 RateLimited; trying again now"


def test_each_kind_is_told_by_itself() -> None:
    """A line about one kind of wait holds back none about another."""
    notices = Notices()
    full, away = Wait("full", 0.0, None, FULL), Wait("unreachable", 0.0, 8.0, AWAY)
    assert len(notices.lines([full, away], 0)) == 2
    assert notices.lines([full], 10) == []
    assert notices.lines([full], 15) == ["the service answers again, after 10 s"]


def test_durations() -> None:
    """Seconds, minutes and hours, as a person says them."""
    assert [duration(each) for each in (0.4, 59, 60, 3599, 3600, 7325)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "59 min 59 s",
        "1 h 0 min",
        "2 h 2 min",
    ]
