"""Makes every table of docs/evidence.md with other weights: official SAM or MedSAM files, or a transformers folder.

    python benchmarks/official_weights.py DATA WEIGHTS --runs RUNS

DATA holds a folder for each suite: nuclei, retina_vessels, cardiac_mri, optic_disc; a suite whose folder is missing is left out. WEIGHTS is
what `model.backbone` takes. For each suite the methods are compared, then few labels, new sites and the ablations, with all of the suite's
seeds. Each table is one call of `pfedsam bench`, which is printed before it runs and can be repeated by itself. The result files are
written into RUNS, with the name of the weights at the end of their names. Finished runs are skipped, so that the same command continues
after an interruption.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

FOLDERS = {"nuclei": "nuclei", "retina": "retina_vessels", "cardiac": "cardiac_mri", "disc": "optic_disc"}
"""Suite -> its folder in DATA."""
TABLES = ("accuracy", "labels", "onboarding", "ablation")
LABELLED = "local-only,fedavg,fedbn,fedmsa,pfedsam,unet-local"
"""The methods that are compared with few labels."""
PROGRAM = "import sys; from pfedsam.cli.main import main; sys.exit(main())"


def calls(given: argparse.Namespace) -> Iterator[list[str]]:
    """The arguments of `pfedsam bench` for each table."""
    weights = str(Path(given.weights).resolve()) if Path(given.weights).exists() else given.weights
    changes = [f"model.backbone={weights}", *given.set]
    if given.image_size:
        changes.append(f"model.image_size={given.image_size}")
    for suite in given.suites:
        data = given.data / FOLDERS[suite]
        if not data.is_dir():
            print(f"The suite {suite} is left out: there is no folder {FOLDERS[suite]!r} in DATA.", flush=True)
            continue
        out = given.runs / suite
        common = ["--data", str(data), "--suite", suite, "--out", str(out), "--results", str(given.runs)]
        common += ["--seeds", given.seeds] if given.seeds else []
        common += [word for change in changes for word in ("--set", change)]
        name = f"{suite}-{Path(given.weights).stem}"
        for table in given.tables:
            yield {
                "accuracy": ["accuracy", *common, "--name", f"accuracy-{name}", *_methods(given.methods)],
                "labels": ["labels", *common, *_methods(given.methods or LABELLED)],
                "onboarding": ["onboarding", *common],
                "ablation": ["accuracy", *common, "--name", f"ablation-{name}", "--variants", "all"],
            }[table]


def _methods(names: str | None) -> list[str]:
    return ["--methods", names] if names else []


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the calls one after the other; returns 0 if all succeeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", help="a .pth file, a transformers folder, or a name")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--suites", nargs="+", choices=list(FOLDERS), default=list(FOLDERS))
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--seeds", help="separated by commas; default: those of the suite")
    parser.add_argument("--methods", help="separated by commas; default: those of each table")
    parser.add_argument(
        "--image-size", type=int, help="side of the model's input in pixels; default: that of the weights"
    )
    parser.add_argument("--set", action="append", default=[], help="a further override, such as training.rounds=4")
    given = parser.parse_args(arguments)
    failed = 0
    for call in calls(given):
        print("pfedsam bench", shlex.join(call), flush=True)
        failed += subprocess.run([sys.executable, "-c", PROGRAM, "bench", *call], check=False).returncode != 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
