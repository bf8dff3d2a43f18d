"""One provisioned project for the tests of this folder."""

from pathlib import Path

import pytest

pytest.importorskip("nvflare")
from pfedsam.deploy.provision import provision


@pytest.fixture(scope="session")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    provision(folder, "test", "localhost", 58102, ["north", "south"])
    return folder
