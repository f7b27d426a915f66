"""`kinetics convert`: a Hugging Face model to a folder that our models load."""

import re
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from jax.sharding import AbstractMesh
from rich.filesize import decimal

from checkpoints_conversion import VerifyReport, convert_checkpoint, local_source, read_golden, verify_checkpoint
from kinetics_jax.models import ModelFile

from ._app import app, console
from ._bytes import Seen, byte_progress
from ._mesh import mesh_shape
from ._output import print_json


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A Hugging Face folder, a name on the hub, or a GGUF file.")],
    target: Annotated[Path, typer.Argument(help="The folder to make.")],
    dtype: Annotated[
        str | None, typer.Option(help="float32 or bfloat16 for all weights; without it each keeps its own.")
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Round kernels to int8, and say how far the logits are from the source's.")
    ] = False,
    mesh: Annotated[
        str | None,
        typer.Option(
            metavar="DATAxMODEL", help="Cut the files for devices in this mesh, such as 1x8; any other can load them."
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Then compare logits with the source, by transformers if it and torch are there."
        ),
    ] = False,
    verify_against: Annotated[
        Path | None, typer.Option(help="Then compare logits with this golden file (`kinetics verify --save-golden`).")
    ] = None,
    token_ids: Annotated[
        list[str] | None,
        typer.Option(
            metavar="1,2,3", help="Sequence to compare logits on; may be repeated.", show_default="2 of 32 tokens"
        ),
    ] = None,
    logit_error: Annotated[
        bool,
        typer.Option(help="Whether --int8 runs both models for the logit error: the source takes 4 bytes a parameter."),
    ] = True,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub name.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a converted checkpoint in TARGET.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Convert a model, a tensor at a time; after Ctrl-C or a kill the same command goes on where it stopped.

    Exit code 1 if --verify or --verify-against finds other logits; the folder stays, to be looked at.
    """
    abstract_mesh = None if mesh is None else _parse_mesh(mesh)
    sequences = _parse_token_ids(token_ids or [])
    if sequences is not None and (verify_against is not None or not (verify or (int8 and logit_error))):
        raise ValueError("--token-ids is for --verify and for the logit error of --int8; a golden file has its own")
    if verify_against is not None:
        if verify:
            raise ValueError("--verify compares with the source, --verify-against with a golden file: choose one")
        read_golden(verify_against)  # now, not hours later
    started = time.monotonic()
    with byte_progress(f"convert {Path(source).name}") as (progress, seen):
        try:
            convert_checkpoint(
                source,
                target,
                dtype=dtype,
                mesh=abstract_mesh,
                int8=int8,
                revision=revision,
                force=force,
                on_progress=progress,
            )
        except KeyboardInterrupt:
            console.print(
                f"Stopped at {decimal(seen.done)} of {decimal(seen.total)}. Run the same command to go on; "
                f"{target}.partial holds what is done."
            )
            raise typer.Exit(130) from None
    seconds = time.monotonic() - started
    report = None
    if verify_against is not None:
        report = verify_checkpoint(target, against=verify_against)
    elif verify or (int8 and logit_error):
        engine = None if verify else "kinetics"  # one program runs both: the error is that of rounding alone
        report = verify_checkpoint(target, against=local_source(target, source), token_ids=sequences, engine=engine)
    judged = report if verify or verify_against is not None else None
    if as_json:
        print_json(_to_dict(target, abstract_mesh, seen, seconds, report, judged))
    else:
        _show(target, seen, seconds, report, judged)
    if judged is not None and not judged.agrees:
        raise typer.Exit(1)


def _to_dict(
    target: Path,
    mesh: AbstractMesh | None,
    seen: Seen,
    seconds: float,
    report: VerifyReport | None,
    judged: VerifyReport | None,
) -> dict[str, Any]:
    file = ModelFile.read(target)
    return {
        "target": str(target),
        "model": file.spec.name,
        "dtype": file.dtype,
        "quantisation": file.quantisation,
        "mesh": None if mesh is None else dict(mesh.shape),
        "source_bytes": seen.total,
        "resumed_bytes": seen.first,
        "seconds": seconds,
        "logit_error": None if report is None else report.to_dict()["error"],
        "verify": None if judged is None else judged.to_dict(),
    }


def _show(target: Path, seen: Seen, seconds: float, report: VerifyReport | None, judged: VerifyReport | None) -> None:
    """Print one line of what was done, with the logit error of int8 kernels, and what was found if it was verified."""
    file = ModelFile.read(target)
    rate = int((seen.total - seen.first) / seconds)
    line = f"{target}: {file.spec.name}, {file.dtype}, {decimal(seen.total)} at {decimal(rate)}/s"
    if file.quantisation is not None:
        line += f"; {file.quantisation} kernels"
        line += "" if report is None else f", by which {report.error}; logits go up to {report.largest_logit:.3g}"
    typer.echo(line)
    if judged is not None:
        typer.echo(str(judged))


def _parse_mesh(text: str) -> AbstractMesh:
    """Return the mesh that `DATAxMODEL` means; it has no devices, and converting looks for none."""
    return AbstractMesh(mesh_shape(text), ("data", "model"))


def _parse_token_ids(texts: list[str]) -> np.ndarray | None:
    """Return sequences of equal length [B, T], None if there are none."""
    if not texts:
        return None
    if any(re.fullmatch(r"\d{1,9}(,\d{1,9})*", text) is None for text in texts):
        raise ValueError(f"--token-ids must be numbers with commas between; got {texts}. Use 1,2,3")
    sequences = [[int(number) for number in text.split(",")] for text in texts]
    if len({len(sequence) for sequence in sequences}) > 1:
        raise ValueError(f"--token-ids must be of one length; got {[len(sequence) for sequence in sequences]}")
    return np.array(sequences)
