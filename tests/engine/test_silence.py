"""A silent site gets fewer and fewer requests, and after a reply it gets one in every round again."""

from itertools import pairwise

from pfedsam.engine.silence import LONGEST, Silence, Silences, after_round, left_out


def asked_rounds(rounds: int, answers: set[int], late: set[int] = frozenset()) -> list[int]:
    """The rounds in which a site is asked that answers in some of them, and whose late replies come in others."""
    silences: dict[str, Silence] = {}
    asked = []
    for round_ in range(rounds):
        is_asked = "a" not in left_out(silences, round_, sites=["a"], least=0)
        if is_asked:
            asked.append(round_)
        heard = {"a"} if (is_asked and round_ in answers) or round_ in late else set()
        silences = after_round(silences, round_, silent={"a"} if is_asked else set(), heard=heard)
    return asked


def test_a_site_that_never_answers_is_asked_in_rounds_ever_further_apart() -> None:
    assert asked_rounds(30, set()) == [0, 2, 5, 10, 19]  # left out of 1, 2, 4, 8 rounds between


def test_no_pause_is_longer_than_the_longest() -> None:
    asked = asked_rounds(200, set())
    pauses = [later - earlier - 1 for earlier, later in pairwise(asked)]
    assert max(pauses) == LONGEST
    assert pauses[-3:] == [LONGEST] * 3


def test_a_site_that_answers_is_asked_always() -> None:
    assert asked_rounds(6, set(range(6))) == [0, 1, 2, 3, 4, 5]


def test_an_answer_ends_the_silence_and_the_next_one_begins_anew() -> None:
    assert asked_rounds(9, {2, 3}) == [0, 2, 3, 4, 6]


def test_a_late_reply_ends_a_silence() -> None:
    assert asked_rounds(8, set(range(5, 8)), late={3}) == [0, 2, 4, 6, 7]


def test_the_reason_names_the_round_as_people_count() -> None:
    assert "again in round 8, or after a late reply" in left_out({"a": Silence(2, 7)}, 5, sites=["a"], least=0)["a"]


def test_no_site_is_left_out_where_the_others_are_too_few() -> None:
    silences = {"a": Silence(2, 7)}
    assert left_out(silences, 5, sites=["a", "b", "c"], least=3) == {}
    assert list(left_out(silences, 5, sites=["a", "b", "c"], least=2)) == ["a"]


def test_each_task_has_its_own_silence() -> None:
    """A site may train and never validate; its reply to the one is none to the other."""
    silences = Silences()
    silences.note("validate", 0, silent=["a"], replied=[], late=[])
    silences.note("train", 1, silent=[], replied=["a"], late=[])
    assert silences.left_out("train", 1, sites=["a"]) == {}
    assert silences.left_out("validate", 1, sites=["a"])["a"].endswith("is asked again in round 3")
    assert silences.left_out("validate", 2, sites=["a"]) == {}
    silences.note("validate", 2, silent=[], replied=["a"], late=[])
    assert silences.left_out("validate", 3, sites=["a"]) == {}


def test_a_late_reply_ends_a_silence_after_the_next_training_but_not_that_of_validations() -> None:
    silences = Silences()
    silences.note("join", 0, silent=["a"], replied=[], late=[])
    silences.note("train", 0, silent=["b"], replied=[], late=[])
    silences.note("validate", 0, silent=["a", "b"], replied=[], late=["a", "b"])
    assert set(silences.left_out("join", 1, sites=["a"])) == {"a"}
    assert set(silences.left_out("train", 1, sites=["b"])) == {"b"}
    silences.note("train", 1, silent=[], replied=[], late=[])
    assert silences.left_out("join", 1, sites=["a"]) == silences.left_out("train", 1, sites=["b"]) == {}
    assert set(silences.left_out("validate", 1, sites=["a", "b"])) == {"a", "b"}


def test_a_request_that_is_not_made_in_every_round_counts_for_nothing() -> None:
    silences = Silences()
    silences.note("test", 4, silent=["a"], replied=[], late=[])
    assert not any(silences.left_out(task, 5, sites=["a"]) for task in ("join", "train", "validate"))
