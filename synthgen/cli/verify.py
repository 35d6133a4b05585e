"""`synthgen verify`: check every byte and every row of a generated dataset."""

import json

import typer

from synthgen.cli.generation import DatasetArgument, JsonOption


def command(
    dataset: DatasetArgument,
    *,
    as_json: JsonOption = False,
) -> None:
    """Check checksums, rows, label maps, images and extra arrays; exit code 3 if any is wrong."""
    from synthgen.cli.generation import progress_on_stderr
    from synthgen.core.manifest import Manifest
    from synthgen.data.verify import verify

    manifest = Manifest.read(dataset)
    with progress_on_stderr("verify") as progress:
        problems = verify(dataset, progress=progress)
    if as_json:
        report = {
            "dataset": str(dataset),
            "kind": manifest.kind,
            "n": manifest.n,
            "problems": problems,
        }
        print(json.dumps(report))
    else:
        for problem in problems:
            print(problem)
        if not problems:
            print(f"{dataset}: {manifest.n} samples of {manifest.kind}, all right")
    if problems:
        raise typer.Exit(3)
