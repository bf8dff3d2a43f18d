"""The files that `predict` reads and writes."""

from pathlib import Path

import numpy as np
from PIL import Image

from pfedsam.engine.predict_jobs import find_jobs


def test_pictures_of_any_kind_are_found_in_the_folders_of_a_folder(tmp_path: Path) -> None:
    for name in ("top.png", "sub/a.jpg", "sub/b.tif", "sub/deep/c.png", "masks/old.png", ".hidden/d.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)
    (tmp_path / "sub" / "notes.txt").touch()
    jobs = find_jobs([tmp_path], tmp_path / "masks", dicom_seg=False, probabilities=False)
    assert [job.path.relative_to(tmp_path).as_posix() for job in jobs] == [
        "sub/a.jpg",
        "sub/b.tif",
        "sub/deep/c.png",
        "top.png",
    ]
