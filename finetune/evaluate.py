"""python -m finetune.evaluate --run RUN --task T --split S: official scores and submission files of a run."""

from dataclasses import replace

from finetune.config import TESTS, EvaluateConfig, check_answer_files
from finetune.evaluation.scores import TaskScore, mean_score, render_rows, table_row
from finetune.inference.evaluate_task import Evaluated, evaluate_split, pool_splits
from finetune.inference.model_loader import ModelLoader
from finetune.run_dirs.init_weights import read_tasks
from finetune.run_dirs.run_data_folder import choose_data, warn_of_other_data
from finetune.task_types.base import Task
from finetune.tasks import GROUPS, add_task_files_of, choose_tasks, find_task
from pretrain.engine.distributed import choose_device, connected, exiting
from shards.common.cli import command
from shards.common.dist_info import launched
from shards.common.errors import UserError


def run(config: EvaluateConfig) -> None:
    """Predicts, scores splits with public answers, and writes scores and submissions."""
    ranks = launched()
    add_task_files_of(config.run)
    if ranks.first:
        warn_of_other_data(config.run, config.data)
    config = replace(config, data=choose_data(config.run, config.data))
    tasks = choose_tasks(config.task, "--task") if config.task else read_tasks(config.run)
    check_answer_files(config, tasks)
    if config.rerank and not any(task.head.ranks_images for task in tasks):
        raise UserError(f"--rerank {config.rerank}: is of retrieval, and none of the tasks is; leave it out")
    asked = [(task, split) for task in tasks for split in _splits(task, config.split)]
    splits_of = {task.name: [split for of, split in asked if of is task] for task, _ in asked}
    if not asked:
        raise UserError(f"--split {TESTS}: {tasks[0].name} has no test split; it has {', '.join(tasks[0].splits)}")
    for name in ("submission", "scores"):
        if len(asked) > 1 and (path := getattr(config, name)):
            raise UserError(f"--{name} {path}: needs a single --task and --split; {len(asked)} were given")
    scored: dict[str, dict[str, Evaluated]] = {}
    with connected(ranks, choose_device(config.device, ranks)):
        loader = ModelLoader(config, ranks)
        for number, (task, split) in enumerate(asked, 1):
            if len(asked) > 1:
                ranks.log(f"{number} of {len(asked)}: {task.title}, {split}")
            if evaluated := evaluate_split(loader, task, split):
                scored.setdefault(task.name, {})[split] = evaluated
    if not ranks.first:
        return
    scores: dict[str, TaskScore] = {}
    for name, parts in scored.items():
        if len(splits_of[name]) == 1:
            scores[name] = parts[splits_of[name][0]].score
        elif len(parts) == len(splits_of[name]) and not find_task(name).head.ranks_images:  # retrieval ranks per split
            scores[name] = pool_splits(config, find_task(name), parts)
    if len(asked) == 1 and not scored and not config.submission:
        raise UserError(f"--split {asked[0][1]}: no public answers; --submission FILE writes the predictions")
    papers = {name: score for name, score in scores.items() if score.group in GROUPS}
    if len(splits_of) == len(scores) and len(papers) > 1:
        mean, (low, high) = mean_score(papers)
        print(f"mean of {len(papers)} tasks: {mean:.1%} ({low:.1%} to {high:.1%})")
        print(render_rows({config.run: table_row({name: score.metrics for name, score in papers.items()})}))


def _splits(task: Task, asked: str | None) -> tuple[str, ...]:
    """The splits of a task that a value of --split names."""
    if asked == TESTS:
        return task.reported
    if asked is not None:
        task.check_split(asked)
    return (asked or task.splits[1],)


EXAMPLES = (
    "python -m finetune.evaluate --run runs/mt --split tests",
    "python -m finetune.evaluate --run runs/mt --task vqa --split test --submission vqa.json",
)


if __name__ == "__main__":
    summary = "Official scores and submission files of a run."
    with exiting():
        command(EvaluateConfig, run, "finetune.evaluate", summary, examples=EXAMPLES)
