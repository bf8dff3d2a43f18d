from dataclasses import replace

import pytest
import torch

from pfedsam.core.errors import RunError
from pfedsam.core.tensors import digest
from pfedsam.federation.aggregation import Annotations, TooFewUpdatesError, weighted_mean
from pfedsam.federation.server import ServerState, WeightedMean, aggregate, initial_state
from pfedsam.federation.update import Update, UpdateSpec


def test_a_round_by_hand():
    state = WeightedMean().init({"w": torch.zeros(2)})
    updates = [
        Update("north", 0, {"w": torch.tensor([1.0, 0.0])}, 3),
        Update("south", 0, {"w": torch.tensor([5.0, 4.0])}, 1),
        Update("west", 0, {"w": torch.tensor([5.0, float("nan")])}, 1),
    ]
    registered = {"north": 3, "south": 1, "west": 1}
    after, result = aggregate(state, updates, UpdateSpec.of(state.shared), registered, WeightedMean())
    assert after.round == 1
    assert after.shared["w"].tolist() == [2.0, 1.0]  # (3*1 + 1*5) / 4, (3*0 + 1*4) / 4
    assert result.accepted == ("north", "south")
    assert list(result.rejected) == ["west"]
    assert state.round == 0
    assert state.shared["w"].tolist() == [0.0, 0.0]


def test_a_round_without_updates_leaves_the_state(updates, spec, registered):
    state = ServerState(4, updates[0].tensors)
    before = digest(state.shared)
    with pytest.raises(
        RunError, match=r"round 5 has 0 accepted update\(s\), and the method's server step needs at least 1"
    ):
        aggregate(state, updates, spec, registered, WeightedMean())  # all of round 3
    assert digest(state.shared) == before


def test_a_round_with_fewer_updates_than_the_step_needs_says_how_many(updates, spec, registered):
    class NeedsFive(WeightedMean):
        least_updates = 5

    state = ServerState(3, updates[0].tensors)
    with pytest.raises(
        TooFewUpdatesError, match=r"round 4 has 4 accepted update\(s\), and the method's server step needs at least 5"
    ) as caught:
        aggregate(state, updates, spec, registered, NeedsFive())
    assert caught.value.result.accepted == tuple(sorted(registered))


W = torch.ones(2)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (lambda state: {"w": W}, "gave a dict and not a ServerState for round 5"),
        (lambda state: replace(state, shared={"w": W}), "gave a state whose round is 4 and not 5"),
        (
            lambda state: ServerState(5, {"v": W}),
            r"other tensors than the shared ones \(missing: \['w'\], unexpected: \['v'\]\)",
        ),
        (lambda state: ServerState(5, {"w": W[None]}), r"gave w as float32 \[1, 2\] and not as float32 \[2\]"),
        (lambda state: ServerState(5, {"w": W.double()}), r"gave w as float64 \[2\] and not as float32 \[2\]"),
        (lambda state: ServerState(5, {"w": W / 0}), "gave w with values that are not finite"),
        (lambda state: ServerState(5, {"w": W}, {"steps": 1}), "gave a memory whose 'steps' is a int and not a tensor"),
        (lambda state: ServerState(5, {"w": [1.0, 1.0]}), "gave w as a list and not as a tensor"),
        (lambda state: ServerState(5, None), "gave a state whose shared is a NoneType and not a mapping"),
        (lambda state: ServerState(5, {"w": W}, [W]), "gave a state whose memory is a list and not a mapping"),
    ],
)
def test_a_server_step_that_gives_what_no_site_can_train_from_is_refused_and_named(given, says):
    class Mistaken(WeightedMean):
        def apply(self, state, updates):
            return given(state)

    state = ServerState(4, {"w": torch.zeros(2)})
    updates = [Update("north", 4, {"w": W}, 3)]
    with pytest.raises(RunError, match=f"The server step Mistaken of the method .*{says}"):
        aggregate(state, updates, UpdateSpec.of(state.shared), {"north": 3}, Mistaken())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (lambda shared: None, "a NoneType and not a ServerState"),
        (lambda shared: ServerState(1, shared), "a state whose round is 1 and not 0"),  # a round fewer would be trained
        (lambda shared: ServerState(0, {}), r"other tensors than the shared ones \(missing: \['w'\]"),
    ],
)
def test_a_server_step_that_begins_with_what_no_site_can_train_from_is_refused_and_named(given, says):
    class Mistaken(WeightedMean):
        def init(self, shared):
            return given(shared)

    with pytest.raises(RunError, match=f"The server step Mistaken of the method gave {says}"):
        initial_state(Mistaken(), {"w": W}, UpdateSpec.of({"w": W}))
    assert initial_state(WeightedMean(), {"w": W}, UpdateSpec.of({"w": W})) == ServerState(0, {"w": W})


CLASSES = {"w": ("nucleus", "cell")}


def test_a_server_step_that_changes_its_state_in_place_keeps_the_rows_that_no_site_annotates():
    class InPlace(WeightedMean):
        def init(self, shared):
            return ServerState(0, shared, {f"before:{name}": value for name, value in shared.items()})

        def apply(self, state, updates):
            for name, value in weighted_mean(updates).items():
                state.memory[f"before:{name}"].copy_(state.shared[name])
                state.shared[name].add_(2 * (value - state.shared[name]) + 1)
            return ServerState(state.round + 1, state.shared, state.memory)

    state = InPlace().init({"w": torch.tensor([1.0, 2.0])})
    updates = [Update("north", 0, {"w": torch.tensor([3.0, 9.0])}, 3)]
    annotations = Annotations(CLASSES, {"north": ("cell",)})
    spec = UpdateSpec.of(state.shared)
    after, _ = aggregate(state, updates, spec, {"north": 3}, InPlace(), annotations=annotations)
    assert after.shared["w"].tolist() == [6.0, 2.0]  # 1 + 2 (3 - 1) + 1; the second row belongs to `cell`
    assert after.memory["before:w"].tolist() == [1.0, 2.0]
    assert state.shared["w"].tolist() == [1.0, 2.0]


def test_a_server_step_may_keep_other_tensors_in_each_round():
    class Forgets(WeightedMean):
        def init(self, shared):
            return ServerState(0, shared, {"first:w": torch.zeros(2), "second:w": torch.zeros(2)})

        def apply(self, state, updates):
            return ServerState(state.round + 1, weighted_mean(updates), {"second:w": torch.ones(3)})

    state = Forgets().init({"w": torch.tensor([1.0, 2.0])})
    updates = [Update("north", 0, {"w": torch.tensor([3.0, 9.0])}, 3)]
    annotations = Annotations(CLASSES, {"north": ("cell",)})
    after, _ = aggregate(state, updates, UpdateSpec.of(state.shared), {"north": 3}, Forgets(), annotations=annotations)
    assert after.shared["w"].tolist() == [3.0, 2.0]
    assert {name: value.tolist() for name, value in after.memory.items()} == {"second:w": [1.0, 1.0, 1.0]}
