"""`site.yaml`: what a hospital says about itself; read by its agent, and by commands that load no model."""

from pathlib import Path
from typing import Any, Final

from pydantic import Field, ValidationError

from pfedsam.core.errors import OptionError
from pfedsam.core.options import Device
from pfedsam.core.yaml_files import read_mapping
from pfedsam.data.site_labels import NOTHING_OF_ITS_OWN, SiteLabelOptions

CONFIG: Final = "site.yaml"


class SiteOptions(SiteLabelOptions):
    """`site.yaml`: what a hospital says about itself; it never leaves the site."""

    name: str = Field(min_length=1, description="As the coordinator calls the site.")
    data: Path = Field(description="Folder with images/ and masks/, or a manifest.csv.")
    backbone: str | None = Field(
        default=None,
        description="Where the backbone lies here; its hash must be the study's. Empty: as the study says.",
    )
    patient_pattern: str | None = Field(
        default=None, description="The patient in a case id here. Empty: as the study says."
    )
    threads: int = Field(default=1, ge=1, description="Threads of the training process.")
    device: Device = Field(
        default="auto",
        description="Where the training process computes: auto (a GPU where torch finds one), cpu, cuda or cuda:<n>.",
    )
    min_free_mb: int = Field(default=500, ge=0, description="Least free space on the site's disk, in MB.")

    @property
    def own_labels(self) -> dict[str, Any]:
        """What the site says about its labels and spacing that differs from the study's defaults."""
        nothing = NOTHING_OF_ITS_OWN.model_dump()
        return {key: value for key in nothing if (value := getattr(self, key)) != nothing[key]}


def read_site_options(folder: Path) -> SiteOptions:
    """The options in a site's folder.

    Raises:
        OptionError: there are none, or they are wrong.
    """
    path = folder / CONFIG
    try:
        return SiteOptions.model_validate(read_mapping(path))
    except OptionError as error:
        raise OptionError(f"{error} Make the site with `pfedsam site init`.") from error
    except ValidationError as error:
        raise OptionError(f"{CONFIG} is wrong: {error}") from error
