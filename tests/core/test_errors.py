from pfedsam.core import errors
from pfedsam.core.errors import PfedsamError


def test_every_error_has_its_own_exit_code():
    kinds = PfedsamError.__subclasses__()
    codes = {kind.__name__: kind.exit_code for kind in kinds}
    assert codes == {
        "OptionError": 2,
        "DataError": 3,
        "CheckpointError": 4,
        "PartitionError": 5,
        "UpdateError": 6,
        "StoreError": 7,
        "RunError": 8,
        "QuorumError": 9,
    }


def test_the_tree_in_the_docstring_is_the_tree():
    for kind in PfedsamError.__subclasses__():
        assert any(kind.__name__ in line and str(kind.exit_code) in line for line in errors.__doc__.splitlines())
