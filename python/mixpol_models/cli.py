"""The `mixpol` command. Heavy imports wait until a command runs, so that `mixpol --help` is quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from mixpol_models import stopping
from mixpol_models.choices import DATA_NAMES, Accelerator, BackboneName, Fusion, Precision, SequenceKind
from mixpol_models.commands import INSTALL, plainly, wide_console
from mixpol_models.environment import prepare

# Flags of `mixpol train` beside the settings of a run.
_NOT_SETTINGS = ("config", "resume", "force", "print_config")


def main() -> None:
    """Runs the `mixpol` command."""
    with stopping.in_words():
        if _typer_missing is not None:
            sys.exit(f"mixpol needs packages that are not installed (first: {_typer_missing}): {INSTALL}")
        prepare()  # torch is not imported yet
        app()


def _version() -> str:
    """The package, torch and the kernels, in a line."""
    import torch

    import mixpol_kernels
    from mixpol_kernels.library import library

    kernels = f"CPU kernels {library.isa()}" if library.loaded else f"no CPU kernels ({library.reason})"
    return f"mixpol {mixpol_kernels.__version__}, torch {torch.__version__}, {kernels}"


try:
    import typer

    from mixpol_models.bench.cli import bench
except ModuleNotFoundError as error:
    _typer_missing = error.name
else:
    from mixpol_models.experiments.cli import app as experiment_app
    from mixpol_models.pnfrec.cli import app as pnfrec_app

    _typer_missing = None
    app = typer.Typer(
        help="Mixed-polarity CTR models on fused kernels.", no_args_is_help=True, pretty_exceptions_show_locals=False
    )
    data_app = typer.Typer(help="The data: what is there, and how to get more.", no_args_is_help=True)
    app.add_typer(data_app, name="data")
    app.add_typer(experiment_app, name="experiment")
    app.add_typer(pnfrec_app, name="pnfrec")
    app.command()(bench)

    def _say_version(asked: bool) -> None:
        if asked:
            typer.echo(_version())
            raise typer.Exit

    @app.callback()
    def options(
        version: Annotated[
            bool,
            typer.Option("--version", help="Say which versions are here.", callback=_say_version, is_eager=True),
        ] = False,
    ) -> None:
        """Mixed-polarity CTR models on fused kernels."""

    _DATA = f"Folder, NAME:FOLDER or YAML file, or {', '.join(DATA_NAMES)}. Default: look around."

    @app.command()
    def train(
        config: Annotated[
            str | None, typer.Option(help="YAML file, or the name of a shipped one: din, ..., mixformer.")
        ] = None,
        data: Annotated[str | None, typer.Option(help=_DATA)] = None,
        backbone: Annotated[
            BackboneName | None,
            typer.Option(help="Model. Without --config, with the settings of its own file."),
        ] = None,
        sequence: Annotated[SequenceKind | None, typer.Option(help="Events in the history.")] = None,
        fusion: Annotated[Fusion | None, typer.Option(help="How polarity marks an event.")] = None,
        budget: Annotated[int | None, typer.Option(help="Most history events.")] = None,
        negative_share: Annotated[
            float | None, typer.Option(help="Share of negatives in the budget. Default: the newest of either.")
        ] = None,
        train_on_history: Annotated[
            bool | None, typer.Option(help="Train on impressions before the training days too.")
        ] = None,
        embedding_dim: Annotated[int | None, typer.Option(help="Width of item and user vectors.")] = None,
        dropout: Annotated[float | None, typer.Option(help="In the MLP.")] = None,
        user_embedding: Annotated[bool | None, typer.Option(help="A learned vector per user.")] = None,
        epochs: Annotated[int | None, typer.Option(help="At most.")] = None,
        batch_size: Annotated[int | None, typer.Option(help="Examples per step.")] = None,
        learning_rate: Annotated[float | None, typer.Option(help="Of the dense layers.")] = None,
        table_learning_rate: Annotated[float | None, typer.Option(help="Of the item and user tables.")] = None,
        weight_decay: Annotated[float | None, typer.Option(help="Of the dense layers.")] = None,
        patience: Annotated[int | None, typer.Option(help="Epochs without a better AUC before the end.")] = None,
        sparse_tables: Annotated[bool | None, typer.Option(help="Move only the table rows of the batch.")] = None,
        seed: Annotated[int | None, typer.Option(help="Of weights, order and dropout.")] = None,
        precision: Annotated[Precision | None, typer.Option(help="Of the MLP; fp16 on a GPU only.")] = None,
        accelerator: Annotated[Accelerator | None, typer.Option(help="Where.")] = None,
        backend: Annotated[
            str | None, typer.Option(help="Of the fused ops: auto, or one that `python -m mixpol_kernels.info` lists.")
        ] = None,
        workers: Annotated[int | None, typer.Option(help="Processes that build batches.")] = None,
        output: Annotated[
            str | None,
            typer.Option(help="Folder of the run, without an earlier one. Default: a new one in mixpol_runs."),
        ] = None,
        resume: Annotated[
            Path | None,
            typer.Option(help="Run folder or checkpoint to go on from, with its settings where no flag is given."),
        ] = None,
        force: Annotated[bool, typer.Option("--force", help="Replace an earlier run in --output.")] = False,
        print_config: Annotated[
            bool, typer.Option("--print-config", help="Print the settings, say which data would be used, and stop.")
        ] = False,
    ) -> None:
        """Train a model. Flags override the YAML file, which overrides the defaults (din.yaml)."""
        flags = {name: value for name, value in locals().items() if name not in _NOT_SETTINGS}
        with plainly():
            from mixpol_models.training.config import load_config
            from mixpol_models.training.resume import saved_settings

            if force and resume is not None:
                raise ValueError("force was given with resume, which keeps the run; expected one of them")
            if force and output is None:
                raise ValueError("force was given without output; expected both: a default folder is always a new one")
            saved = saved_settings(resume) if resume is not None and config is None else None
            settings = load_config(config or (backbone if saved is None else None), flags, saved=saved)
            if print_config:
                from mixpol_models.data.whereabouts import whereabouts

                found = whereabouts(settings.data)
                typer.echo(f"{settings.to_yaml()}# data: {found}")
                return
            from mixpol_models.experiments.tables import metrics_table
            from mixpol_models.training.run import train as run

            result = run(settings, resume=resume, force=force)
            wide_console().print(metrics_table(result).rich())
            typer.echo(f"Saved in {result.config.folder}/")

    @app.command()
    def demo(
        data: Annotated[str | None, typer.Option(help=_DATA)] = None,
        output: Annotated[
            Path | None, typer.Option(help="Folder for tables and pictures. Default: a new one, demo_output.")
        ] = None,
        seeds: Annotated[int | None, typer.Option(help="How many. Default: 2, or 1 with --quick.")] = None,
        quick: Annotated[bool, typer.Option("--quick", help="A small form, under a minute.")] = False,
        skip_bench: Annotated[bool, typer.Option("--skip-bench", help="Accuracy only, no timings.")] = False,
        force: Annotated[bool, typer.Option("--force", help="Replace earlier results in --output.")] = False,
    ) -> None:
        """Train DIN four ways, time the layer and the whole step, save tables and pictures."""
        with plainly():
            from mixpol_models.experiments.demo import run_demo

            run_demo(data, output, seeds=seeds, quick=quick, skip_bench=skip_bench, force=force)

    @app.command("gpu-report")
    def gpu_report(
        output: Annotated[
            Path | None, typer.Option(help="Folder for the report. Default: a new one, gpu_report.")
        ] = None,
        users: Annotated[int, typer.Option(help="Users a batch in the timings.", min=1)] = 4096,
        length: Annotated[int, typer.Option(help="Their histories are uniform in 1 ... LENGTH.", min=1)] = 200,
        force: Annotated[bool, typer.Option("--force", help="Replace an earlier report in --output.")] = False,
    ) -> None:
        """Check and time the GPU kernels on the GPU at hand; every check stands alone."""
        with plainly():
            from mixpol_models.files import results_folder

            folder = results_folder(output, "gpu_report", ("gpu_report.json", "gpu_report.md"), force)
            import torch

            if not torch.cuda.is_available():
                typer.echo("No GPU that torch can use: nothing to report. `make test` runs the kernels on the CPU.")
                return
            from mixpol_models.bench.gpu import Size, run_report

            checks = run_report(torch.device("cuda"), folder, Size(users=users, length=length))
            failed = [check.name for check in checks if check.passed is False]
            typer.echo((folder / "gpu_report.md").read_text())
            typer.echo(f"Saved in {folder}/. " + (f"Failed: {', '.join(failed)}" if failed else "Nothing failed."))
            if failed:
                raise typer.Exit(1)

    @app.command("tune")
    def tune(
        output: Annotated[Path, typer.Option(help="Folder for MIXPOL_TRITON_CONFIGS; what it has stays.")] = Path(
            "triton_configs"
        ),
        only: Annotated[str, typer.Option(help="Part of the names OP/DIRECTION/ELEMENT/SIZE to tune.")] = "",
        users: Annotated[int, typer.Option(help="Users of the timed problem.", min=1)] = 4096,
        length: Annotated[int, typer.Option(help="Their histories are uniform in 1 ... LENGTH.", min=1)] = 200,
        workers: Annotated[int, typer.Option(help="Processes that compile and check; one times.", min=1)] = 8,
    ) -> None:
        """Find the fastest launch configurations of the Triton kernels on the GPU at hand."""
        with plainly():
            from mixpol_models.files import check_output_folder

            check_output_folder(output)
            import torch

            if not torch.cuda.is_available():
                typer.echo("No GPU that torch can use: nothing to tune.")
                return
            stopping.note(f"{output}/ has what was tuned so far")
            from mixpol_models.bench.tune_cli import run_tune

            run_tune(output, only, users, length, workers)

    @data_app.command("get")
    def data_get(
        name: Annotated[Literal["kuairand-pure"], typer.Argument(help="What to download (47 MB).")],
        force: Annotated[bool, typer.Option("--force", help="Again, even if it is there.")] = False,
    ) -> None:
        """Download a data set into the cache."""
        with plainly():
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

            from mixpol_models.data.download import get_kuairand_pure

            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            with Progress(*columns) as bar:
                task = bar.add_task(name, total=None)
                folder = get_kuairand_pure(
                    progress=lambda done, total: bar.update(task, completed=done, total=total), force=force
                )
            typer.echo(f"{name} is in {folder}")

    @data_app.command("prepare")
    def data_prepare(
        source: Annotated[
            str,
            typer.Argument(
                help="Folder with a known data set, NAME:FOLDER (kuairand, kuairec, tencentgr, kuaivideo, ml-1m, "
                "ml-20m), or a YAML file that describes a log."
            ),
        ],
        folder: Annotated[Path, typer.Argument(help="Where the store goes; --data takes it.")],
        polarity: Annotated[str | None, typer.Option(help="What is positive: 'watch_ratio < 0.3: negative'.")] = None,
        chunk_events: Annotated[int, typer.Option(help="Rows sorted at a time: memory against speed.")] = 2_000_000,
        force: Annotated[bool, typer.Option("--force", help="Replace a store that is there.")] = False,
    ) -> None:
        """Build a store on disk from a log that need not fit into memory."""
        with plainly():
            from mixpol_models.data import open_store, recognise, write_store
            from mixpol_models.data.store import check_place

            check_place(folder, force=force)
            options = {} if polarity is None else {"polarity": polarity}
            scan = recognise(source, say=typer.echo, **options)
            write_store(scan, folder, chunk_events=chunk_events, force=force, say=typer.echo)
            typer.echo(f"{open_store(folder).describe()}\nSaved in {folder}/")

    @data_app.command("show")
    def data_show(data: Annotated[str | None, typer.Option(help=_DATA)] = None) -> None:
        """Say which data a run would use, and why."""
        with plainly():
            from mixpol_models.data import resolve

            resolve(data, say=typer.echo)


if __name__ == "__main__":
    main()
