"""python -m finetune.ablate --suite table11: runs the paper's ablations with several seeds and prints their table."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from scipy import stats

from finetune.config import FREE_FLAGS, MtConfig
from finetune.decontamination.manifest import NOT_CLEANED, is_cleaned
from finetune.evaluation.bootstrap import bootstrap_means, interval_of
from finetune.evaluation.paper_results import paper_row
from finetune.evaluation.scores import load_values, mean_row, ranking_note, render_rows
from finetune.reporting.ablation_suites import PAPER_TABLES, SUITES, Row
from finetune.run_dirs.init_weights import PRETRAINING
from finetune.run_dirs.result_files import VALUES, MultiResult
from pretrain.config import FREE_FLAGS as PRETRAINING_FREE_FLAGS
from pretrain.config import PRECISIONS, PretrainConfig
from pretrain.engine.checkpoint import newest_checkpoint
from pretrain.engine.distributed import CPU, connected, exiting, on_every_rank, on_first
from pretrain.engine.run_dir import absolute, locked_run, read_config
from pretrain.models.model_config import ModelConfig
from pretrain.pretrained.find_weights import BERT, find_weights
from pretrain.pretrained.hf_bert import bert_folder
from shards.common.cli import REQUIRED, command, flag
from shards.common.dist_info import Ranks, launched
from shards.common.errors import ErrorOnAnotherRank, UserError
from shards.common.files import read_json, whole_file, write_json
from shards.world import DEFAULT_WORLD, complete_world, pairs_folder

OWN_DEFAULT = ("lr_scale", "epochs")  # flags of which a run keeps the default value of the time when it was started


@dataclass
class AblateConfig:
    """Flags of finetune.ablate."""

    suite: str = flag(REQUIRED, "ablation", choices=tuple(SUITES))
    seeds: int = flag(3, "runs per row, with seeds from 0", low=1)
    jobs: int = flag(1, "number of parallel runs, which share the machine's cores (1 under torchrun)", low=1)
    data: str = flag(DEFAULT_WORLD, "data folder with the tasks' official files and the regions of their images")
    init: str = flag(PRETRAINING, "pretraining run for all rows that do not define their own initial weights")
    out: str = flag("runs/ablate", "folder for the runs; finished runs in it are kept", written=True)
    iterations: int | None = flag(None, "iterations of each run", unset="finetune.mt's", low=1)
    epochs: int | None = flag(None, "epochs of each pretraining run", unset="pretrain.run's", low=1)
    lr_scale: float | None = flag(None, "factor on all tasks' learning rates", unset="finetune.mt's", above=0)
    rows: str | None = flag(None, "semicolon-separated rows of the suite", unset="all")
    config: str | None = flag(
        None,
        "model configuration of pretraining runs, or of published weights given by --init",
        unset="tiny, or the one next to the weights",
    )
    bert: str | None = flag(
        None,
        "Hugging Face BERT for pretraining runs and for rows without pretraining",
        unset="the one of --init's run",
    )
    clean: str | None = flag(
        None,
        "decontamination: DATA/clean or another output folder of finetune.clean",
        unset="no decontamination",
    )
    precision: str = flag("float32", "precision of matrix products; float64: of everything", choices=PRECISIONS)
    device: str = flag("auto", "device; auto: a GPU if available", choices=("auto", "cpu", "cuda"))


@dataclass(frozen=True)
class Run:
    """One run of a row. folder: contains its run directory and, if the row has its own pretraining, that run's."""

    name: str
    row: Row
    seed: int
    folder: Path

    @property
    def pretrained(self) -> Path:
        return self.folder / "pretrain"

    @property
    def out(self) -> Path:
        return self.folder / "mt"

    @property
    def finished(self) -> bool:
        return (self.out / "result.json").exists()


@dataclass(frozen=True)
class Call:
    """One command of a run. flags: without --out and --resume, which are always given; out: its run directory."""

    module: str
    flags: dict
    out: Path

    @property
    def begun(self) -> bool:
        return bool(newest_checkpoint(self.out)) or self.finished

    @property
    def finished(self) -> bool:
        return (self.out / "result.json").exists()

    @property
    def settings(self) -> dict:
        """The flags that change what is computed, including defaults of flags that are not given."""
        if self.module == "pretrain.run":
            config, free = PretrainConfig(**self.flags).settled(), PRETRAINING_FREE_FLAGS
        else:
            config, free = MtConfig(**self.flags), FREE_FLAGS
        found = {name: value for name, value in asdict(config).items() if name not in free}
        return {name: value for name, value in found.items() if value is not None or name in self.flags}

    @property
    def argv(self) -> list[str]:
        given = {**self.flags, "out": self.out, "resume": True}
        return ["-m", self.module, *(f"--{name}={value}" for name, value in given.items() if value is not None)]

    def log(self, ranks: Ranks) -> Path:
        name = self.out.name if ranks.first else f"{self.out.name}-rank{ranks.rank}"
        return self.out.with_name(f"{name}.log")


@dataclass(frozen=True)
class PlainStart:
    """Initial weights of rows without pretraining.

    flags: of finetune.mt; sizes: model configuration to write to the file flags["config"], or None; text: for the log.
    """

    flags: dict
    sizes: ModelConfig | None
    text: str


def run(config: AblateConfig) -> int:
    """Runs a suite; returns the exit status, 0 or 128 + the signal that stopped it."""
    ranks = launched()
    if ranks.count > 1 and config.jobs > 1:
        raise UserError(f"--jobs {config.jobs}: under torchrun every run uses all ranks; remove --jobs")
    with connected(ranks, CPU), locked_run(Path(config.out) / config.suite, "finetune.ablate", ranks):
        ablate(config, ranks)
    return 0


def ablate(config: AblateConfig, ranks: Ranks) -> None:
    """One rank's part of a suite: it starts its rank of every run in sequence and waits for the other ranks."""
    rows = _rows(config)
    runs = [
        Run(name, row, seed, Path(config.out) / config.suite / name.replace(" ", "_").replace(",", "") / f"seed{seed}")
        for seed in range(config.seeds)
        for name, row in rows.items()
    ]
    config, start, finished = on_first(ranks, lambda: _prepare(config, runs))
    waiting = [one for one, done in zip(runs, finished, strict=True) if not done]
    ranks.log(f"{config.suite}: {len(runs)} runs, {len(runs) - len(waiting)} of them already finished")
    if start is not None:
        ranks.log(start.text)
    processes = Processes(config.jobs, ranks)
    with processes.threads(config.jobs) as pool:
        done = pool.map(lambda one: _train(calls_of(one, config, start), processes, ranks), waiting)
        for number, (one, _) in enumerate(zip(waiting, done, strict=True), 1):
            if ranks.first:
                score = read_json(one.out / "result.json", MultiResult)["mt_score"]
                ranks.log(f"{number} of {len(waiting)}: {one.name}, seed {one.seed}: MT score {score:.2%}")
    ranks.log(on_first(ranks, lambda: _write_table(config, runs)))


def _write_table(config: AblateConfig, runs: list[Run]) -> str:
    text = table(config.suite, runs)
    path = Path(config.out) / config.suite / "table.txt"
    with whole_file(path, "w", encoding="utf-8") as file:
        file.write(text + "\n")
    return f"{text}\ntable: {path}"


def _rows(config: AblateConfig) -> dict[str, Row]:
    """The chosen rows of the suite, always including the full method."""
    rows = SUITES[config.suite]
    if config.rows is None:
        return rows
    names = [name.strip() for name in config.rows.split(";")]
    for name in names:
        if name not in rows:
            raise UserError(f"--rows {name}: {config.suite} has {'; '.join(rows)}")
    full = next(iter(rows))
    return {name: row for name, row in rows.items() if name in (full, *names)}


def _prepare(config: AblateConfig, runs: list[Run]) -> tuple[AblateConfig, PlainStart | None, list[bool]]:
    """(flags with which runs were started, initial weights of rows without pretraining, which runs are finished)."""
    complete_world(config.data)
    pairs = pairs_folder(config.data)
    if any(one.row.pretraining is not None for one in runs) and not pairs.is_dir():
        raise UserError(f"{pairs}: no such folder; --suite {config.suite} needs region shards with captions there")
    start = plain_start(config, [one.row for one in runs])
    config = as_begun(runs, config, start)
    if start is not None and start.sizes is not None:
        path, sizes = Path(start.flags["config"]), start.sizes.to_dict()
        begun = any(call.begun for one in runs if not one.row.pretrained for call in calls_of(one, config, start))
        if begun and path.exists() and read_json(path) != sizes:
            raise UserError(f"{path}: model configuration differs from --init {config.init}; give another --out")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, sizes)
    return config, start, [one.finished for one in runs]


def plain_start(config: AblateConfig, rows: list[Row]) -> PlainStart | None:
    """Initial weights of rows without pretraining, or None if there are no such rows.

    They are a BERT or random weights, with the same model configuration as the other rows. The BERT is --bert, else the
    one from which the pretraining run --init was initialised.
    """
    own = any(row.pretraining is not None for row in rows)
    if all(row.pretrained for row in rows):
        if config.bert and not own:
            raise UserError(f"--bert {config.bert}: none of the rows of {config.suite} are initialised from a BERT")
        return None
    sizes, tokenizer, bert, place = None, None, config.bert, config.config or PretrainConfig.config
    if not own and config.init != "scratch":
        try:
            weights = find_weights(config.init, config.config)
        except UserError as error:
            raise UserError(str(error) if str(error).startswith("--") else f"--init {error}") from None
        its_bert = config.init if weights.kind == BERT else weights.facts.get("flags", {}).get("bert")
        sizes, tokenizer, bert = weights.sizes, weights.tokenizer, bert or its_bert
        place = str(Path(config.out) / config.suite / "model.json")
    size = f"model configuration {'of ' + config.init if sizes else place}"
    if bert:
        flags = {"init": bert_folder(bert), "config": place}
        return PlainStart(flags, sizes, f"rows without pretraining: initialised from the BERT {bert}, {size}")
    flags = {"init": "scratch", "config": place, "tokenizer": tokenizer}
    return PlainStart(flags, sizes, f"rows without pretraining: random weights, {size} (--bert for a BERT)")


def calls_of(one: Run, config: AblateConfig, start: PlainStart | None) -> list[Call]:
    """The commands of a run, in order: pretraining, if the row has its own, and multi-task training."""
    machine = {"precision": config.precision, "device": config.device, "seed": one.seed}
    names = ("data", "iterations", "lr_scale", "clean")
    flags = {name: getattr(config, name) for name in names} | machine
    if not one.row.pretrained:
        return [Call("finetune.mt", flags | start.flags | one.row.flags, one.out)]
    if one.row.pretraining is None:
        return [Call("finetune.mt", flags | {"init": config.init, "config": config.config} | one.row.flags, one.out)]
    pretraining = {
        "data": str(pairs_folder(config.data)),
        "config": config.config or PretrainConfig.config,
        "bert": config.bert,
        "epochs": config.epochs,
    }
    return [
        Call("pretrain.run", pretraining | machine | one.row.pretraining, one.pretrained),
        Call("finetune.mt", flags | {"init": str(one.pretrained)} | one.row.flags, one.out),
    ]


def as_begun(runs: list[Run], config: AblateConfig, start: PlainStart | None) -> AblateConfig:
    """The flags, with the learning-rate factor and epochs of existing runs unless they are given.

    Raises:
        UserError: a run was started with other flags or defaults, so that the table would mix different settings.
    """
    for one in runs:
        for call in calls_of(one, config, start):
            stored = read_config(call.out)["flags"] if call.begun else {}
            for name, asked in call.settings.items():
                if name in OWN_DEFAULT and call.flags.get(name, asked) is None:
                    config = replace(config, **{name: stored.get(name)})
                elif stored.get(name, asked) not in (asked, absolute(asked, name)):
                    raise UserError(
                        f"{call.out}: was run with --{name} {stored[name]}, not with "
                        f"{'the default' if asked is None else asked}; give the same flags, another --out, or remove it"
                    )
    return config


class Processes:
    """Runs commands in subprocesses, which are stopped when this process is."""

    def __init__(self, jobs: int, ranks: Ranks):
        self.ranks, self.running, self.stopped = ranks, set(), False
        if ranks.count == 1:
            self.environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
        else:
            # The ranks of a run rendezvous in the store of this command's ranks (torchrun's own, or the first rank's),
            # each time under a new prefix (see pretrain.engine.distributed), so that a run needs no port of its own.
            count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            self.environment = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": count}

    def call(self, call: Call) -> None:
        """Runs a command to completion. Raises UserError with the path of its log if it fails."""
        log = call.log(self.ranks)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "w", encoding="utf-8") as file:
            argv, environment = [sys.executable, *call.argv], os.environ | self.environment
            process = subprocess.Popen(argv, stdout=file, stderr=subprocess.STDOUT, env=environment)
            self.running.add(process)
            if self.stopped:  # the signal arrived between two commands
                process.terminate()
            status = process.wait()
            self.running.discard(process)
        if status:
            lines = log.read_text(encoding="utf-8", errors="backslashreplace").splitlines()
            sentence = f"{log}: python -m {call.module} ended with status {status}: {(lines or [''])[-1]}"
            raise UserError(sentence) if lines or self.ranks.first else ErrorOnAnotherRank(sentence)

    @contextlib.contextmanager
    def threads(self, jobs: int) -> Iterator[ThreadPoolExecutor]:
        """A thread pool for `call`. In the block, SIGTERM stops the commands; after an error, no more are started."""
        with ThreadPoolExecutor(jobs) as pool:
            before = signal.signal(signal.SIGTERM, self.stop)
            try:
                yield pool
            finally:
                pool.shutdown(cancel_futures=True)
                signal.signal(signal.SIGTERM, before)

    def stop(self, number: int, _) -> None:
        """Forwards SIGTERM to the runs, which save a checkpoint and stop, and exits."""
        self.stopped = True
        for process in list(self.running):
            process.send_signal(number)
        raise SystemExit(128 + number)


def _train(calls: list[Call], processes: Processes, ranks: Ranks) -> None:
    """Runs the commands of one run, which resume if they were interrupted before."""
    for call in calls:
        on_every_rank(ranks, lambda call=call: processes.call(call))


def table(suite: str, runs: list[Run]) -> str:
    """Means over seeds in the paper's layout, and the difference of each row's MT score from the full method's."""
    by_row: dict[str, list[Run]] = {}
    for one in runs:
        by_row.setdefault(one.name, []).append(one)
    results = {
        name: [read_json(one.out / "result.json", MultiResult) for one in of_row] for name, of_row in by_row.items()
    }
    rows = {name: mean_row([result["tasks"] for result in of_row]) for name, of_row in results.items()}
    mark = ""
    if suite in PAPER_TABLES:
        if not all(is_cleaned(read_config(one.out)) for one in runs):
            mark = f", {NOT_CLEANED} (the paper's models are trained on cleaned data)"
        rows |= {f"the paper: {name}": paper_row(PAPER_TABLES[suite], name) for name in results}
    full = next(iter(by_row))
    seeds = len(by_row[full])
    lines = [f"{suite}: means of {seeds} {'seeds' if seeds > 1 else 'seed'}, validation{mark}", render_rows(rows), ""]
    lines.append(f"difference of the MT score from {full!r}, over the tasks of both")
    for name in list(by_row)[1:]:
        difference, (low, high), p = compare(by_row[name], by_row[full])
        lines.append(f"{name:<32} {difference:+7.2%}  ({low:+.2%} to {high:+.2%})  p = {p:.3f}")
    lines.append("interval: 95%, paired bootstrap over images; p: paired t-test over tasks and seeds")
    if note := ranking_note(*(result["tasks"] for of_row in results.values() for result in of_row)):
        lines.append(note)
    return "\n".join(lines)


def compare(row: list[Run], full: list[Run]) -> tuple[float, tuple[float, float], float]:
    """(difference of the mean score over the shared tasks, its 95% interval, p of a paired t-test).

    The test is over tasks and seeds. The interval is a paired bootstrap over images, with all their examples, of the
    differences averaged over seeds.
    """
    kept = [[load_values(one.out / VALUES) for one in runs] for runs in (row, full)]
    ours, theirs = ([values for values, _ in of_row] for of_row in kept)
    clusters = kept[0][0][1]
    names = [name for name in ours[0] if name in theirs[0]]
    differences = {name: np.mean([a[name] - b[name] for a, b in zip(ours, theirs, strict=True)], 0) for name in names}
    draws = [bootstrap_means(of, clusters[name], seed=n) for n, (name, of) in enumerate(differences.items())]
    mean = float(np.mean([values.mean() for values in differences.values()]))
    a, b = ([values[name].mean() for values in of_row for name in names] for of_row in (ours, theirs))
    p = float(stats.ttest_rel(a, b).pvalue) if not np.array_equal(a, b) else 1.0
    return mean, interval_of(np.mean(draws, 0)), p


if __name__ == "__main__":
    summary = "Runs the paper's ablations on a data folder, with several seeds per row."
    with exiting():
        command(AblateConfig, run, "finetune.ablate", summary)
