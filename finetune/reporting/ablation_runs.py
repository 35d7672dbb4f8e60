"""The runs of an ablation: their commands, their initial weights, and the flags with which they were started."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.config import ALL, AblateConfig, chosen_tasks
from finetune.reporting.ablation_suites import SUITES, Row
from finetune.reporting.training_commands import TrainingCommand
from finetune.run_dirs.result_files import VALUES
from pretrain.config import PretrainConfig
from pretrain.engine.run_dir import CONFIG, RESULT, absolute, read_config
from pretrain.models.model_config import ModelConfig
from pretrain.pretrained.find_weights import BERT, find_weights
from pretrain.pretrained.hf_bert import bert_folder
from shards.common.errors import UserError
from shards.common.files import read_json, write_json
from shards.world import complete_world, pairs_folder

KEPT = (CONFIG, VALUES)  # files of a finished run that the table needs in addition to its result
OWN_DEFAULT = ("lr_scale", "epochs")  # flags of which a run keeps the default value of the time when it was started


@dataclass(frozen=True)
class AblationRun:
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
        return (self.out / RESULT).exists()


@dataclass(frozen=True)
class PlainWeights:
    """Initial weights of rows without pretraining.

    flags: of finetune.mt; sizes: model configuration to write to the file flags["config"], or None; text: for the log.
    """

    flags: dict
    sizes: ModelConfig | None
    text: str


def rows_of(config: AblateConfig) -> dict[str, Row]:
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


def check_tasks(config: AblateConfig, rows: Mapping[str, Row]) -> None:
    """Raises UserError for rows without G4 if none or all of the tasks belong to it."""
    if any(row.without_g4 for row in rows.values()) and not has_both(config):
        raise UserError(f"--tasks {config.tasks}: rows without G4 need tasks of G4 and of other groups")


def tasks_of(row: Row, config: AblateConfig) -> str:
    """The value of --tasks of a row's runs."""
    if not row.without_g4:
        return config.tasks
    return "g1,g2,g3" if config.tasks == ALL else ",".join(t.name for t in chosen_tasks(config) if t.group != "G4")


def has_both(config: AblateConfig) -> bool:
    """Whether some of the tasks belong to G4, and others do not."""
    return len({task.group == "G4" for task in chosen_tasks(config)}) == 2


def own_share(config: AblateConfig, count: int) -> range:
    """The places of this machine's part of `count` runs. Raises UserError for a --share that is none."""
    part, _, parts = config.share.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise UserError(f"--share {config.share}: should be K/N, such as 1/2 and 2/2 on two machines")
    return range(int(part) - 1, count, int(parts))


def prepare_suite(
    config: AblateConfig, runs: list[AblationRun]
) -> tuple[AblateConfig, PlainWeights | None, list[bool]]:
    """(flags with which runs were started, initial weights of rows without pretraining, which runs are finished)."""
    complete_world(config.data)
    pairs = pairs_folder(config.data)
    if any(one.row.pretraining is not None for one in runs) and not pairs.is_dir():
        raise UserError(f"{pairs}: no such folder; --suite {config.suite} needs region shards with captions there")
    plain = plain_weights(config, [one.row for one in runs])
    check_same_inputs([one.out for one in runs if calls_of(one, config, plain)[-1].begun])
    config = as_begun(runs, config, plain)
    if plain is not None and plain.sizes is not None:
        path, sizes = Path(plain.flags["config"]), plain.sizes.to_dict()
        begun = any(call.begun for one in runs if not one.row.pretrained for call in calls_of(one, config, plain))
        if begun and path.exists() and read_json(path) != sizes:
            raise UserError(f"{path}: model configuration differs from --init {config.init}; give another --out")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, sizes)
    return config, plain, [one.finished for one in runs]


def check_same_inputs(outs: Iterable[Path]) -> None:
    """Checks runs that may have been copied here from other machines.

    Raises:
        UserError: files of a run are missing, or runs that should have the same data or initial weights do not.
    """
    seen: dict[tuple, tuple[Path, object]] = {}
    for out in outs:
        if (out / RESULT).exists() and (missing := [name for name in KEPT if not (out / name).exists()]):
            raise UserError(
                f"{out}: has {RESULT} without {missing[0]}; copy {', '.join((*KEPT, RESULT))} of it together"
            )
        config = read_config(out)
        weights = config.get("start") or {}
        found = {("data of", name): digest for name, digest in config.get("content", {}).items()}
        if weights.get("sha256"):
            found["initial weights", weights.get("run")] = weights["sha256"]
        for what, digest in found.items():
            other, known = seen.setdefault(what, (out, digest))
            if known != digest:
                raise UserError(
                    f"{out}: {' '.join(map(str, what))} differ from those of {other}; copy them from one machine to "
                    "the others, and remove the runs that had other ones"
                )


def plain_weights(config: AblateConfig, rows: list[Row]) -> PlainWeights | None:
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
        its_bert = config.init if weights.kind == BERT else weights.run_config.get("flags", {}).get("bert")
        sizes, tokenizer, bert = weights.sizes, weights.tokenizer, bert or its_bert
        place = str(Path(config.out) / config.suite / "model.json")
    size = f"model configuration {'of ' + config.init if sizes else place}"
    if bert:
        flags = {"init": bert_folder(bert), "config": place}
        return PlainWeights(flags, sizes, f"rows without pretraining: initialised from the BERT {bert}, {size}")
    flags = {"init": "scratch", "config": place, "tokenizer": tokenizer}
    return PlainWeights(flags, sizes, f"rows without pretraining: random weights, {size} (--bert for a BERT)")


def calls_of(one: AblationRun, config: AblateConfig, plain: PlainWeights | None) -> list[TrainingCommand]:
    """The commands of a run, in order: pretraining, if the row has its own, and multi-task training."""
    machine = {"precision": config.precision, "device": config.device, "seed": one.seed}
    names = ("data", "task_file", "iterations", "lr_scale", "clean")
    flags = {name: getattr(config, name) for name in names} | {"tasks": tasks_of(one.row, config)} | machine
    if not one.row.pretrained:
        return [TrainingCommand("finetune.mt", flags | plain.flags | one.row.flags, one.out)]
    if one.row.pretraining is None:
        return [
            TrainingCommand(
                "finetune.mt", flags | {"init": config.init, "config": config.config} | one.row.flags, one.out
            )
        ]
    pretraining = {
        "data": str(pairs_folder(config.data)),
        "config": config.config or PretrainConfig.config,
        "bert": config.bert,
        "epochs": config.epochs,
    }
    return [
        TrainingCommand("pretrain.run", pretraining | machine | one.row.pretraining, one.pretrained),
        TrainingCommand("finetune.mt", flags | {"init": str(one.pretrained)} | one.row.flags, one.out),
    ]


def as_begun(runs: list[AblationRun], config: AblateConfig, plain: PlainWeights | None) -> AblateConfig:
    """The flags, with the learning-rate factor and epochs of existing runs unless they are given.

    Raises:
        UserError: a run was started with other flags or defaults, so that the table would mix different settings.
    """
    for one in runs:
        for call in calls_of(one, config, plain):
            stored = call.stored_flags if call.begun else {}
            for name, asked in call.settings.items():
                if name in OWN_DEFAULT and call.flags.get(name, asked) is None:
                    config = replace(config, **{name: stored.get(name)})
                elif stored.get(name, asked) not in (asked, absolute(asked, name)):
                    raise UserError(
                        f"{call.out}: was run with --{name} {stored[name]}, not with "
                        f"{'the default' if asked is None else asked}; give the same flags, another --out, or remove it"
                    )
    return config
