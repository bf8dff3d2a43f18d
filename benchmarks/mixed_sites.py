"""Makes sites that are mixtures: each new site has the images of two sites of nuclei, one of fluorescence and one of a stain.

    python benchmarks/mixed_sites.py --data DIR/nuclei --out DIR/nuclei-mixed
    pfedsam bench accuracy --data DIR/nuclei-mixed --suite benchmarks/nuclei-mixed.yaml --out runs/nuclei-mixed \
        --methods local-only,fedavg,pfedsam --variants no-experts,no-distillation

A mixture of experts, whose router chooses experts for each token, should gain most where a site's own images differ, as in a hospital with
two scanners. The comparison shows whether it does: pfedsam, pfedsam without experts, training alone, and averaging.
"""

import argparse
import shutil
from pathlib import Path

MIXTURES = {
    "north": ("brightfield_cyto", "fluo_256"),
    "south": ("histo_violet", "fluo_360"),
    "west": ("histo_white", "fluo_696"),
}
"""Site -> the two sites whose images it has."""


def mix(data: Path, out: Path) -> dict[str, int]:
    """Copy images and masks into the folders of the mixtures, as `<former site>-<name>`, and return the number of images by site."""
    counts = dict.fromkeys(MIXTURES, 0)
    for site, parts in MIXTURES.items():
        for kind in ("images", "masks"):
            (out / site / kind).mkdir(parents=True, exist_ok=True)
            for part in parts:
                for path in sorted((data / part / kind).iterdir()):
                    shutil.copyfile(path, out / site / kind / f"{part}-{path.name}")
                    counts[site] += kind == "images"
    return counts


def main() -> None:
    """Read the arguments, and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with one folder for each site of nuclei")
    parser.add_argument("--out", type=Path, required=True, help="folder for the mixtures; it may exist")
    asked = parser.parse_args()
    for site, count in mix(asked.data, asked.out).items():
        print(f"{site}: {count} images of {' and '.join(MIXTURES[site])}")


if __name__ == "__main__":
    main()
