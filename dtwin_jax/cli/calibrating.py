"""`dtwin demo` and `dtwin calibrate`."""

import re
import time
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer

from dtwin_jax.cli.terminal import say, seconds

_QUICK = {"warmup": 400, "draws": 400}

JOB_HELP = """Learn parameters from data, as a job file says.

The file is checked before any work. While sampling, draws are saved in RESULT.nc.partial: a run that
was interrupted goes on when started again. The result is written when it is whole.

\b
Example: dtwin calibrate study.toml

\b
  model = "one_compartment"         # of `dtwin models`, or package.module:attribute
  seed = 0
  output = "study.nc"               # relative to this file; default: its name with .nc

\b
  [data]
  file = "study.csv"                # CSV or Parquet, relative to this file
  form = "long"                     # or "wide"; told from the header if absent
  rename = { Cp = "concentration" } # name in the file = name in the model
  ignore = ["comment"]              # columns or names to leave out
  units = { Cp = "ug/mL" }          # where the file states none
  covariates = { weight = "kg" }    # of the patients, with their unit
  inputs = { 1 = "oral" }           # NONMEM compartment; or input = "steps", "sampled"
  t0 = "0 min"                      # when the initial state holds; default: 0, or an
                                    #   earlier first dose or measurement
  patients = ["1", "2"]             # only these
  from = { concentration = "1 h" }  # earlier ones are not used; `until` likewise

\b
  [priors]                          # the others stay as the model has them
  CL = { lognormal = { median = 3.0, log_sd = 1.0 } }   # or cv = 0.5; normal, halfnormal,
  cv = 0.0                          # a number: known         beta, gamma, uniform

\b
  [population]                      # absent: every patient alone
  vary = ["CL", "V"]                # or { CL = { halfnormal = 0.5 } }
  correlation = 2.0                 # LKJ prior; absent: independent
  centred = true                    # absent: decided by the data
  blocks = [["CL", "V"]]            # correlated with each other, with no others; absent: all are
  occasions = ["CL"]                # changes between occasions, of a column OCC; or with priors, as vary
  boxcox = ["V"]                    # skewed effects; or { V = 0.5 }, or with a prior of the shape
  mixture = { vary = ["CL"], classes = 2 }   # subpopulations; concentration = 1.0 of their shares
  [[population.covariates]]
  parameter = "CL"
  name = "weight"
  reference = 70.0
  coefficient = { normal = [0.75, 0.5] }   # or a number
  power = true                      # false: linear on the parameter's log or logit

\b
  [sampler]                         # NUTS
  chains = 4
  warmup = 1000
  draws = 1000
  target_accept = 0.9

\b
  [laplace]                         # many patients, each alone: weighed draws about the peaks, a
  draws = 1000                      #   hundred times faster; who is not trusted is sampled as
  fallback = true                   #   above (false: left, and named)

\b
  [svi]                             # a population of very many: a guide learnt from batches of
  batch = 128                       #   patients, in place of NUTS; its Pareto k is told

\b
  [score]                           # how good are forecasts? Calibrates a second time, which
  last = 2                          #   doubles the cost, without the last 2 measurements of each
                                    #   patient and channel, and scores their predictions

\b
  [shards]                          # with --engine or --shard: patients each alone, cut into
  patients = 256                    #   shards of so many; no [score], [forecast], [report]

\b
  [forecast]                        # a plan, see `dtwin forecast --help`
  [report]
  file = "study.html"
  title = "Our study"

\b
By shards, on this machine or a cluster, the folder RESULT.shards has a file for each. Finished
shards are skipped, and a killed run goes on:
  dtwin calibrate study.toml --engine local --workers 8
  dtwin calibrate study.toml --engine dask --scheduler tcp://10.0.0.1:8786
  dtwin calibrate study.toml --shard $SLURM_ARRAY_TASK_ID/100      # sbatch --array=0-99
  dtwin status study.shards

\b
A population too large for one machine is shared by processes that start the same command; the first
writes the result. All need the job, the data and the output's folder, and CPUs of one kind:
  srun --ntasks=4 dtwin calibrate study.toml --engine hosts   # or mpirun -n 4; elsewhere set
      # JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES=4 and JAX_PROCESS_ID=0, 1, ...

\b
Exit codes: 0 fine; 1 unexpected failure; 2 bad job or data; 3 finished with convergence
warnings (with --strict); 4 finished, but some patients, who are named, have no result;
75 told to end by SIGTERM, the same command goes on; 130 interrupted.
"""


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("demo-output"),
    quick: Annotated[bool, typer.Option("--quick", help="Fewer draws: enough to see, not to use.")] = False,
) -> None:
    """Calibrate, forecast and report on shipped data.

    Twelve people after one dose of theophylline each: their twins, a plan of repeated doses, one page.

    \b
    Example: dtwin demo --output demo-output
    The folder then holds the data, the job file, the result, the forecast and the report.

    \b
    Exit codes: 0 fine; 1 unexpected failure; 2 bad arguments; 130 interrupted (run it again to go on).
    """
    began = time.perf_counter()
    job_file = _unpack(output, quick)
    tree = _run(job_file, None, fresh=False, again=f"dtwin demo --output {output}" + " --quick" * quick)
    say(f"All in {seconds(time.perf_counter() - began)}, in {tree.attrs['dtype']}.")
    page = output / "theoph.html"
    say()
    say(f"Open the report in a browser:    {page.resolve().as_uri()}")
    say("What to try next:")
    say("  dtwin models one_compartment                     the model, its parameters and their sources")
    say(
        f"  dtwin forecast {output / 'theoph.nc'} --until 96h --every 1h --dose oral=300mg@0,every=8h,count=9"
    )
    say(f"  dtwin calibrate {job_file}      after a change of the job file")


def _unpack(folder: Path, quick: bool) -> Path:
    """The shipped job and its data, in `folder`; a job file that was changed there is not touched."""
    from dtwin_jax.cli.steps import check_output
    from dtwin_jax.jobs.document import JobError

    shipped = resources.files("dtwin_jax") / "data"
    job, table = folder / "theoph.toml", folder / "theoph.csv"
    full = (shipped / "theoph.toml").read_text(encoding="utf-8")
    short = full
    for name, value in _QUICK.items():
        short = re.sub(rf"(?m)^{name} = \d+$", f"{name} = {value}", short)
    check_output(job)
    data = (shipped / "theoph.csv").read_bytes()
    for path, wanted in ((job, {full.encode(), short.encode()}), (table, {data})):
        if path.exists() and (not path.is_file() or path.read_bytes() not in wanted):
            raise JobError(f"{path}: found a file that is not the demo's; pass --output for another folder")
    job.write_text(short if quick else full, encoding="utf-8")
    table.write_bytes(data)
    return job


def calibrate(
    job: Annotated[Path, typer.Argument(help="Job file in TOML.")],
    output: Annotated[
        Path | None, typer.Option(help="Result file, instead of the job's; forecast and report go beside it.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an interrupted run has left.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 on convergence warnings.")] = False,
    engine: Annotated[
        str | None,
        typer.Option(help="By shards: 'local' processes, or 'dask'; --output is then a folder. Or 'hosts'."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes; by default one a GPU, else one a core."),
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Dask's: an address, or 'slurm' as dask-jobqueue is configured.")
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Only shards I, I+N, I+2N, ...: for arrays of jobs."),
    ] = None,
) -> int:
    """Learn parameters from data, as a job file says (the help is `JOB_HELP`)."""
    from dtwin_jax.cli.steps import complaints_of

    by_shards = bool(shard or workers or scheduler)
    if engine == "hosts":
        from dtwin_jax.cli.together import run_together

        tree = run_together(job, output, fresh=fresh, by_shards=by_shards)
        return 3 if strict and complaints_of(tree) else 0
    if engine or by_shards:
        from dtwin_jax.cli.sharding import run_shards

        where = (engine or "local", workers, scheduler, shard)
        code, doubtful = run_shards(job, output, where=where, fresh=fresh)
        return 3 if strict and doubtful and not code else code
    again = " ".join(["dtwin calibrate", str(job), *([f"--output {output}"] if output else [])])
    tree = _run(job, output, fresh=fresh, again=again)
    return 3 if strict and complaints_of(tree) else 0


def _run(job_file: Path, output: Path | None, *, fresh: bool, again: str) -> Any:
    from dtwin_jax.cli.steps import run_job
    from dtwin_jax.jobs.job import read_job

    job = read_job(job_file)
    return run_job(job, output or job.result, fresh=fresh, again=again)
