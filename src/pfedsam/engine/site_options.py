"""`site.yaml`: the settings of a hospital; read by its agent, and by commands that load no model."""

from pathlib import Path
from typing import Any, Final

from pydantic import Field, ValidationError

from pfedsam.core import sealed
from pfedsam.core.errors import DataError, OptionError
from pfedsam.core.options import MAX_THREADS, Device
from pfedsam.core.yaml_files import read_mapping
from pfedsam.data.site_labels import NOTHING_OF_ITS_OWN, SiteLabelOptions

CONFIG: Final = "site.yaml"
LOG: Final = "site.log"
"""The file with pFedSAM's own messages of all processes of the site; NVFlare's are in its workspace."""
AGENT: Final = "site.pid"
"""The file with the process id of `pfedsam site start` while it runs (`core.lock.running_as`)."""
SETTINGS: Final = "settings.json"
"""The file in a study's folder at a site with the settings under which the site began the study."""


class SiteOptions(SiteLabelOptions):
    """The content of `site.yaml`, the settings of a hospital; the file never leaves the site."""

    name: str = Field(min_length=1, description="Name of the site in the federation.")
    data: Path = Field(
        description="Folder with images/ and masks/, or a manifest.csv; a relative path is relative to this file."
    )
    backbone: str | None = Field(
        default=None,
        description="Path of the backbone at this site; its hash must be that of the study. Empty: as in the study's configuration.",
    )
    patient_pattern: str | None = Field(
        default=None,
        description="Pattern of the patient in the case ids of this site. Empty: as in the study's configuration.",
    )
    threads: int = Field(default=1, ge=1, le=MAX_THREADS, description="Number of threads of the training process.")
    device: Device = Field(
        default="auto",
        description="Device of the training process: auto (a GPU if torch finds one), cpu, cuda or cuda:<n>.",
    )
    min_free_mb: int = Field(default=500, ge=0, description="Required free space on the site's disk, in MB.")

    @property
    def own_labels(self) -> dict[str, Any]:
        """The site's settings of labels and spacing that differ from the study's."""
        nothing = NOTHING_OF_ITS_OWN.model_dump()
        return {key: value for key in nothing if (value := getattr(self, key)) != nothing[key]}

    @property
    def meaning(self) -> dict[str, Any]:
        """The settings that give the site's files their meaning: labels, spacing and the pattern of the patient."""
        return self.model_dump(mode="json", include={*SiteLabelOptions.model_fields, "patient_pattern"})


def read_site_options(folder: Path) -> SiteOptions:
    """The options in a site's folder.

    Raises:
        OptionError: `site.yaml` is missing or wrong.
    """
    path = folder / CONFIG
    try:
        return _from_folder(folder.resolve(), SiteOptions.model_validate(read_mapping(path)))
    except OptionError as error:
        raise OptionError(f"{error} Make the site with `pfedsam site init`.") from error
    except ValidationError as error:
        raise OptionError(f"{CONFIG} is wrong: {error}") from error


def _from_folder(folder: Path, options: SiteOptions) -> SiteOptions:
    """The options with absolute paths; those in the file are relative to its folder, because each process works in another one."""
    backbone = folder / options.backbone if options.backbone else None
    found = {"backbone": str(backbone)} if backbone and backbone.exists() else {}  # else it is a name
    return options.model_copy(update={"data": folder / options.data, **found})


def write_settings(folder: Path, options: SiteOptions) -> None:
    """Store in a study's folder the settings that give the site's files their meaning, before the study begins at the site.

    Raises:
        StoreError: the file could not be written.
    """
    sealed.write_json(folder / SETTINGS, options.meaning)


def refuse_other_settings(folder: Path, options: SiteOptions) -> None:
    """Refuse settings with which the site's files would have another meaning than when the site began the study.

    An earlier version did not store the settings; then those of now are stored.

    Args:
        folder: the study's folder at the site.
        options: the content of `site.yaml` now.

    Raises:
        DataError: a setting has changed.
        StoreError: the stored settings are damaged.
    """
    if not (folder / SETTINGS).exists():
        write_settings(folder, options)
        return
    remedy = f"It holds the settings of {CONFIG} with which this site began the study: restore it from a backup, or leave the study."
    before, now = sealed.read_json(folder / SETTINGS, remedy), options.meaning
    changed = [key for key in now if before.get(key) != now[key]]
    if changed:
        raise DataError(
            f"site {options.name!r}: {', '.join(changed)} in {CONFIG} changed since the site began this study, so that the rest of it "
            "would be of data with another meaning; put the earlier values back, or leave the study (`pfedsam site approve --withdraw`)"
        )
