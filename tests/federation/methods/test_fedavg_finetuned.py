"""FedAvg, then each site alone with its own copy of what was averaged."""

from pfedsam.federation.methods import fedavg, fedavg_finetuned
from pfedsam.training.options import TrainingOptions


def test_its_rounds_are_those_of_fedavg_and_then_all_parameters_are_trained(make) -> None:
    made, plain, options = make("fedavg-finetuned"), make("fedavg"), TrainingOptions(fine_tuning_rounds=5)
    assert (made.shared, made.local) == (plain.shared, plain.local)
    assert fedavg_finetuned.METHOD.phases(options) == fedavg.METHOD.phases(options)
    (last,) = fedavg_finetuned.METHOD.final(options)
    assert (last.trains, last.supervised, last.steps) == (("shared",), ("personal",), 20)
    assert last.fine_tunes_after == "global"
