from pfedsam.engine.progress import Event, silent


def test_an_event_is_a_value_and_the_silent_callback_takes_it() -> None:
    event = Event("train", 1, 4, "round 1 of 4")
    assert event == Event("train", 1, 4, "round 1 of 4")
    assert silent(event) is None  # type: ignore[func-returns-value]
