"""`python -m pretraining`: train a compact SAM from scratch on generated images."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pfedsam.cli.console import ERR, OUT


def pretrain_command(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for checkpoint, curve and, at the end, the model.")],
    size: Annotated[str, typer.Option(help="sam-tiny or sam-toy.")] = "sam-tiny",
    steps: Annotated[int, typer.Option(help="Optimiser steps in all.")] = 2000,
    crop_steps: Annotated[int, typer.Option(help="The first so many of these steps are on crops.")] = 1400,
    batch_size: Annotated[int, typer.Option(help="Scenes per step and process.")] = 8,
    start_from: Annotated[
        str | None, typer.Option("--from", help="Go on from these weights: a shipped name or a folder.")
    ] = None,
    free_weight: Annotated[float, typer.Option(help="Weight of the prompt-free task.")] = 1.0,
    appearance_weight: Annotated[float, typer.Option(help="Weight of giving the image back from its embedding.")] = 1.0,
    workers: Annotated[int, typer.Option(help="Processes, one core each; gradients are averaged.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of weights and scenes.")] = 0,
    device: Annotated[str, typer.Option(help="auto (a GPU where torch finds one), cpu, cuda or cuda:<n>.")] = "cpu",
) -> None:
    """Train a compact SAM on scenes that the project generates; the same command goes on after an interruption.

    The result is a folder that model.backbone can name.
    """
    import torch

    from pfedsam.experiment.load import validate
    from pretraining.pretrain import PretrainOptions, pretrain

    asked = {
        "size": size,
        "steps": steps,
        "crop_steps": crop_steps,
        "batch_size": batch_size,
        "start_from": start_from,
        "free_weight": free_weight,
        "appearance_weight": appearance_weight,
        "workers": workers,
        "seed": seed,
        "device": device,
    }
    options = validate(PretrainOptions, asked, "pretrain")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=ERR) as bars:
        task = bars.add_task("pretraining", total=steps)

        def tell(step: int, losses: dict[str, float]) -> None:
            text = "  ".join(f"{name} {losses[name]:.2f}" for name in ("box", "point", "free", "appearance"))
            bars.update(task, completed=step + 1, description=text)

        model = pretrain(options, out, progress=tell)
    model.to(dtype=torch.float16)  # type: ignore[call-arg]
    model.save_pretrained(out)
    OUT.print(f"Model: {out}")


if __name__ == "__main__":
    typer.run(pretrain_command)
