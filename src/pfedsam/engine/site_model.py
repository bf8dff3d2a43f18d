"""The model that a site ended a study with, opened again at the site: what a hospital predicts with."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pfedsam.core.errors import RunError
from pfedsam.data.intensity import read_range
from pfedsam.data.manifest import Case
from pfedsam.engine.model_selection import SiteModels
from pfedsam.engine.predict_volume import PredictedVolume, VolumeWishes, predict_volume_file
from pfedsam.engine.run_folder import predict_file
from pfedsam.engine.site_agent import build_study_model, study_options
from pfedsam.engine.site_options import read_site_options
from pfedsam.engine.site_session import SCORES
from pfedsam.federation.manifest import StudyManifest
from pfedsam.federation.site_policy import SitePolicy


class SiteModel:
    """What the site in `folder` uses after a study: its shared and local parameters, as they were tested."""

    def __init__(self, folder: Path, study: str | None = None) -> None:
        """Load backbone and parameters.

        Args:
            folder: of the site.
            study: its id; needed where more than one has ended here.

        Raises:
            OptionError: the site's options are wrong.
            RunError: no such study has ended here, or the backbone is not the study's.
        """
        policy, site = SitePolicy(folder), read_site_options(folder)
        manifest = _ended(policy, study)
        self.site, self.options = site.name, study_options(manifest, site)
        self.built = build_study_model(manifest, self.options)
        self.seen = read_range(policy.study_folder(manifest.study))
        models = SiteModels.of(self.options, self.built, policy.study_folder(manifest.study), self.built.start("local"))
        self.used = models.in_use(policy.received(manifest.study))

    def predict(self, image: Path) -> npt.NDArray[np.uint8]:
        """The class map `[H, W]` of an image file at its native size.

        Raises:
            DataError: the image cannot be read.
        """
        return predict_file(self.options, self.built, self.site, self.used, image, self.seen)

    def predict_volume(
        self, case: Case, wishes: VolumeWishes, tell: Callable[[int, int], None] | None = None
    ) -> PredictedVolume:
        """The classes of a volume; see `predict_volume_file`.

        Raises:
            DataError: the volume cannot be read.
        """
        return predict_volume_file(self.options, self.built, self.used, case, wishes, tell)


def _ended(policy: SitePolicy, study: str | None) -> StudyManifest:
    ended = {one.study: one for one in policy.manifests() if (policy.study_folder(one.study) / SCORES).exists()}
    chosen = study or (next(iter(ended)) if len(ended) == 1 else None)
    if chosen not in ended:
        asked = f"no study {study} has ended at this site" if study else "say by --study which study's model to use"
        raise RunError(f"{asked}; ended here: {', '.join(ended) or 'none yet'}.")
    return ended[chosen]
