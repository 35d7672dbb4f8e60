"""python -m finetune.evaluate --run RUN --task T --split S: official scores and submission files of a run."""

from dataclasses import replace

from finetune.config import TESTS, EvaluateConfig, check_answer_files
from finetune.evaluation.scores import mean_score, render_rows, table_row
from finetune.inference.evaluate_task import evaluate_tasks, scores_of_tasks, splits_of
from finetune.run_dirs.finetune_run_dir import read_tasks
from finetune.run_dirs.run_data_folder import choose_data, warn_of_other_data
from finetune.tasks import GROUPS, add_task_files_of, choose_tasks
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
    splits = {task: chosen for task in tasks if (chosen := splits_of(task, config.split))}
    if not splits:
        raise UserError(f"--split {TESTS}: {tasks[0].name} has no test split; it has {', '.join(tasks[0].splits)}")
    count = sum(map(len, splits.values()))
    for name in ("submission", "scores"):
        if count > 1 and (path := getattr(config, name)):
            raise UserError(f"--{name} {path}: needs a single --task and --split; {count} were given")
    with connected(ranks, choose_device(config.device, ranks)):
        evaluated = evaluate_tasks(config, splits, ranks)
    if not ranks.first:
        return
    scores = scores_of_tasks(config, splits, evaluated)
    if count == 1 and not evaluated and not config.submission:
        [[split]] = splits.values()
        raise UserError(f"--split {split}: no public answers; --submission FILE writes the predictions")
    papers = {name: score for name, score in scores.items() if score.group in GROUPS}
    if len(splits) == len(scores) and len(papers) > 1:
        mean, (low, high) = mean_score(papers)
        print(f"mean of {len(papers)} tasks: {mean:.1%} ({low:.1%} to {high:.1%})")
        print(render_rows({config.run: table_row({name: score.metrics for name, score in papers.items()})}))


EXAMPLES = (
    "python -m finetune.evaluate --run runs/mt --split tests",
    "python -m finetune.evaluate --run runs/mt --task vqa --split test --submission vqa.json",
)


if __name__ == "__main__":
    summary = "Official scores and submission files of a run."
    with exiting():
        command(EvaluateConfig, run, "finetune.evaluate", summary, examples=EXAMPLES)
