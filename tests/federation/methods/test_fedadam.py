"""FedAdam's server step against algorithm 2 in plain Python, and its own options."""

import math
import random
from pathlib import Path

import pytest
import torch

from pfedsam.core.tensors import digest
from pfedsam.engine.run import run
from pfedsam.engine.server_files import load_state, read_server, save_state
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.aggregation import Annotations
from pfedsam.federation.bounds import change_norm
from pfedsam.federation.methods import METHODS, fedadam
from pfedsam.federation.server import aggregate
from pfedsam.federation.update import Update, UpdateSpec


def step(**own: float) -> fedadam.FedAdamStep:
    return fedadam.FedAdamStep(fedadam.FedAdamOptions.model_validate(own))


def test_it_is_algorithm_2_of_the_paper_coordinate_by_coordinate() -> None:
    """Five rounds of three sites with 1, 2 and 5 cases, in floats of Python."""
    own = {"learning_rate": 0.3, "beta1": 0.8, "beta2": 0.95, "tau": 0.01}
    numbers = random.Random(0)
    x, m, v = [0.5, -2.0], [0.0, 0.0], [0.01**2] * 2
    server = step(**own)
    state = server.init({"w": torch.tensor(x, dtype=torch.float64)})
    for round_ in range(5):
        sites = {name: [value + numbers.gauss(0, 0.1) for value in x] for name in "abc"}
        for i in range(2):
            delta = sum(cases * (sites[n][i] - x[i]) for n, cases in zip("abc", (1, 2, 5), strict=True)) / 8
            m[i] = 0.8 * m[i] + 0.2 * delta
            v[i] = 0.95 * v[i] + 0.05 * delta**2
            x[i] = x[i] + 0.3 * m[i] / (math.sqrt(v[i]) + 0.01)
        cases = dict(zip("abc", (1, 2, 5), strict=True))
        updates = [Update(n, round_, {"w": torch.tensor(w, dtype=torch.float64)}, cases[n]) for n, w in sites.items()]
        state = server.apply(state, updates)
        assert state.round == round_ + 1
        assert state.shared["w"].tolist() == pytest.approx(x, abs=1e-12)
        assert state.memory["m:w"].tolist() == pytest.approx(m, abs=1e-12)
        assert state.memory["v:w"].tolist() == pytest.approx(v, abs=1e-12)


def test_a_class_that_no_site_of_a_round_annotates_does_not_move_and_keeps_its_moments() -> None:
    """The row of y has moments from the first round; in the second round only b takes part, which does not annotate y."""
    server, annotations = step(), Annotations({"rows": ("x", "y"), "whole": ("y",)}, {"b": {"y"}})
    state = server.init({"rows": torch.zeros(2, 3), "whole": torch.zeros(3), "all": torch.zeros(3)})
    spec, cases = UpdateSpec.of(state.shared), {"a": 10, "b": 10}
    states = [state]
    for round_, sites in enumerate(["ab", "b", "ab"]):
        before = states[-1]
        sent = [Update(n, round_, {k: v + 0.01 for k, v in before.shared.items()}, 10) for n in sites]
        states.append(aggregate(before, sent, spec, cases, server, annotations=annotations)[0])
    _, first, second, third = states
    assert first.shared["rows"][1].all()
    assert torch.equal(second.shared["rows"][1], first.shared["rows"][1])
    assert torch.equal(second.shared["whole"], first.shared["whole"])
    for kind in ("m", "v"):
        assert torch.equal(second.memory[f"{kind}:rows"][1], first.memory[f"{kind}:rows"][1])
        assert torch.equal(second.memory[f"{kind}:whole"], first.memory[f"{kind}:whole"])
    # The rest of the second round is a step of the algorithm without annotations.
    sent = [Update("b", 1, {k: v + 0.01 for k, v in first.shared.items()}, 10)]
    plain, _ = aggregate(first, sent, spec, cases, server)
    assert torch.equal(second.shared["rows"][0], plain.shared["rows"][0])
    assert torch.equal(second.memory["m:all"], plain.memory["m:all"])
    # In the third round y goes on as if the second one had not been: it makes the step that it would have made there.
    assert torch.equal(third.shared["rows"][1], plain.shared["rows"][1])


def test_sites_train_and_share_as_in_fedavg(make) -> None:
    assert make("fedadam").shared == make("fedavg").shared
    assert METHODS["fedadam"].phases is METHODS["fedavg"].phases


def test_what_it_keeps_is_saved_with_the_shared_parameters_and_read_back_to_the_bit(tmp_path: Path) -> None:
    server = step()
    state = server.init({"w": torch.zeros(3)})
    state = server.apply(state, [Update("a", 0, {"w": torch.tensor([0.1, -0.3, 1e-9])}, 1)])
    save_state(tmp_path, "study", state)
    back = load_state(tmp_path, "study")
    assert (back.round, digest(back.shared), digest(back.memory)) == (1, digest(state.shared), digest(state.memory))
    assert set(back.memory) == {"m:w", "v:w"}


@pytest.mark.parametrize("own", [{}, {"beta1": 0.99, "beta2": 0.9}, {"beta1": 0.0, "beta2": 0.0}, {"tau": 10.0}])
def test_no_round_moves_further_than_the_sites_are_told(own: dict[str, float]) -> None:
    """Sites whose changes have a norm of at most 1, always along the same way, against it, and growing."""
    server, direction = step(**own), torch.full((16,), 0.25, dtype=torch.float64)  # of norm 1
    for sizes in ([1.0] * 30, [1e-3] * 10 + [1.0] * 10, [1e-6 * 2**i for i in range(19)], [1.0, -1.0] * 5):
        state = server.init({"w": torch.zeros(16, dtype=torch.float64)})
        for size in sizes:
            sent = Update("a", state.round, {"w": state.shared["w"] + size * direction}, 1)
            after = server.apply(state, [sent])
            assert change_norm(state.shared, after.shared) <= server.largest_change(1.0, 16) * (1 + 1e-9)
            state = after


@pytest.mark.slow
def test_a_run_that_is_resumed_has_the_bits_of_one_that_was_not(toy_options: RunOptions, tmp_path: Path) -> None:
    options = RunOptions.model_validate(
        {
            **toy_options.model_dump(),
            "method": "fedadam",
            "training": {"rounds": 3, "batch_size": 2, "steps_per_round": 2},
        }
    )
    whole = run(options, tmp_path / "whole")

    class Killed(BaseException):
        pass

    def kill(event) -> None:
        if event.stage == "train" and event.done == 7:  # a site of the third round has trained
            raise Killed

    with pytest.raises(Killed):
        run(options, tmp_path / "part", progress=kill)
    resumed = run(options, tmp_path / "part", resume=True)
    assert resumed.mean == whole.mean
    # The files themselves differ: each names the records of its own run, which hold seconds.
    stored = [read_server(tmp_path / name) for name in ("whole", "part")]
    assert digest(stored[0][0]) == digest(stored[1][0])
    assert any(name.startswith("memory:") for name in stored[0][0])
    assert stored[0][1]["round"] == stored[1][1]["round"] == "3"
